"""What the package logs, on the terminal."""

from __future__ import annotations

import logging
import sys


class ConsoleHandler(logging.Handler):
    """Prints what the package logs: `[INFO] text` to standard output, `[WARN] text` to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        warns = record.levelno >= logging.WARNING
        label, stream = ("WARN", sys.stderr) if warns else ("INFO", sys.stdout)
        print(f"[{label}] {record.getMessage()}", file=stream, flush=True)


_CONSOLE = ConsoleHandler()


def log_to_console() -> None:
    """Print the package's messages from now on; a second call changes nothing."""
    logger = logging.getLogger("regrasp")
    logger.addHandler(_CONSOLE)
    logger.setLevel(logging.INFO)
