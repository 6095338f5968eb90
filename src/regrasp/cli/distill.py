"""`regrasp distill`: a plain model, which learned to do what one with an actor beside its head does."""

from __future__ import annotations

import argparse
from pathlib import Path

from regrasp.cli.common import STAGE_INTERRUPTED, add_config_arguments, add_model_argument, load_to_run, prepare_torch

INTERRUPTED = STAGE_INTERRUPTED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    add_config_arguments(parser)
    add_model_argument(parser, "model with a residual, or with an actor of its noise")
    parser.add_argument("--output", metavar="FOLDER", type=Path, default=Path("distilled"), help="default: distilled")
    parser.add_argument("--overwrite", action="store_true", help="replace the model that is there")


def run(args: argparse.Namespace) -> int:
    """Distill a model."""
    loaded = load_to_run(args, blocks=["sft"], reads="train", starts="collect", check=lambda _: _check(args))
    if loaded is None:
        return 0
    prepare_torch(loaded)
    from regrasp.stages.distill import distill

    folder, loss = distill(loaded.config, args.output, overwrite=args.overwrite)
    print(f"Model: {folder.resolve()} (training loss {loss:.3f})")
    return 0


def _check(args: argparse.Namespace) -> None:
    from regrasp.stages.distill import check

    check(args.output, overwrite=args.overwrite)
