"""What a simulator offers inside its own process. Imports NumPy only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


class ArraySpec(NamedTuple):
    """Shape (without the environment axis) and NumPy dtype name of one raw observation."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class SimulatorSpec:
    """Sizes and abilities, told to the parent as JSON before any array exists."""

    task_id: str
    raw_observations: Mapping[str, ArraySpec]
    """Every observation, by `group/key`."""
    action_dim: int
    """Width of an action, after the action mapping."""
    instructions: tuple[str, ...]
    """Every instruction that an episode can carry, for tables by instruction."""
    step_seconds: float
    """Simulated seconds per environment step."""
    max_episode_steps: int
    """An episode is truncated after this many environment steps."""
    state_size: int = 0
    """Number of float64 that hold one environment's complete state; 0 where it cannot be saved."""
    info: tuple[str, ...] = ()
    """Names of further float measures per environment."""
    has_expert: bool = False
    hold_last_action: bool = False
    """Until its reset, an ended environment is told its last action (right for absolute targets), else zeros (right for
    relative commands)."""
    capabilities: dict[str, bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What the user should be warned of before the first episode."""
    reward_doubts: tuple[str, ...] = ()
    """What may be wrong if the reward turns out to be constant."""

    def __post_init__(self) -> None:
        """Take plain pairs of shape and dtype too, as JSON has them."""
        raw = {key: ArraySpec(tuple(shape), dtype) for key, (shape, dtype) in self.raw_observations.items()}
        object.__setattr__(self, "raw_observations", raw)


def with_tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    """The values with tuples for lists, which JSON made of them."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


@dataclass(frozen=True)
class Outcome:
    """What one step of N environments led to; each array is (N,), and rows that do not run may hold anything."""

    rewards: np.ndarray
    """float32."""
    terminated: np.ndarray
    """bool."""
    truncated: np.ndarray
    """bool, the task gave the episode up, which is no verdict on its final state; the step limit is not meant."""
    success: np.ndarray
    """bool."""
    info: Mapping[str, np.ndarray] = field(default_factory=dict)
    """float32, by the names in `SimulatorSpec.info`."""


class Simulator(ABC):
    """N environments of one task, in one process: what the author of a simulator writes.

    An environment is a row, and no row is reset but by `reset`. Chunks of actions, step limits and what becomes of a
    row that has ended are the business of `envs/chunk.py`.
    """

    @abstractmethod
    def describe(self) -> SimulatorSpec:
        """What this simulator offers."""

    @abstractmethod
    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> Sequence[int]:
        """Start an episode in each of `rows`, and return the indices of their instructions."""

    @abstractmethod
    def advance(self, actions: np.ndarray, running: np.ndarray) -> Outcome:
        """Execute one action (N, A) in the rows `running` (N,) bool.

        Where rows can only be stepped together, the others are stepped too: they are given a hold action, see
        `SimulatorSpec.hold_last_action`, and nobody sees what it does.
        """

    @abstractmethod
    def observe(self, rows: Sequence[int], targets: Mapping[str, np.ndarray]) -> None:
        """Write the present observations of `rows` into their rows of the arrays (N, ...), by `group/key`.

        Right after the step that ended an episode these are its true final observations. Only what is in `targets` has
        to be computed.
        """

    @abstractmethod
    def render(self, rows: Sequence[int], targets: Sequence[np.ndarray]) -> None:
        """Write a video frame (H, W, 3) uint8 of each of `rows` into its target."""

    def expert(self, rows: Sequence[int], target: np.ndarray) -> None:  # noqa: B027
        """Write the scripted expert's actions of `rows` into theirs of (N, A); with `SimulatorSpec.has_expert`."""

    def save(self, target: np.ndarray) -> None:  # noqa: B027
        """Write the complete state of all rows (N, S) float64; with a `SimulatorSpec.state_size` S above 0."""

    def load(self, source: np.ndarray) -> None:  # noqa: B027
        """Restore what `save` wrote."""

    def close(self) -> None:  # noqa: B027
        """Release the simulator."""
