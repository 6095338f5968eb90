"""The contract every environment keeps: N environments stepped together, one action chunk at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regrasp.envs.selection import ArraySpec


@dataclass(frozen=True)
class EnvSpec:
    """What a vector environment offers, known before the first reset."""

    task_id: str
    num_envs: int
    raw_observations: Mapping[str, ArraySpec]
    """Every observation of the simulator, by `group/key`."""
    action_dim: int
    """Width of the simulator's action, after the action mapping."""
    instructions: tuple[str, ...]
    """Every instruction an episode can carry, for tables by instruction."""
    step_seconds: float
    """Simulated seconds per environment step."""
    max_episode_steps: int
    """An episode is truncated after this many environment steps."""
    state_dim: int
    """Width of `Observation.states`."""
    num_extra_views: int
    """Number of cameras in `Observation.extra_view_images`."""


@dataclass(frozen=True)
class Capabilities:
    """Which guarantees the simulator can give; a run names what it loses by a False."""

    seed_per_env: bool = True
    partial_reset: bool = True
    true_final_observation: bool = True
    saves_state: bool = True
    has_expert: bool = False


@dataclass
class Observation:
    """Policy inputs for B environments, under the reference's names."""

    main_images: Tensor
    """(B, H, W, 3) uint8."""
    states: Tensor
    """(B, D) float32."""
    task_descriptions: list[str]
    """B instructions."""
    extra_view_images: Tensor | None = None
    """(B, V, H, W, 3) uint8, or None without extra cameras."""

    def __len__(self) -> int:
        return len(self.task_descriptions)

    def rows(self, index: Sequence[int] | Tensor) -> Observation:
        """The observation of the environments in `index` (copies)."""
        rows = _as_rows(index)
        return Observation(
            main_images=self.main_images[rows],
            states=self.states[rows],
            task_descriptions=[self.task_descriptions[i] for i in rows.tolist()],
            extra_view_images=None if self.extra_view_images is None else self.extra_view_images[rows],
        )

    def updated(self, index: Sequence[int], fresh: Observation) -> Observation:
        """A copy in which the rows `index` are replaced by those of `fresh`."""
        merged = self.rows(range(len(self)))
        rows = _as_rows(index)
        assert len(rows) == len(fresh)
        merged.main_images[rows] = fresh.main_images
        merged.states[rows] = fresh.states
        if merged.extra_view_images is not None and fresh.extra_view_images is not None:
            merged.extra_view_images[rows] = fresh.extra_view_images
        for row, text in zip(rows.tolist(), fresh.task_descriptions, strict=True):
            merged.task_descriptions[row] = text
        return merged


def _as_rows(index: Sequence[int] | Tensor) -> Tensor:
    assert not (isinstance(index, Tensor) and index.dtype == torch.bool), "row numbers, not a mask"
    return torch.as_tensor(index, dtype=torch.long)


@dataclass
class Step:
    """What one chunk of T actions did to N environments.

    An environment that ends inside the chunk stops there: `observation` is its true final one and later rewards are 0.
    An environment that had ended before the chunk executes nothing (`num_executed` 0, flags False).
    """

    observation: Observation
    rewards: Tensor
    """(N, T) float32, one reward per executed environment step, 0 after the end."""
    num_executed: Tensor
    """(N,) int64, environment steps executed of this chunk."""
    terminated: Tensor
    """(N,) bool, the task ended the episode in this chunk."""
    truncated: Tensor
    """(N,) bool, the step limit ended the episode in this chunk."""
    success: Tensor
    """(N,) bool, the task's success signal was seen in this chunk."""
    frames: Tensor | None = None
    """(R, T, H, W, 3) uint8, one frame per step of the R recorded environments; rows past `num_executed` are stale."""
    info: dict[str, Tensor] = field(default_factory=dict)
    """Further per-environment task measures, each (N,) float32 (for example the stage reached)."""

    @property
    def done(self) -> Tensor:
        """(N,) bool, the episode ended in this chunk."""
        return self.terminated | self.truncated


class VecEnv(ABC):
    """N environments that share one task and are stepped together.

    An environment stays ended until `reset` is called for it, so no action planned for one episode is ever credited
    in the next and there is no "final observation" special case.
    """

    spec: EnvSpec
    capabilities: Capabilities

    @abstractmethod
    def reset(self, env_ids: Sequence[int], seeds: Sequence[int]) -> Observation:
        """Start one episode per given environment; `seeds` fixes everything random in it.

        Returns:
            The first observation of the given environments, in the order given.
        """

    @abstractmethod
    def step(self, actions: Tensor) -> Step:
        """Execute a chunk: `actions` is (N, T, A) float32 in the simulator's action space."""

    @abstractmethod
    def expert_actions(self) -> Tensor:
        """The scripted expert's action for each environment's present state, (N, A); only where `has_expert`."""

    @abstractmethod
    def share_vectors(self) -> None:
        """Have the simulator deliver every observation that is no image, from the next `reset` on."""

    @abstractmethod
    def raw_observation(self) -> dict[str, Tensor]:
        """The present observations by `group/key`, (N, ...) each.

        Those that the mapping names; after `share_vectors` also all others that are no images.
        """

    @abstractmethod
    def record(self, env_ids: Sequence[int], height: int = 256, width: int = 256) -> None:
        """Ask for a video frame per step of these environments from now on; an empty list stops it."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to continue every environment bit for bit; only where `saves_state`."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> Observation:
        """Restore what `state_dict` returned and give the present observation of all environments."""

    @abstractmethod
    def close(self, deadline: float = 10.0) -> None:
        """Stop the simulator's processes within `deadline` seconds, by force if need be."""
