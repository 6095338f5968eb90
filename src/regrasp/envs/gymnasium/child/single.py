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

AnyEnv = gymnasium.Env[Any, Any]


class SingleEnvironments(Environments):
    """`gymnasium.make`, N times. An environment that has ended waits, so what it showed last is its final observation.

    The step limit is that of the block, in place of the registered one. Where there are several tasks, the seed of an
    episode chooses its own, and rows share what was made of each: a row takes an environment that no row is using.

    Args:
        specs: Gymnasium's record of the environment of each task.
        num_envs: N.
        options: Settings.

    Raises:
        UserError: It cannot be made.
    """

    seeds_each = True
    resets_each = True

    def __init__(self, specs: Sequence[Any], num_envs: int, options: EnvOptions) -> None:
        self._specs = specs
        self._options = options
        self._idle: list[list[AnyEnv]] = [
            [self._made(task) for _ in range(-(-num_envs // len(specs)))] for task in range(len(specs))
        ]
        self._envs: list[AnyEnv | None] = [None] * num_envs
        self._tasks = [0] * num_envs
        self.offered = [(envs[0].observation_space, envs[0].action_space) for envs in self._idle]
        self.metadata = self._idle[0][0].metadata

    def _made(self, task: int) -> AnyEnv:
        options = self._options
        render = {"render_mode": "rgb_array"} if options.renders else {}
        own = options.tasks[task]["kwargs"] if options.tasks else {}
        arguments = {"max_episode_steps": options.max_episode_steps, "disable_env_checker": True, **render}
        arguments |= {**options.kwargs, **own}
        spec = self._specs[task]
        return made(options, lambda: gymnasium.make(spec, **arguments), spec.id, {**options.kwargs, **own})

    def task_of(self, row: int) -> int:
        """See `Environments.task_of`."""
        return self._tasks[row]

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> Mapping[int, Info]:
        """See `Environments.reset`."""
        for row in rows:
            env, self._envs[row] = self._envs[row], None
            if env is not None:
                self._idle[self._tasks[row]].append(env)
        infos = {}
        for row, seed in zip(rows, map(seed31, seeds), strict=True):
            task = self._tasks[row] = (seed >> 1) % len(self._specs)  # the lowest bit tells evaluation from training
            env = self._envs[row] = self._idle[task].pop() if self._idle[task] else self._made(task)
            observation, infos[row] = env.reset(seed=seed)
            self._show(int(row), observation)
        return infos

    def step(self, actions: np.ndarray, running: np.ndarray) -> Stepped:
        """See `Environments.step`; the others are not stepped."""
        rewards, (terminated, truncated) = np.zeros(len(running), np.float32), np.zeros((2, len(running)), bool)
        infos = {}
        for row in np.flatnonzero(running).tolist():
            observation, reward, terminated[row], truncated[row], infos[row] = self.of(row).step(actions[row])
            rewards[row] = reward
            self._show(row, observation)
        return Stepped(rewards, terminated, truncated, infos)

    def of(self, row: int) -> AnyEnv:
        """See `Environments.of`."""
        env = self._envs[row]
        assert env is not None, "an environment is reset before anything else"
        return env

    def attribute(self, row: int, name: str) -> Any:
        """See `Environments.attribute`."""
        return self.of(row).get_wrapper_attr(name)

    def frames(self, rows: Sequence[int]) -> Sequence[Any]:
        """See `Environments.frames`."""
        return [self.of(row).render() for row in rows]

    def close(self) -> None:
        """See `Environments.close`."""
        for env in (*self._envs, *(env for idle in self._idle for env in idle)):
            if env is not None:
                env.close()
