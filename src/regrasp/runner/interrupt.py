"""SIGINT and SIGTERM as a request to stop at the next safe point."""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType, TracebackType

_log = logging.getLogger(__name__)


class StopRequest:
    """While entered, the first signal is remembered and a second one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.since: float | None = None
        self._previous = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.since is not None

    def overdue(self, seconds: float) -> bool:
        """Whether a signal came more than `seconds` ago."""
        return self.since is not None and time.monotonic() - self.since > seconds

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.since is not None:
            raise KeyboardInterrupt
        self.since = time.monotonic()
        print(flush=True)  # leaves the line of a progress bar
        _log.info("Stopping: saving the last finished update (again to stop at once).")
