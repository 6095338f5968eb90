"""Progress of one long stage: a live bar on a terminal, a plain line now and then in a log file."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import rich
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.progress import Task as RichTask
from rich.text import Text

from regrasp.logging.text import duration

_PLAIN_INTERVAL = 10.0
"""Seconds between plain lines."""
_ETA_ITEMS, _ETA_SECONDS = 3, 2.0
"""Items and seconds before the time left is estimated."""


class ProgressTask(Protocol):
    """What `progress` yields."""

    def advance(self, n: int = 1, **fields: str) -> None:
        """Count `n` more items; `fields` are shown as `name value` until they change (`success="53 %"`)."""
        ...


@contextmanager
def progress(description: str, total: int, console: Console | None = None) -> Iterator[ProgressTask]:
    """Show how far a stage of `total` items is: bar, percentage, elapsed and remaining time, and short free text.

    On a terminal a live bar; elsewhere a plain line at most every 10 s and one at the end. Bars may be nested.

    Args:
        description: What is being done, a few words.
        total: Number of items to count with `advance`.
        console: Where to show it; the process's shared console by default.
    """
    console = console or rich.get_console()
    if console.is_terminal:
        with _live_bar(console) as bars:
            yield _LiveTask(bars, description, total)
        return
    task = _PlainTask(console, description, total)
    try:
        yield task
    except (KeyboardInterrupt, InterruptedError):
        task.finish("  (interrupted)")
        raise
    except BaseException:
        task.finish("  (failed)")
        raise
    task.finish()


def _live_bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        _TimesColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
    )


class _TimesColumn(ProgressColumn):
    def render(self, task: RichTask) -> Text:
        elapsed = task.finished_time if task.finished else task.elapsed
        known = task.completed >= _ETA_ITEMS and (elapsed or 0.0) >= _ETA_SECONDS
        left = 0.0 if task.finished else task.time_remaining if known else None
        shown = (math.nan if seconds is None else seconds for seconds in (elapsed, left))
        return Text(" ETA ".join(duration(seconds) for seconds in shown), style="cyan")


class _LiveTask:
    def __init__(self, bars: Progress, description: str, total: int) -> None:
        self._bars = bars
        self._fields: dict[str, str] = {}
        self._id = bars.add_task(escape(description), total=total, note="")

    def advance(self, n: int = 1, **fields: str) -> None:
        self._fields.update(fields)
        self._bars.update(self._id, advance=n, note=escape(_note(self._fields)))


class _PlainTask:
    def __init__(self, console: Console, description: str, total: int) -> None:
        self._console = console
        self._description = description
        self._total = total
        self._done = 0
        self._fields: dict[str, str] = {}
        self._started = self._printed = time.monotonic()

    def advance(self, n: int = 1, **fields: str) -> None:
        self._done += n
        self._fields.update(fields)
        if time.monotonic() - self._printed >= _PLAIN_INTERVAL and self._done < self._total:
            self._print()

    def finish(self, remark: str = "") -> None:
        self._print(remark)

    def _print(self, remark: str = "") -> None:
        self._printed = time.monotonic()
        elapsed = self._printed - self._started
        share = self._done / self._total if self._total else 1.0
        line = f"{self._description}: {share:4.0%} {self._done}/{self._total}  {duration(elapsed)}"
        known = self._done >= _ETA_ITEMS and elapsed >= _ETA_SECONDS
        if known and self._done < self._total and not remark:
            line += f"  ETA {duration(elapsed / self._done * (self._total - self._done))}"
        note = _note(self._fields)
        self._console.print(Text(line + (f"  {note}" if note else "") + remark), soft_wrap=True)


def _note(fields: dict[str, str]) -> str:
    return "  ".join(f"{name} {value}" for name, value in fields.items())
