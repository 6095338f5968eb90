"""Signals that end a process, as a request to stop at the next safe point."""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType, TracebackType

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Ctrl-C, a scheduler's end of the job, the end of the terminal, and Ctrl-\\."""


_SAVES = "Stopping: saving the last finished update. A second signal stops at once, without saving."


class StopRequest:
    """While entered, the first signal is remembered and a second one raises KeyboardInterrupt.

    A signal that an outer request remembers is this one's too.

    Args:
        told: What is said at the first signal.
    """

    def __init__(self, told: str = _SAVES) -> None:
        self.since: float | None = None
        self._told = told
        self._is_over = False
        self._previous = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.since is not None

    def overdue(self, seconds: float) -> bool:
        """Whether a signal came more than `seconds` ago."""
        return self.since is not None and time.monotonic() - self.since > seconds

    def __enter__(self) -> StopRequest:
        outer = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
        if isinstance(outer, StopRequest):
            self.since = outer.since
        for number in _SIGNALS:
            # `nohup` has the end of the terminal ignored, which is to stay so.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.getsignal(number)
        self.catch()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def catch(self) -> None:
        """Catch signals again, after something else has put its own handlers in place."""
        for number in self._previous:
            signal.signal(number, self._handle)

    def ignore(self) -> None:
        """Ignore signals from now on, for what ends soon by itself and is to end in order."""
        self._is_over = True

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_over:
            return
        if self.since is not None:
            raise KeyboardInterrupt
        self.since = time.monotonic()
        print(flush=True)  # leaves the line of a progress bar
        _log.info(self._told)
