"""An Isaac Lab task as a `VecEnv` that notices a reward that never varies."""

from __future__ import annotations

import logging

import torch

from regrasp.envs.contract import Step
from regrasp.envs.process.vector import RemoteVecEnv

_log = logging.getLogger(__name__)

_EPISODES = 2
"""Episodes per environment after which a reward that never varied is reported."""


class IsaacLabVecEnv(RemoteVecEnv):
    """See `RemoteVecEnv`; warns once when the first rollouts show a constant reward, with the likely cause."""

    _num_judged = 0
    _seen: frozenset[float] = frozenset()
    """Up to two different rewards."""

    def end_step(self) -> Step:
        """Wait for a chunk, see `VecEnv.end_step`."""
        step = super().end_step()
        enough = _EPISODES * self.spec.num_envs * self.spec.max_episode_steps
        if self._num_judged < enough and len(self._seen) < 2:
            rewards = step.rewards[torch.arange(step.rewards.shape[1]) < step.num_executed[:, None]]
            self._seen |= set(rewards.unique()[:2].tolist())
            self._num_judged += len(rewards)
            if self._num_judged >= enough and len(self._seen) == 1:
                doubts = "; ".join(self.spec.reward_doubts) or "the policy never reaches what the task rewards"
                _log.warning(
                    "%s: every reward so far was %g, so there is nothing to learn from. Likely cause: %s.",
                    self.spec.task_id,
                    *self._seen,
                    doubts,
                )
        return step
