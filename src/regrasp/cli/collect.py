"""`regrasp collect`: stage 1, demonstrations by a scripted expert."""

from __future__ import annotations

import argparse
from pathlib import Path

from regrasp.cli.common import STAGE_INTERRUPTED, add_config_arguments, load_to_run
from regrasp.folders import require_new, require_writable

INTERRUPTED = STAGE_INTERRUPTED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    add_config_arguments(parser)
    parser.add_argument("--num_demos", metavar="N", type=int, help="demonstrations to keep")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="dataset folder; default: collect.output_dir")
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset that is there")


def run(args: argparse.Namespace) -> int:
    """Record a dataset."""
    loaded = load_to_run(args, block="collect")
    if loaded is None:
        return 0
    assert loaded.config.collect is not None
    key = "collect.output_dir" if args.output is None else "--output"
    output = args.output or Path(loaded.config.collect.output_dir)
    require_new(output, overwrite=args.overwrite, key=key)
    require_writable(output, key=key)
    from regrasp.runners.stages import collect_demonstrations

    folder, attempts = collect_demonstrations(loaded.config, output)
    print(f"Demonstrations: {folder} ({attempts} attempts)")
    return 0
