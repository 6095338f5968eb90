"""What a run warns of, kept in its folder for the page about it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from regrasp.folders import WARNINGS_FILE
from regrasp.logging.side_channel import SideChannel
from regrasp.logging.text import printable

_MAX_SHOWN = 50


class WarningFile(logging.Handler):
    """Appends each warning as a line; a disk that refuses costs the line, not the run.

    Nothing is written before `begin`: a run that is refused leaves its folder as it was.

    Args:
        file: Where to.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(logging.WARNING)
        self._file = file
        self._waiting: list[str] | None = []
        self._channel = SideChannel(file.name, "Warnings are on the terminal only.")

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        self.keep(record.getMessage())

    def keep(self, text: str) -> None:
        """Append a line, or remember it for `begin`."""
        line = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}  {' '.join(printable(text).split())}\n"
        if self._waiting is None:
            self._append(line)
        else:
            self._waiting.append(line)

    def begin(self) -> None:
        """Write what there was, and from now on everything at once."""
        waiting, self._waiting = self._waiting, None
        if waiting:
            self._append("".join(waiting))

    def _append(self, lines: str) -> None:
        with self._channel.attempt(), self._file.open("a", encoding="utf-8") as file:
            file.write(lines)


@contextmanager
def recorded_warnings(run_dir: Path, earlier: Sequence[str] = ()) -> Iterator[WarningFile]:
    """Keep in the run's folder what the package warns of in the block, once the run has begun.

    Args:
        run_dir: Folder of the run.
        earlier: What was warned of before there was a folder.
    """
    handler, logger = WarningFile(run_dir / WARNINGS_FILE), logging.getLogger("regrasp")
    for text in earlier:
        handler.keep(text)
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


def read_warnings(run_dir: Path) -> list[str]:
    """The newest warnings of a run, the newest first; nothing where it has none."""
    try:
        lines = (run_dir / WARNINGS_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return lines[: -_MAX_SHOWN - 1 : -1]
