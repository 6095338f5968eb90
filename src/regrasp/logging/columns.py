"""The columns of the table of updates on the terminal: what each shows, how wide it is, what it means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from regrasp.logging.metrics import STEPS_PER_SECOND
from regrasp.logging.text import number


@dataclass(frozen=True)
class Column:
    """A metric of every update."""

    title: str
    tag: str
    """Of the metric: what an algorithm shows is named as its `loss` and `summary` name it."""
    meaning: str
    """A few words, for the lines above the table."""
    width: int = 6
    """Characters, at least those of the title."""
    render: Callable[[float, int], str] = number
    """The text of a value that has so many characters."""

    def cell(self, metrics: Mapping[str, float]) -> str:
        """The value's text; `-` where an update has none."""
        return self.render(metrics[self.tag], self.width) if self.tag in metrics else "-"


def percent(value: float, width: int) -> str:
    """`98.7%` of 0.987."""
    if not math.isfinite(value):
        return str(value)
    text = f"{100 * value:.1f}%"
    return text if len(text) <= width else f"{100 * value:.0f}%"


def one_decimal(value: float, width: int) -> str:
    """`12.3`."""
    return number(value, width, decimals=1)


def whole(value: float, width: int) -> str:
    """`12`."""
    return number(value, width, decimals=0)


SUCCESS = Column("success", "env/success_once", "share of the update's episodes that succeed, exploring", 7, percent)
"""Shown once there is an episode of which it is known."""
EPISODES = (
    Column("return", "env/return", "mean sum of an episode's rewards"),
    Column("len", "env/episode_len", "mean steps of an episode", 5, one_decimal),
)
SPEED = Column("step/s", STEPS_PER_SECOND, "environment steps per second", 6, one_decimal)
