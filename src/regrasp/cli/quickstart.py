"""`regrasp quickstart`: every stage on the embedded simulator, with a report at the end."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from regrasp.cli.common import add_config_arguments, load_to_run, prepare_torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    add_config_arguments(parser)
    parser.add_argument(
        "--output", metavar="FOLDER", type=Path, help="default: quickstart-run/seed_<S>; called again, it continues"
    )


def run(args: argparse.Namespace) -> int:
    """Run or continue the quickstart."""
    loaded = load_to_run(args)
    if loaded is None:
        return 0
    prepare_torch(loaded)
    from regrasp.runners.quickstart import quickstart

    output = args.output or Path("quickstart-run") / f"seed_{loaded.config.seed}"
    quickstart(loaded, output, shlex.join(["regrasp", *sys.argv[1:]]))
    return 0
