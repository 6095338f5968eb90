"""What single environments and a `VectorEnv` have in common, seen from our simulator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import Space

from regrasp.envs.gymnasium.child.spaces import Leaf

Info = Mapping[str, Any]


@dataclass(frozen=True)
class Stepped:
    """What one step led to; rows that were not to run may hold anything."""

    rewards: np.ndarray
    """(N,) float32."""
    terminated: np.ndarray
    """(N,) bool."""
    truncated: np.ndarray
    """(N,) bool."""
    infos: Mapping[int, Info]
    """By row, those of the rows that ran; of one that ended, its final one."""


class Environments(ABC):
    """N environments of one kind, none of which begins an episode that is looked at but by `reset`."""

    offered: Sequence[tuple[Space[Any], Space[Any]]]
    """Observations and actions of one environment of each task."""
    metadata: Mapping[str, Any]
    seeds_each: bool
    """Whether each environment is given a seed of its own."""
    resets_each: bool
    """Whether an environment can begin an episode while others are in theirs."""

    def begin(self, leaves: Sequence[Leaf], num_envs: int) -> None:
        """Lay out `present`, the last observation of all environments (N, ...) by key: of an ended one its final one.

        Args:
            leaves: The arrays of an observation.
            num_envs: N.
        """
        self._leaves = leaves
        self.raw: dict[int, Any] = {}
        """The last observation of a row as it came, of single environments."""
        self.present = {leaf.key: np.zeros((num_envs, *leaf.spec.shape), leaf.spec.dtype) for leaf in leaves}

    def _show(self, row: int | np.ndarray, observation: Any) -> None:
        """Keep the observation of one row, or those of a batch that holds every row."""
        if isinstance(row, int):
            self.raw[row] = observation
        for leaf in self._leaves:
            values = leaf.of(observation)
            self.present[leaf.key][row] = values if isinstance(row, int) else values[row]

    @abstractmethod
    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> Mapping[int, Info]:
        """Start an episode in each of `rows`; returns its info by row."""

    @abstractmethod
    def step(self, actions: np.ndarray, running: np.ndarray) -> Stepped:
        """Execute decoded actions (N, ...) in the rows `running` (N,) bool."""

    def task_of(self, row: int) -> int:
        """The number of the task of a row's episode."""
        return 0

    def of(self, row: int) -> Any:
        """The environment of a row, where each has its own."""
        raise NotImplementedError

    @abstractmethod
    def attribute(self, row: int, name: str) -> Any:
        """An attribute of one environment; raises AttributeError."""

    @abstractmethod
    def frames(self, rows: Sequence[int]) -> Sequence[Any]:
        """An image (H, W, 3) of each of `rows`."""

    @abstractmethod
    def close(self) -> None:
        """Release them."""
