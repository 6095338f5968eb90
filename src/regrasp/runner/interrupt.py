"""Signals that end a process, as a request to stop at the next safe point."""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType, TracebackType

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Ctrl-C, a scheduler's end of the job, the end of the terminal, and Ctrl-\\."""


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
        for number in _SIGNALS:
            # `nohup` has the end of the terminal ignored, which is to stay so.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
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
        _log.info("Stopping: saving the last finished update. A second signal stops at once, without saving.")
