"""`regrasp collect`: stage 1, demonstrations by a scripted expert."""

from __future__ import annotations

import argparse
from pathlib import Path

from regrasp.cli.common import add_config_arguments, load_to_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    add_config_arguments(parser)
    parser.add_argument("--num_demos", metavar="N", type=int, help="demonstrations to keep")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="dataset folder; default: collect.output_dir")


def run(args: argparse.Namespace) -> int:
    """Record a dataset."""
    loaded = load_to_run(args, block="collect")
    if loaded is None:
        return 0
    from regrasp.runners.stages import collect_demonstrations

    folder, attempts = collect_demonstrations(loaded.config, args.output)
    print(f"Demonstrations: {folder} ({attempts} attempts)")
    return 0
