"""Environments that cost next to nothing and an MLP policy: what is left is what a loop around them costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from regrasp.envs.config import EnvConfig, EnvName
from regrasp.envs.contract import Capabilities, EnvSpec, Observation, Step, VecEnv
from regrasp.experiment import ExperimentConfig
from regrasp.models.mlp.policy import MlpPolicy

STATE_DIM = 42
ACTION_DIM = 8
LIMIT = 50
"""Steps of an episode."""
HIDDEN = (256, 256, 256)


class TrivialEnv(VecEnv):
    """The state is moved by the action; an action near it is rewarded, and only the step limit ends an episode."""

    capabilities = Capabilities()

    def __init__(self, num_envs: int) -> None:
        self.spec = EnvSpec(
            task_id="Trivial-v0",
            num_envs=num_envs,
            raw_observations={},
            action_dim=ACTION_DIM,
            instructions=("",),
            step_seconds=0.1,
            max_episode_steps=LIMIT,
            state_dim=STATE_DIM,
            cameras=(),
        )
        self.place = torch.zeros(num_envs, STATE_DIM)
        self.steps = torch.zeros(num_envs, dtype=torch.long)
        self.running = torch.zeros(num_envs, dtype=torch.bool)
        self._sentences = [""] * num_envs

    def reset(self, env_ids: Sequence[int], seeds: Sequence[int]) -> Observation:
        """See `VecEnv.reset`."""
        rows = torch.tensor(env_ids)
        generator = torch.Generator().manual_seed(seeds[0])
        self.place[rows] = torch.randn(len(rows), STATE_DIM, generator=generator)
        self.steps[rows] = 0
        self.running[rows] = True
        return self._observe()

    def step(self, actions: Tensor) -> Step:
        """See `VecEnv.step`."""
        action = actions[:, 0]
        rewards = (-(action - self.place[:, :ACTION_DIM]).square().mean(1) * self.running)[:, None]
        self.place[:, :ACTION_DIM] += 0.1 * action * self.running[:, None]
        self.steps += self.running
        executed = self.running.long()
        truncated = self.running & (self.steps >= LIMIT)
        self.running &= ~truncated
        never = torch.zeros_like(truncated)
        return Step(self._observe(), rewards, executed, never, truncated, never)

    def _observe(self) -> Observation:
        return Observation({}, {"state": self.place.clone()}, self._sentences)

    def state_dict(self) -> dict[str, Tensor]:
        """See `VecEnv.state_dict`."""
        return {name: getattr(self, name).clone() for name in ("place", "steps", "running")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Observation:
        """See `VecEnv.load_state_dict`."""
        for name, value in state.items():
            getattr(self, name).copy_(value)
        return self._observe()

    def record(self, env_ids: Sequence[int], height: int = 256, width: int = 256) -> None:
        """Nothing records it."""
        raise NotImplementedError

    def close(self, deadline: float = 10.0) -> None:
        """Nothing runs."""


def create_env(block: EnvConfig, name: EnvName, max_chunk: int, seed: int) -> TrivialEnv:
    """As `envs.registry.create_env`, in a process of its own."""
    return TrivialEnv(block.total_num_envs)


def create_policy(config: ExperimentConfig, train: EnvSpec, evaluation: EnvSpec | None) -> MlpPolicy:
    """The policy of `config` for these environments."""
    return MlpPolicy(state_dim=train.state_dim, action_dim=train.action_dim, hidden=config.actor.model.mlp.hidden)
