"""Tables of several runs on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from regrasp.logging.text import duration, printable

if TYPE_CHECKING:
    from regrasp.stages.compare import ComparedRun, Rate


def print_runs(runs: Sequence[ComparedRun]) -> None:
    """What each run came to, a line each."""
    rows = [("run", "before", "at its end", "training", "updates", "env steps", "time")]
    for run in runs:
        training = "-" if run.training is None else f"{run.training:.1%}"
        steps = "-" if run.env_steps is None else f"{run.env_steps:,.0f}"
        cells = (_rate(run.base), _rate(run.final), training, str(run.updates), steps, duration(run.seconds))
        rows.append((printable(run.name), *cells))
    print_table(rows)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns side by side, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([f"{first:<{widths[0]}}", *cells]))


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return "-"
    low, high = rate.interval
    return f"{rate.success:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
