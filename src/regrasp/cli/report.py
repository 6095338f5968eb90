"""`regrasp report`: one self-contained HTML page about a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from regrasp.folders import require_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="folder of a training, evaluation or quickstart run")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: report.html in the run's folder")


def run(args: argparse.Namespace) -> int:
    """Write the page."""
    output = args.output or args.run_dir / "report.html"
    if args.output is not None or args.run_dir.is_dir():
        require_writable(output.parent, key="--output")
    from regrasp.stages.report import report_run

    path = report_run(args.run_dir, output)
    print(f"Report: {path.resolve()}")
    return 0
