"""States that a policy's demonstrations never had: what it does there, it has not learned."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from regrasp.envs.contract import Observation
from regrasp.models.contract import Policy
from regrasp.models.observations import state_of

_log = logging.getLogger(__name__)

_OF_CONSTANT, _SMALL = 0.01, 0.1
"""Distance beside its magnitude that counts for a constant, and the smallest magnitude."""


class StateWatch:
    """Counts decisions on a state that leaves the demonstrations' range by more than the range's width.

    Of a value that was constant, a hundredth of its magnitude is that width, of a small one 0.001. States are looked at
    on the host, where the simulator left them.
    """

    def __init__(self) -> None:
        self._limits: tuple[Tensor, Tensor] | None = None
        self._decisions = 0
        self._outside = 0
        self._first = ""
        self._is_reported = False

    def see(self, policy: Policy, observation: Observation) -> None:
        """Look at what `policy` is about to decide on."""
        known = policy.state_range
        if known is None:
            return
        if self._limits is None:
            margin = torch.maximum(
                known.high - known.low,
                _OF_CONSTANT * torch.maximum(known.low.abs(), known.high.abs()).clamp(min=_SMALL),
            )
            self._limits = known.low - margin, known.high + margin
        low, high = self._limits
        state = state_of(observation, dict(known.parts))
        outside = (state < low) | (state > high)
        self._decisions += len(state)
        if outside.any():
            if not self._outside:
                row, column = torch.nonzero(outside)[0].tolist()
                value, least, most = state[row, column], known.low[column], known.high[column]
                self._first = f"{known.name(column)} was {value:g}, in the demonstrations {least:g} to {most:g}"
            self._outside += int(outside.any(1).sum())

    def report(self) -> None:
        """Warn of what was counted so far, once."""
        if self._outside and not self._is_reported:
            self._is_reported = True
            _log.warning(
                "%d of %d decisions were taken on a state further outside the demonstrations than their range is wide;"
                " the first: %s. Units, or the order of the mapping's states, may be others than there.",
                self._outside,
                self._decisions,
                self._first,
            )
