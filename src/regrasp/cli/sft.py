"""`regrasp sft`: stage 2, a base model from demonstrations."""

from __future__ import annotations

import argparse
from pathlib import Path

from regrasp.cli.common import STAGE_INTERRUPTED, add_config_arguments, load_to_run, prepare_torch

INTERRUPTED = STAGE_INTERRUPTED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    add_config_arguments(parser)
    parser.add_argument("--data", metavar="FOLDER", help="dataset folder; default: sft.data")
    parser.add_argument("--backbone", metavar="FOLDER", help="pretrained backbone; default: the user's cache")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="model folder; default: sft.output_dir")
    parser.add_argument("--overwrite", action="store_true", help="replace the model that is there")


def run(args: argparse.Namespace) -> int:
    """Train a base model."""
    loaded = load_to_run(args, block="sft", reads="sft")
    if loaded is None:
        return 0
    prepare_torch(loaded)
    from regrasp.stages.sft import train_base

    folder, result = train_base(loaded.config, output=args.output, overwrite=args.overwrite)
    validation = "" if result.validation_loss is None else f", validation loss {result.validation_loss:.3f}"
    print(f"Base model: {folder} ({result.num_frames} frames, training loss {result.train_loss:.3f}{validation})")
    return 0
