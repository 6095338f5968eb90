"""`regrasp compare`: one page about several runs, and a table on the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path

from regrasp.errors import UserError
from regrasp.folders import require_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument(
        "runs", metavar="RUN", type=Path, nargs="+", help="folders of training, evaluation or quickstart runs"
    )
    parser.add_argument(
        "--output", metavar="FILE", type=Path, default=Path("compare.html"), help="default: compare.html"
    )


def run(args: argparse.Namespace) -> int:
    """Write the page."""
    if len(args.runs) < 2:
        raise UserError("One run has nothing to be compared with", key="RUN", expected="two or more", fix="add another")
    require_writable(args.output.parent, key="--output")
    from regrasp.cli.tables import print_runs
    from regrasp.stages.compare import compare_runs

    runs = compare_runs(args.runs, args.output)
    print_runs(runs)
    print(f"Page: {args.output.resolve()}")
    return 0
