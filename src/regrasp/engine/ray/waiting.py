"""Waiting for what several processes do together, any of which may fail or die."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from regrasp.errors import LostError, RegraspError, SimulatorError, UserError

_ASK_S = 1.0
_POLL_S = 0.05
_STOP_S = 10.0
"""How long processes that were told to end what they do may show nothing of it."""
_GRACE_S = 5.0
"""How long the others have to end what they do, once one has failed."""


class Patience:
    """How long processes may show nothing of their work: no reply, and no progress of what they are at.

    Args:
        seconds: So long.
        problem: What is said of it after that.
        workers: Those that tell, by name, their progress while they are at work.
    """

    def __init__(self, seconds: float, problem: str, workers: Mapping[str, Any] | None = None) -> None:
        self._seconds = seconds
        self._problem = problem
        self._workers = workers or {}
        self._since = self._asked_at = time.monotonic()
        self._progress: dict[str, int] = {}
        self._asked: dict[str, Any] = {}
        """References to answers that have not come yet."""

    def shorten(self, seconds: float) -> None:
        """Allow no more than `seconds` from now on."""
        self._seconds, self._since = min(self._seconds, seconds), time.monotonic()

    def check(self, *, has_heard: bool) -> None:
        """Look whether something has come of it.

        Args:
            has_heard: Whether a reply has come.

        Raises:
            LostError: Nothing has for too long.
        """
        now = time.monotonic()
        if self._workers and now - self._asked_at > _ASK_S:
            self._asked_at = now
            has_heard |= any(self._has_progressed(name) for name in self._workers)
        if has_heard:
            self._since = now
        elif now - self._since > self._seconds:
            raise LostError(self._problem + self._silent())

    def _silent(self) -> str:
        """Which workers do not answer; those that do wait, for one of the others perhaps."""
        asked = {reply: name for name, reply in self._asked.items()}
        _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_ASK_S) if asked else ([], [])
        return f" No answer of {', '.join(asked[reply] for reply in silent)}." if silent else ""

    def _has_progressed(self, name: str) -> bool:
        """Whether a worker has told of more than before; asks it again where it has answered."""
        reply, before = self._asked.pop(name, None), self._progress.get(name)
        if reply is not None and not ray.wait([reply], timeout=0)[0]:
            self._asked[name] = reply
            return False
        if reply is not None:
            with contextlib.suppress(RayError):  # it has died, which what is waited for tells
                self._progress[name] = ray.get(reply)
        self._asked[name] = self._workers[name].progress.remote()
        return self._progress.get(name) != before


def results(
    replies: Sequence[Any],
    should_stop: Callable[[], bool] | None = None,
    stop: Callable[[], None] | None = None,
    patience: Patience | None = None,
) -> list[Any]:
    """What all processes return.

    Args:
        replies: References to it.
        should_stop: Asked meanwhile.
        stop: Called once `should_stop` has said so, to have the processes end what they do.
        patience: How long nothing need come of it.

    Raises:
        LostError: A process has died, or one is silent for longer than `patience` allows.
        BaseException: What a process raised; of several errors that which tells most.
    """
    waiting, errors, end = list(replies), list[BaseException](), float("inf")
    found: dict[Any, Any] = {}
    while waiting and time.monotonic() < end:
        done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_POLL_S)
        for reply in done:
            try:
                found[reply] = ray.get(reply)
            except RayTaskError as error:
                errors.append(_cause(error))
            except RayError as error:
                errors.append(_loss(error))
        if errors:
            end = min(end, time.monotonic() + _GRACE_S)
        elif patience is not None:
            patience.check(has_heard=bool(done))
        if waiting and should_stop is not None and should_stop():
            should_stop = None
            if stop is not None:
                stop()
                if patience is not None:
                    patience.shorten(_STOP_S)
    if errors:
        raise min(errors, key=_gravity)
    return [found[reply] for reply in replies]


def _gravity(error: BaseException) -> int:
    """Which of several ranks' errors tells most: that a process died, then what one found, then who only heard."""
    if isinstance(error, (SimulatorError, InterruptedError, UserError)):
        return 1
    if isinstance(error, LostError):
        return 0
    return 2 if isinstance(error, RegraspError) else 3


def _cause(error: RayTaskError) -> BaseException:
    """What a process raised, or that what it was given is lost."""
    cause = error.cause
    if isinstance(cause, RayError) and not isinstance(cause, RayTaskError):
        return _loss(cause)
    return cause if isinstance(cause, (RegraspError, InterruptedError)) else error


def _loss(error: RayError) -> LostError:
    text, _, _ = " ".join(str(error).split()).partition(" Some common causes")
    return LostError(f"A process of the run was lost. {text}")
