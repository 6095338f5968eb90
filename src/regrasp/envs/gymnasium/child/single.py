"""Single environments, one per row and stepped one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from regrasp.envs.gymnasium.child.environments import Environments, Info, Stepped
from regrasp.envs.gymnasium.child.make import made
from regrasp.envs.gymnasium.child.options import EnvOptions
from regrasp.envs.process.seeds import seed31


class SingleEnvironments(Environments):
    """`gymnasium.make`, N times. An environment that has ended waits, so what it showed last is its final observation.

    The step limit is that of the block, in place of the registered one.

    Args:
        spec: Gymnasium's record of the environment.
        num_envs: N.
        options: Settings.

    Raises:
        UserError: It cannot be made.
    """

    seeds_each = True
    resets_each = True

    def __init__(self, spec: Any, num_envs: int, options: EnvOptions) -> None:
        render = {"render_mode": "rgb_array"} if options.renders else {}
        arguments = {"max_episode_steps": options.max_episode_steps, "disable_env_checker": True, **render}
        self._envs: list[gymnasium.Env[Any, Any]] = [
            made(options, lambda: gymnasium.make(spec, **arguments | dict(options.kwargs))) for _ in range(num_envs)
        ]
        self.observation_space = self._envs[0].observation_space
        self.action_space = self._envs[0].action_space
        self.metadata = self._envs[0].metadata

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> Mapping[int, Info]:
        """See `Environments.reset`."""
        infos = {}
        for row, seed in zip(rows, seeds, strict=True):
            observation, infos[row] = self._envs[row].reset(seed=seed31(seed))
            self._show(int(row), observation)
        return infos

    def step(self, actions: np.ndarray, running: np.ndarray) -> Stepped:
        """See `Environments.step`; the others are not stepped."""
        rewards, (terminated, truncated) = np.zeros(len(running), np.float32), np.zeros((2, len(running)), bool)
        infos = {}
        for row in np.flatnonzero(running).tolist():
            observation, reward, terminated[row], truncated[row], infos[row] = self._envs[row].step(actions[row])
            rewards[row] = reward
            self._show(row, observation)
        return Stepped(rewards, terminated, truncated, infos)

    def attribute(self, row: int, name: str) -> Any:
        """See `Environments.attribute`."""
        return self._envs[row].get_wrapper_attr(name)

    def frames(self, rows: Sequence[int]) -> Sequence[Any]:
        """See `Environments.frames`."""
        return [self._envs[row].render() for row in rows]

    def close(self) -> None:
        """See `Environments.close`."""
        for env in self._envs:
            env.close()
