"""One line per update on the terminal, at most 100 characters wide."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import rich
from rich.console import Console
from rich.text import Text

from regrasp.logging.columns import EPISODES, SPEED, SUCCESS, Column, percent
from regrasp.logging.intervals import wilson_interval
from regrasp.logging.text import duration

_WIDTH = 100
_HEADER_EVERY = 20
_WARM_UP = 2
"""First updates that say nothing about the time of others: something compiles, or only critics learn."""
_NOTHING = "no update: nothing was kept to learn from"
"""Stands where the numbers of an update would, if there is room."""


class ConsoleTable:
    """Prints a row of the most telling metrics per update, the header again every 20 rows, and evaluations below.

    What a column means is said above the first header that has it.

    Args:
        total_updates: Number of updates of the whole run, for `update` and the estimated time left (`ETA`).
        columns: What the algorithm shows of an update.
        console: Where to print; the process's shared console by default, so that progress bars make room.
    """

    def __init__(self, total_updates: int, columns: Sequence[Column], console: Console | None = None) -> None:
        self._total = total_updates
        self._learning = [replace(column, tag=f"train/{column.tag}") for column in columns]
        self._episodes: list[Column] = [*EPISODES]
        self._console = console or rich.get_console()
        self._started = time.monotonic()
        self._rows = 0
        self._warm = 0.0
        """Seconds that the first `_WARM_UP` updates took."""
        self._until_header = 0
        self._explained: set[Column] = set()

    def row(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print what update `step` (from 1) brought; `metrics` as given to `MetricsLogger.log`."""
        if SUCCESS.tag in metrics and SUCCESS not in self._episodes:
            self._episodes.insert(0, SUCCESS)
            self._until_header = 0
        if any(column.tag in metrics for column in self._columns):
            self._print_update(step, metrics)
        if "eval/return" in metrics or "eval/success_once" in metrics:
            self._print_evaluation(step, metrics)

    @property
    def _columns(self) -> list[Column]:
        return [*self._episodes, *self._learning, SPEED]

    def _print_update(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._until_header == 0:
            self._explain()
            self._print(f"{'update':>9} {'time':>5} {'ETA':>6} {_titles(self._columns)}", "bold")
            self._until_header = _HEADER_EVERY
        self._until_header -= 1
        self._rows += 1
        elapsed = time.monotonic() - self._started
        if self._rows <= _WARM_UP:
            self._warm, left = elapsed, "-"
        else:
            left = duration((elapsed - self._warm) / (self._rows - _WARM_UP) * max(0, self._total - step))
        learned, width = _cells(self._learning, metrics), len(_titles(self._learning))
        if not metrics.get("rollout/decisions", 1) and len(_NOTHING) <= width:
            learned = f"{_NOTHING:^{width}}"
        cells = [_cells(self._episodes, metrics), *([learned] if self._learning else []), _cells([SPEED], metrics)]
        self._print(" ".join([f"{self._update(step):>9} {duration(elapsed):>5} {left:>6}", *cells]))

    def _explain(self) -> None:
        """Say what the columns mean that have not been there before."""
        new = [column for column in self._columns if column not in self._explained]
        self._explained.update(new)
        text = "; ".join(f"{column.title}: {column.meaning}" for column in new)
        for line in textwrap.wrap(text, _WIDTH, break_on_hyphens=False):
            self._print(line, "dim")

    def _print_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        begin, success = f"{self._update(step):>9} evaluation:", metrics.get("eval/success_once")
        episodes = metrics.get("eval/num_trajectories")
        if success is None:
            self._print(f"{begin} return {metrics['eval/return']:.1f}, mean of {episodes:.0f} episodes", "cyan")
            return
        line = f"{begin} success {percent(success, 7)}"
        if episodes and math.isfinite(success):
            low, high = wilson_interval(round(success * episodes), round(episodes))
            line += f" [{100 * low:.1f}, {100 * high:.1f}] of {episodes:.0f} episodes"
        self._print(line, "cyan")

    def _update(self, step: int) -> str:
        text = f"{step}/{self._total}"
        return text if len(text) <= 9 else str(step)

    def _print(self, line: str, style: str = "") -> None:
        self._console.print(Text(line, style=style), soft_wrap=True)


def _titles(columns: Sequence[Column]) -> str:
    return " ".join(f"{column.title:>{column.width}}" for column in columns)


def _cells(columns: Sequence[Column], metrics: Mapping[str, float]) -> str:
    return " ".join(f"{column.cell(metrics):>{column.width}}" for column in columns)
