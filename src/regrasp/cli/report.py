"""`regrasp report`: one self-contained HTML page about a run."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="folder of a training, evaluation or quickstart run")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: report.html in the run's folder")


def run(args: argparse.Namespace) -> int:
    """Write the page."""
    from regrasp.runners.report import report_run

    path = report_run(args.run_dir, args.output or args.run_dir / "report.html")
    print(f"Report: {path.resolve()}")
    return 0
