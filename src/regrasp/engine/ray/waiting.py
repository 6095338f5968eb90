"""Waiting for what several processes do together, any of which may fail or die."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from regrasp.errors import LostError, RegraspError, SimulatorError, UserError

_POLL_S = 0.05
_GRACE_S = 5.0
"""How long the others have to end what they do, once one has failed."""


def results(
    replies: Sequence[Any],
    should_stop: Callable[[], bool] | None = None,
    stop: Callable[[], None] | None = None,
    deadline: float = float("inf"),
) -> list[Any]:
    """What all processes return.

    Args:
        replies: References to it.
        should_stop: Asked meanwhile.
        stop: Called once `should_stop` has said so, to have the processes end what they do.
        deadline: Seconds that the slowest may take.

    Raises:
        LostError: A process has died, or has not answered within the deadline.
        BaseException: What a process raised; of several errors that which tells most.
    """
    waiting, errors, end, started = list(replies), list[BaseException](), float("inf"), time.monotonic()
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
        elif waiting and time.monotonic() - started > deadline:
            raise LostError(f"A process of the run has not answered for {deadline:g} s.")
        if waiting and should_stop is not None and should_stop():
            should_stop = None
            if stop is not None:
                stop()
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
