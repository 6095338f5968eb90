"""What a simulator offers inside its own process. Imports NumPy only, from outside this package."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from regrasp.envs.quaternions import QUATERNION_ORDERS, QuaternionOrder
from regrasp.errors import UserError

_DTYPES = (
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
)
"""What an observation may be of: numbers, whose bytes mean the same in every process."""
_CAPABILITIES = frozenset({"seed_per_env", "partial_reset", "true_final_observation"})
RESERVED_MEASURES = frozenset(
    {"success_once", "return", "episode_len", "reward", "num_trajectories", "total_steps"}
    | {"episode", "seed", "instruction", "success", "total_reward", "length"}
)
"""What no measure of a task may be called: metrics that every task has, and what is kept of each episode."""


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
    tells_success: bool = True
    """Whether the task has a success signal; without one, results show the return alone."""
    has_expert: bool = False
    grippers: tuple[int, ...] = ()
    """Dimensions of the action that open and close a gripper: demonstrations have no noise on them."""
    hold_last_action: bool = False
    """Until its reset, an ended environment is told its last action (right for absolute targets), else zeros (right for
    relative commands)."""
    capabilities: dict[str, bool] = field(default_factory=dict)
    quaternions: QuaternionOrder | None = None
    """In which order a rotation's values stand, None where the simulator does not tell."""
    notes: tuple[str, ...] = ()
    """What the user should be warned of before the first episode."""
    reward_doubts: tuple[str, ...] = ()
    """What may be wrong if the reward turns out to be constant."""

    def __post_init__(self) -> None:
        """Check what another's code says, before memory is laid out by it; pairs of shape and dtype may be plain."""
        try:
            raw = {key: ArraySpec(tuple(shape), dtype) for key, (shape, dtype) in self.raw_observations.items()}
        except (TypeError, ValueError, AttributeError):
            raise _impossible("raw_observations", self.raw_observations, "{group/key: (shape, dtype)}") from None
        for key, (shape, dtype) in raw.items():
            if not all(_is_count(side, 1) for side in shape):
                raise _impossible(f"raw_observations['{key}'].shape", shape, "whole numbers of at least 1")
            if dtype not in _DTYPES:
                raise _impossible(f"raw_observations['{key}'].dtype", dtype, f"one of {', '.join(_DTYPES)}")
        object.__setattr__(self, "raw_observations", raw)
        for name, least in (("action_dim", 1), ("max_episode_steps", 1), ("state_size", 0)):
            if not _is_count(value := getattr(self, name), least):
                raise _impossible(name, value, f"a whole number of at least {least}")
        if not (isinstance(self.step_seconds, float | int) and 0 < self.step_seconds < math.inf):
            raise _impossible("step_seconds", self.step_seconds, "a number above 0")
        for name in ("instructions", "info", "notes", "reward_doubts"):
            value = getattr(self, name)
            if not (isinstance(value, tuple) and all(isinstance(text, str) for text in value)):
                raise _impossible(name, value, "a tuple of texts")
        if not (
            isinstance(self.grippers, tuple)
            and all(_is_count(index, 0) and index < self.action_dim for index in self.grippers)
        ):
            raise _impossible("grippers", self.grippers, f"a tuple of numbers from 0 to {self.action_dim - 1}")
        if self.quaternions not in (None, *QUATERNION_ORDERS):
            raise _impossible("quaternions", self.quaternions, f"None, or one of {', '.join(QUATERNION_ORDERS)}")
        if not self.instructions:
            raise _impossible("instructions", self.instructions, "at least one; ('',) for a task without words")
        if taken := sorted(RESERVED_MEASURES.intersection(self.info)):
            raise _impossible("info", taken[0], f"another name than {', '.join(sorted(RESERVED_MEASURES))}")
        if len(set(self.info)) < len(self.info):
            raise _impossible("info", self.info, "each name once")
        known = self.capabilities.keys() <= _CAPABILITIES and all(
            type(has) is bool for has in self.capabilities.values()
        )
        if not known:
            raise _impossible(
                "capabilities", self.capabilities, f"true or false for {', '.join(sorted(_CAPABILITIES))}"
            )


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _impossible(key: str, value: Any, expected: str) -> UserError:
    fix = "correct describe() of the simulator, or of the task it runs"
    return UserError("A simulator describes itself as none can be", key=key, value=value, expected=expected, fix=fix)


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
