"""The contract every environment keeps: N environments stepped together, one action chunk at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from regrasp.envs.process.simulator import ArraySpec, SimulatorSpec
from regrasp.envs.selection import STATE, numbered_cameras

__all__ = ["STATE", "ArraySpec", "Capabilities", "EnvSpec", "Observation", "Step", "VecEnv", "numbered_cameras"]


@dataclass(frozen=True, kw_only=True)
class EnvSpec(SimulatorSpec):
    """What a vector environment offers, known before the first reset."""

    num_envs: int
    state_dim: int
    """Width of the whole state vector."""
    cameras: tuple[str, ...]
    """Names of `Observation.images`."""


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
    """What B environments show to a policy, under the names that `envs/selection.py` gives to it.

    Images are views of the simulator's memory, which the next `reset` or `step` overwrites: `clone` what is to outlast
    it.
    """

    images: dict[str, Tensor]
    """(B, H, W, 3) uint8 by camera."""
    state: dict[str, Tensor]
    """(B, D) float32 by key; `state` is the whole vector, and names that the mapping gives are parts of it."""
    instruction: list[str]
    """B sentences."""

    def __len__(self) -> int:
        return len(self.instruction)

    def rows(self, index: Sequence[int] | Tensor) -> Observation:
        """The observation of the environments in `index`; consecutive ones share memory with this observation."""
        assert not (isinstance(index, Tensor) and index.dtype == torch.bool), "row numbers, not a mask"
        rows = torch.as_tensor(index, dtype=torch.long).tolist()
        consecutive = rows == list(range(rows[0], rows[0] + len(rows))) if rows else True
        part = slice(rows[0], rows[0] + len(rows)) if rows and consecutive else rows
        return replace(self.map(lambda values: values[part]), instruction=[self.instruction[row] for row in rows])

    def clone(self) -> Observation:
        """A copy in memory of its own."""
        return self.map(Tensor.clone)

    def map(self, function: Callable[[Tensor], Tensor]) -> Observation:
        """The observation with `function` of every tensor."""
        images, state = (
            {name: function(values) for name, values in part.items()} for part in (self.images, self.state)
        )
        return Observation(images, state, self.instruction)


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
    """(R, T, H, W, 3) uint8, one frame per step of the R recorded environments; rows past `num_executed` are stale.

    A view of the simulator's memory, as images are.
    """
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
            The present observation of all environments: of those given the first one of their episode.
        """

    @abstractmethod
    def step(self, actions: Tensor) -> Step:
        """Execute a chunk: `actions` is (N, T, A) float32 in the simulator's action space."""

    def begin_step(self, actions: Tensor) -> None:
        """Begin what `step` does; `end_step` waits for it, and others may be at work in between.

        Without a method of its own, the simulator is at work in `end_step`.
        """
        self._begun = actions

    def end_step(self) -> Step:
        """The step begun last."""
        return self.step(self._begun)

    def expert_actions(self) -> Tensor:
        """The scripted expert's action for each environment's present state, (N, A); only where `has_expert`."""
        raise NotImplementedError

    def share_vectors(self) -> None:
        """Have the simulator deliver every observation that is no image, from the next `reset` on.

        This, `expert_actions` and `raw_observation` are there where demonstrations can be recorded or a script can act.
        """
        raise NotImplementedError

    def raw_observation(self) -> dict[str, Tensor]:
        """The present observations by `group/key`, (N, ...) each.

        Those that the mapping names; after `share_vectors` also all others that are no images.
        """
        raise NotImplementedError

    @abstractmethod
    def record(self, env_ids: Sequence[int], height: int = 256, width: int = 256) -> None:
        """Ask for a video frame per step of these environments from now on; an empty list stops it."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to continue every environment bit for bit; only where `saves_state`."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> Observation:
        """Restore what `state_dict` returned and give the present observation of all environments."""

    def restart(self) -> None:  # noqa: B027
        """Start the simulator's processes anew, also where one has died; nothing of their episodes is left.

        Environments that have none are put back by `reset` and `load_state_dict` alone.

        Raises:
            SimulatorError: They do not start.
        """

    @abstractmethod
    def close(self, deadline: float = 10.0) -> None:
        """Stop the simulator's processes within `deadline` seconds, by force if need be."""
