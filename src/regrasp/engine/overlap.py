"""Rollouts of one process that are made while it trains, by a copy of the policy that is one update older."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from regrasp.engine.rollouts import Gathered, Rollouts
from regrasp.models.contract import Policy


class Overlap:
    """A copy of the policy that acts, and what it gathered for the next update.

    Args:
        policy: What trains, ready for it: frozen weights are shared.
    """

    def __init__(self, policy: Policy) -> None:
        frozen = {id(weight): weight for weight in policy.parameters() if not weight.requires_grad}
        self.policy = copy.deepcopy(policy, frozen).requires_grad_(False).eval()
        """What acts; nothing trains it."""
        self._gathered: tuple[int, Future[Gathered]] | None = None

    @torch.no_grad()
    def refresh(self, policy: Policy) -> None:
        """Take over the weights of what trains, between two rollouts."""
        for own, weight in zip(self.policy.parameters(), policy.parameters(), strict=True):
            if own is not weight:
                own.copy_(weight)

    def taken(self, update: int) -> Gathered | None:
        """What was gathered for update number `update`, once; None where it is yet to be made.

        Raises:
            LostError: See `Engine.collect`.
        """
        gathered, self._gathered = self._gathered, None
        return gathered[1].result() if gathered is not None and gathered[0] == update else None

    @contextmanager
    def rolling_out(self, rollouts: Rollouts, update: int) -> Iterator[None]:
        """Roll out for update number `update` meanwhile; where the body fails, the rollout is stopped and dropped."""
        stop = threading.Event()
        rollouts.updated()
        with ThreadPoolExecutor(1, "rollout") as pool:
            job = pool.submit(rollouts.collect, update, stop.is_set)
            try:
                yield
            except BaseException:
                stop.set()
                raise
        self._gathered = update, job
