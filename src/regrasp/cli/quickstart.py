"""`regrasp quickstart`: every stage on the embedded simulator, with a report at the end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from regrasp.cli.common import add_config_arguments, load_to_run, prepare_torch
from regrasp.folders import require_writable

if TYPE_CHECKING:
    from regrasp.experiment.load import LoadedConfig

INTERRUPTED = (
    "Finished stages are kept. Run the same command again: training goes on from its newest checkpoint, any other stage"
    " starts anew."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    add_config_arguments(parser)
    parser.add_argument(
        "--output", metavar="FOLDER", type=Path, help="default: quickstart-run/seed_<S>; called again, it continues"
    )


def run(args: argparse.Namespace) -> int:
    """Run or continue the quickstart."""
    loaded = load_to_run(args, blocks=["pretrain", "collect", "sft"], starts="train", check=_check)
    if loaded is None:
        return 0
    output = args.output or Path("quickstart-run") / f"seed_{loaded.config.seed}"
    require_writable(output, key="--output")
    prepare_torch(loaded)
    from regrasp.runner.run_folder import command_line
    from regrasp.stages.quickstart import quickstart

    quickstart(loaded, output, command_line(args.given))
    return 0


def _check(loaded: LoadedConfig) -> None:
    from regrasp.stages.quickstart import check

    check(loaded.config)
