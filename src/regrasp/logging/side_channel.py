"""What is written beside a run's results. It may fail, which costs the run nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


class SideChannel:
    """Reports the first failure of what is tried, and lets the run go on after every one.

    Args:
        name: What it is, as a user knows it.
        remedy: What becomes of what failed.
    """

    def __init__(self, name: str, remedy: str) -> None:
        self._name = name
        self._remedy = remedy
        self._reported = False

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Leave the block at its first error."""
        try:
            yield
        except Exception as error:
            if not self._reported:
                self._reported = True
                reason = str(error) or type(error).__name__
                _log.warning("%s failed, and the run goes on: %s. %s", self._name, reason.rstrip(". \n"), self._remedy)
