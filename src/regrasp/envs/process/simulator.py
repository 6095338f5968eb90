"""What a simulator offers inside its own process. Imports NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

OBSERVATION = "observation:"
INFO = "info:"

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class SimulatorSpec:
    """Sizes and abilities, told to the parent as JSON before any array exists."""

    task_id: str
    raw_observations: dict[str, tuple[tuple[int, ...], str]]
    """`group/key` to (shape of one environment, dtype name)."""
    action_dim: int
    instructions: tuple[str, ...]
    step_seconds: float
    max_episode_steps: int
    state_size: int
    """Number of float64 that hold one environment's complete state; 0 where it cannot be saved."""
    info: tuple[str, ...] = ()
    """Names of further float measures per environment."""
    has_expert: bool = False
    capabilities: dict[str, bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What the user should be warned of before the first episode."""
    reward_doubts: tuple[str, ...] = ()
    """What may be wrong if the reward turns out to be constant."""

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON types."""
        return asdict(self)


def spec_from_json(data: Mapping[str, Any]) -> SimulatorSpec:
    """The inverse of `SimulatorSpec.to_json`."""
    raw = {key: (tuple(shape), dtype) for key, (shape, dtype) in data["raw_observations"].items()}
    return SimulatorSpec(
        **{
            **data,
            "raw_observations": raw,
            "instructions": tuple(data["instructions"]),
            "info": tuple(data["info"]),
            "notes": tuple(data["notes"]),
            "reward_doubts": tuple(data["reward_doubts"]),
        }
    )


class Simulator(Protocol):
    """`num_envs` environments of one task, in one process.

    `attach` gives the shared arrays; only observations present there need to be computed. Arrays, each with a leading
    environment axis: `actions` (T, A) float32, `rewards` (T,) float32, `num_executed` int32,
    `terminated`, `truncated`, `success` bool, `instruction` int32, `expert_actions` (A,) float32, `state` float64,
    `observation:<group/key>` and `info:<name>`.
    """

    def describe(self) -> SimulatorSpec:
        """What this simulator offers."""
        ...

    def attach(self, arrays: Arrays) -> None:
        """Use these shared arrays from now on."""
        ...

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """Start an episode in each of `rows` and write its first observation."""
        ...

    def step(self, num_steps: int) -> None:
        """Execute the first `num_steps` of `actions` in every environment that is in an episode."""
        ...

    def expert(self) -> None:
        """Write `expert_actions` for the present states."""
        ...

    def record(self, rows: Sequence[int], frames: np.ndarray | None) -> None:
        """Write a frame per step of `rows` into `frames` (R, T, H, W, 3) from now on; None stops it."""
        ...

    def save_state(self) -> None:
        """Write every environment's state into `state`."""
        ...

    def load_state(self) -> None:
        """Restore every environment from `state` and write the present observations."""
        ...

    def close(self) -> None:
        """Release the simulator."""
        ...
