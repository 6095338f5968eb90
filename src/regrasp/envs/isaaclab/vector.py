"""An Isaac Lab task as a `VecEnv` that notices a reward that never varies."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from regrasp.envs.contract import Step
from regrasp.envs.process.vector import RemoteVecEnv

_log = logging.getLogger(__name__)

_EPISODES = 2
"""Episodes per environment after which a reward that never varied is reported."""


class IsaacLabVecEnv(RemoteVecEnv):
    """See `RemoteVecEnv`; warns once when the first rollouts show a constant reward, with the likely cause."""

    _num_judged = 0
    _lowest = float("inf")
    _highest = float("-inf")

    def step(self, actions: Tensor) -> Step:
        """Execute a chunk, see `VecEnv.step`."""
        step = super().step(actions)
        if self._num_judged < self._num_needed:
            self._judge_rewards(step)
        return step

    @property
    def _num_needed(self) -> int:
        return _EPISODES * self.spec.num_envs * self.spec.max_episode_steps

    def _judge_rewards(self, step: Step) -> None:
        rewards = step.rewards[torch.arange(step.rewards.shape[1]) < step.num_executed[:, None]]
        if not len(rewards):
            return
        self._lowest = min(self._lowest, float(rewards.min()))
        self._highest = max(self._highest, float(rewards.max()))
        self._num_judged += len(rewards)
        if self._lowest < self._highest:
            self._num_judged = self._num_needed
        elif self._num_judged >= self._num_needed:
            doubts = "; ".join(self.spec.reward_doubts) or "the policy never reaches what the task rewards"
            _log.warning(
                "%s: every reward so far was %g, so there is nothing to learn from. Likely cause: %s.",
                self.spec.task_id,
                self._lowest,
                doubts,
            )
