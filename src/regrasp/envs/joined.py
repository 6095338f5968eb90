"""Several vector environments as one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from regrasp.envs.contract import Observation, Step, VecEnv


class JoinedVecEnv(VecEnv):
    """The environments of several `VecEnv` of one task, numbered one after the other.

    Args:
        parts: At least one; they offer the same.
    """

    def __init__(self, parts: Sequence[VecEnv]) -> None:
        self._parts = parts
        counts = [part.spec.num_envs for part in parts]
        ends = list(itertools.accumulate(counts))
        self._slices = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        self.spec = dataclasses.replace(parts[0].spec, num_envs=ends[-1])
        self.capabilities = parts[0].capabilities
        self._observations: list[Observation | None] = [None] * len(parts)

    def reset(self, env_ids: Sequence[int], seeds: Sequence[int]) -> Observation:
        """See `VecEnv.reset`; a part without a new episode is not asked."""
        for number, (part, own) in enumerate(zip(self._parts, self._slices, strict=True)):
            chosen = [(i - own.start, s) for i, s in zip(env_ids, seeds, strict=True) if own.start <= i < own.stop]
            if chosen or self._observations[number] is None:
                self._observations[number] = part.reset([i for i, _ in chosen], [s for _, s in chosen])
        return self._observed()

    def step(self, actions: Tensor) -> Step:
        """See `VecEnv.step`."""
        self.begin_step(actions)
        return self.end_step()

    def begin_step(self, actions: Tensor) -> None:
        """Begin a chunk in all parts, see `VecEnv.begin_step`."""
        for part, own in zip(self._parts, self._slices, strict=True):
            part.begin_step(actions[own])

    def end_step(self) -> Step:
        """Wait for all parts, see `VecEnv.end_step`."""
        steps = [part.end_step() for part in self._parts]
        self._observations = [step.observation for step in steps]
        tensors = ("rewards", "num_executed", "terminated", "truncated", "success")
        frames = [step.frames for step in steps if step.frames is not None]
        return Step(
            observation=self._observed(),
            frames=torch.cat(frames) if frames else None,
            info={name: torch.cat([step.info[name] for step in steps]) for name in steps[0].info},
            **{name: torch.cat([getattr(step, name) for step in steps]) for name in tensors},
        )

    def expert_actions(self) -> Tensor:
        """See `VecEnv.expert_actions`."""
        return torch.cat([part.expert_actions() for part in self._parts])

    def share_vectors(self) -> None:
        """See `VecEnv.share_vectors`."""
        for part in self._parts:
            part.share_vectors()

    def raw_observation(self) -> dict[str, Tensor]:
        """See `VecEnv.raw_observation`."""
        found = [part.raw_observation() for part in self._parts]
        return {key: torch.cat([own[key] for own in found]) for key in found[0]}

    def record(self, env_ids: Sequence[int], height: int = 256, width: int = 256) -> None:
        """See `VecEnv.record`."""
        for part, own in zip(self._parts, self._slices, strict=True):
            part.record([i - own.start for i in env_ids if own.start <= i < own.stop], height, width)

    def state_dict(self) -> dict[str, Tensor]:
        """See `VecEnv.state_dict`."""
        states = [part.state_dict() for part in self._parts]
        return {name: torch.cat([state[name] for state in states]) for name in states[0]}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Observation:
        """See `VecEnv.load_state_dict`."""
        for number, (part, own) in enumerate(zip(self._parts, self._slices, strict=True)):
            self._observations[number] = part.load_state_dict({name: values[own] for name, values in state.items()})
        return self._observed()

    def close(self, deadline: float = 10.0) -> None:
        """See `VecEnv.close`."""
        for part in self._parts:
            part.close(deadline)

    def _observed(self) -> Observation:
        """What all parts showed last."""
        known = [observation for observation in self._observations if observation is not None]
        return Observation(
            images={name: torch.cat([own.images[name] for own in known]) for name in known[0].images},
            state={name: torch.cat([own.state[name] for own in known]) for name in known[0].state},
            instruction=[sentence for own in known for sentence in own.instruction],
        )
