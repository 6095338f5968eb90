"""`regrasp sft`: stage 2, a base model from demonstrations."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from regrasp.cli.common import STAGE_INTERRUPTED, add_config_arguments, load_to_run, prepare_torch, warn_of_idle

if TYPE_CHECKING:
    from regrasp.experiment.load import LoadedConfig

INTERRUPTED = STAGE_INTERRUPTED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    add_config_arguments(parser)
    default = "default: sft.data, else collect.output_dir, which is demos unless it is set"
    parser.add_argument("--data", metavar="FOLDER", help=f"dataset: a folder, or org/name[@revision]; {default}")
    parser.add_argument(
        "--backbone",
        metavar="FOLDER",
        help="pretrained backbone: a folder, or org/name[@revision]; default: the package's or the cached one",
    )
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="model folder; default: sft.output_dir")
    parser.add_argument("--overwrite", action="store_true", help="replace the model that is there")


def run(args: argparse.Namespace) -> int:
    """Train a base model."""
    warn_of_idle(args, ["num_envs"], "this stage starts no environments")
    loaded = load_to_run(args, blocks=["sft"], reads="sft", check=lambda loaded: _check(args, loaded))
    if not args.loaded.config.actor.model.starts_from_backbone():
        warn_of_idle(args, ["backbone"], "this experiment's model starts from no backbone")
    if loaded is None:
        return 0
    prepare_torch(loaded)
    from regrasp.stages.sft import train_base

    folder, result = train_base(loaded.config, output=args.output, overwrite=args.overwrite)
    losses = f"training loss {result.train_loss:.3f}"
    if result.validation_loss is not None:
        losses += f", validation loss {result.validation_loss:.3f}"
    print(f"Base model: {folder.resolve()} ({result.num_frames} frames, {losses})")
    return 0


def _check(args: argparse.Namespace, loaded: LoadedConfig) -> None:
    from regrasp.stages.sft import check

    check(loaded.config, output=args.output, overwrite=args.overwrite)
