"""One line per update on the terminal, at most 100 characters wide."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import rich
from rich.console import Console
from rich.text import Text

from regrasp.logging.intervals import wilson_interval
from regrasp.logging.metrics import STEPS_PER_SECOND
from regrasp.logging.text import duration, number

_HEADER_EVERY = 20
_NOTHING = "no update: nothing was kept to learn from"
"""Stands where the numbers of an update would."""


@dataclass(frozen=True)
class _Column:
    title: str
    width: int
    tags: tuple[str, ...]
    """The first tag that the metrics hold is shown."""
    render: Callable[[float, int], str] = number

    def cell(self, metrics: Mapping[str, float]) -> str:
        value = next((metrics[tag] for tag in self.tags if tag in metrics), None)
        return "-" if value is None else self.render(value, self.width)


def _percent(value: float, width: int) -> str:
    if not math.isfinite(value):
        return str(value)
    text = f"{100 * value:.1f}%"
    return text if len(text) <= width else f"{100 * value:.0f}%"


def _one_decimal(value: float, width: int) -> str:
    return number(value, width, decimals=1)


_COLUMNS = (
    _Column("success", 7, ("env/success_once",), _percent),
    _Column("return", 6, ("env/return",)),
    _Column("len", 5, ("env/episode_len",), _one_decimal),
    _Column("policy", 6, ("train/actor/policy_loss", "train/sac/actor_loss")),
    _Column("value", 5, ("train/critic/value_loss", "train/sac/critic_loss")),
    _Column("loss", 6, ("train/actor/total_loss",)),
    _Column("KL", 5, ("train/actor/approx_kl",)),
    _Column("clip", 5, ("train/actor/clip_fraction",), _percent),
    _Column("ratio", 5, ("train/actor/ratio",)),
    _Column("EV", 5, ("train/critic/explained_variance",)),
    _Column("grad", 5, ("train/actor/grad_norm",)),
    _Column("step/s", 6, (STEPS_PER_SECOND,), _one_decimal),
)
_UNTRAINED = " ".join(f"{'-':>{column.width}}" for column in _COLUMNS if column.tags[0].startswith("train/"))
"""The cells of an update that was none."""


class ConsoleTable:
    """Prints a row of the most telling metrics per update, the header again every 20 rows, and evaluations below.

    `len` is the episode length, `policy` and `value` are losses, `loss` their total, `clip` is the clip fraction, `EV`
    the value's explained variance.

    Args:
        total_updates: Number of updates of the whole run, for `update` and the estimated time left (`ETA`).
        console: Where to print; the process's shared console by default, so that progress bars make room.
    """

    def __init__(self, total_updates: int, console: Console | None = None) -> None:
        self._total = total_updates
        self._console = console or rich.get_console()
        self._started = time.monotonic()
        self._rows = 0

    def row(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print what update `step` (from 1) brought; `metrics` as given to `MetricsLogger.log`."""
        if any(tag in metrics for column in _COLUMNS for tag in column.tags):
            self._print_update(step, metrics)
        if "eval/return" in metrics or "eval/success_once" in metrics:
            self._print_evaluation(step, metrics)

    def _print_update(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._rows % _HEADER_EVERY == 0:
            titles = ["update", "time", "ETA", *(column.title for column in _COLUMNS)]
            self._print(self._line(titles), "bold")
        self._rows += 1
        elapsed = time.monotonic() - self._started
        left = elapsed / self._rows * max(0, self._total - step)
        cells = [self._update(step), duration(elapsed), duration(left)]
        line = self._line(cells + [column.cell(metrics) for column in _COLUMNS])
        if not metrics.get("rollout/decisions", 1):
            line = line.replace(_UNTRAINED, f"{_NOTHING:^{len(_UNTRAINED)}}")
        self._print(line)

    def _print_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        begin, success = f"{self._update(step):>9} evaluation:", metrics.get("eval/success_once")
        episodes = metrics.get("eval/num_trajectories")
        if success is None:
            self._print(f"{begin} return {metrics['eval/return']:.1f}, mean of {episodes:.0f} episodes", "cyan")
            return
        line = f"{begin} success {_percent(success, 7)}"
        if episodes and math.isfinite(success):
            low, high = wilson_interval(round(success * episodes), round(episodes))
            line += f" [{100 * low:.1f}, {100 * high:.1f}] of {episodes:.0f} episodes"
        self._print(line, "cyan")

    def _update(self, step: int) -> str:
        text = f"{step}/{self._total}"
        return text if len(text) <= 9 else str(step)

    @staticmethod
    def _line(cells: list[str]) -> str:
        widths = [9, 5, 6, *(column.width for column in _COLUMNS)]
        return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))

    def _print(self, line: str, style: str = "") -> None:
        self._console.print(Text(line, style=style), soft_wrap=True)
