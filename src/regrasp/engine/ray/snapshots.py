"""The state after the last finished update, kept outside of the processes that made it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from regrasp.engine.ray.waiting import results
from regrasp.errors import RegraspError

_log = logging.getLogger(__name__)

_RESCUE_S = 20.0
"""How long what is being copied when a process is lost may take."""
BESIDE = "beside"
"""The concurrency group of what an actor's process copies while it does something else."""


@dataclass(frozen=True)
class Snapshot:
    """References to what outlasts the processes."""

    training: Any
    """What `Worker.restore` takes."""
    envs: Any
    """What `Worker.load_env_state` takes."""


@dataclass(frozen=True)
class _UnderWay:
    snapshot: Snapshot
    signs: list[Any]
    """References to what can be fetched cheaply once all of it is there."""
    update: int | None
    """That it is the state after; None for the state that the run began in."""


class Snapshots:
    """Takes a snapshot after each update while the next rollout goes on.

    Copying the weights and moments of a large policy takes seconds, and nothing writes to them until the next update.
    """

    def __init__(self) -> None:
        self.last: Snapshot | None = None
        """The last complete one."""
        self.lost_update: int | None = None
        """An update that was made, and whose processes were lost before its state was copied."""
        self._under_way: _UnderWay | None = None

    @property
    def has_begun(self) -> bool:
        """Whether there is one, or will be."""
        return self.last is not None or self._under_way is not None

    def begin(self, actors: Sequence[Any], envs: Any, update: int | None, *, is_sharded: bool) -> None:
        """Ask for the state as it is now.

        Args:
            actors: The ranks that train.
            envs: Reference to the environments' state.
            update: The update that was just made.
            is_sharded: Whether each of them has a part of the weights: all gather those together then, in turn with
                what else they are asked. Otherwise the first has all, and copies it beside that.
        """
        assert self._under_way is None, "the last one is complete before anything is trained"
        asked = (
            [actor.snapshot.options(num_returns=2) for actor in actors]
            if is_sharded
            else [actors[0].snapshot.options(num_returns=2, concurrency_group=BESIDE)]
        )
        replies = [call.remote() for call in asked]
        signs = [*(is_there for is_there, _ in replies), envs]
        self._under_way = _UnderWay(Snapshot(replies[0][1], envs), signs, update)
        self.lost_update = None

    def settle(self, wait: Callable[[Sequence[Any]], object]) -> None:
        """Have `wait` return once the last one is complete; before anything changes what it is of.

        Raises:
            LostError: A process was lost over it.
        """
        if self._under_way is not None:
            wait(self._under_way.signs)
            self.last, self._under_way = self._under_way.snapshot, None

    def rescue(self) -> None:
        """After the loss of a process: keep the one under way, if those that make it are still there."""
        if (under_way := self._under_way) is None:
            return
        _, missing = ray.wait(under_way.signs, num_returns=len(under_way.signs), timeout=_RESCUE_S)
        try:
            if not missing:
                self.settle(results)
        except (RegraspError, RayError) as error:
            _log.debug("The state after update %s was lost: %s", under_way.update, error)
        if self._under_way is not None:
            self._under_way, self.lost_update = None, under_way.update
