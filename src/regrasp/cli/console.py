"""What is printed, and what the package logs, on the terminal."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys

from regrasp.errors import RegraspError, UserError
from regrasp.logging.text import printable

_log = logging.getLogger(__name__)


class ConsoleHandler(logging.Handler):
    """Prints what the package logs: `[INFO] text` to standard output, `[WARN] text` to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        warns = record.levelno >= logging.WARNING
        label, stream = ("WARN", sys.stderr) if warns else ("INFO", sys.stdout)
        print(f"[{label}] {printable(record.getMessage())}", file=stream, flush=True)


def print_error(error: RegraspError, parsed: argparse.Namespace) -> None:
    """Print what ended a command; only its flags, kept with what it loaded, know which of them set a key."""
    located = parsed.loaded.located(error) if hasattr(parsed, "loaded") and isinstance(error, UserError) else error
    print(f"\nerror: {printable(str(located))}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)


class SteadyStream(io.TextIOWrapper):
    """Standard output or error of a command whose work is worth more than what it prints.

    A character that the terminal cannot show is printed as its escape sequence. Where the reader is gone (a closed
    terminal, a pipe to `head`), or a log's disk is full, the first failure is reported and what follows is dropped.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        encoding, at_once, self._title = stream.encoding, stream.line_buffering, stream.name
        super().__init__(stream.detach(), encoding, "backslashreplace", line_buffering=at_once)

    def write(self, text: str) -> int:
        """Write, or drop."""
        try:
            return super().write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Flush, or drop."""
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        _log.warning("%s cannot be written any more, and the work goes on: %s.", self._title, error.strerror)


_CONSOLE = ConsoleHandler()


def log_to_console() -> None:
    """Print the package's messages from now on, whatever becomes of the terminal; a second call changes nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper and stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, SteadyStream(stream))
    logger = logging.getLogger("regrasp")
    logger.addHandler(_CONSOLE)
    logger.setLevel(logging.INFO)
