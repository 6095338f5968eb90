"""Environments that count, for tests of the Gymnasium adapter; importing this registers them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

FOREIGN = -1
"""What an episode shows as its seed that nobody asked for."""


def number() -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (1,), np.float64)


class Count(gymnasium.Env[Any, Any]):
    """Shows the seed of its episode, its step and how it ended; the seed says how long the episode is.

    Odd lengths are truncated, even ones terminated. Foreign episodes last for one step.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    instruction = "count"

    def __init__(self, render_mode: str | None = None, instruction: str = "count", action: str = "box") -> None:
        self.render_mode = render_mode
        self.instruction = instruction
        self.observation_space = spaces.Dict(
            {
                "episode": spaces.Dict({"seed": number(), "clock": number()}),
                "kind": spaces.Discrete(3, start=5),
                "action": spaces.Box(-np.inf, np.inf, (2,), np.float32),
                "camera": spaces.Box(0, 255, (4, 6, 3), np.uint8),
                "name": spaces.Text(5),
            }
        )
        self.action_space = {
            "box": spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32)),
            "unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
            "discrete": spaces.Discrete(3, start=2),
            "choices": spaces.MultiDiscrete([2, 3]),
            "flags": spaces.MultiBinary(2),
            "dict": spaces.Dict({"a": spaces.Discrete(2)}),
        }[action]
        self._action = np.zeros(2, np.float32)
        self._seed, self._clock = FOREIGN, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._seed, self._clock = FOREIGN if seed is None else seed % 100_000, 0
        return self._observation(), {"task": self._seed % 2}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._action = np.resize(np.asarray(action, np.float32), 2)
        self._clock += 1
        over = self._clock >= self.length(self._seed)
        terminates = self.length(self._seed) % 2 == 0
        reward = 1.0 if self._seed != FOREIGN else 1000.0
        info = {"won": np.bool_(terminates), "clock": self._clock} if over else {"clock": self._clock}
        return self._observation(), reward, over and terminates, over and not terminates, info

    def render(self) -> Any:
        return np.full((3, 5, 3), self._clock, np.uint8)

    @staticmethod
    def length(seed: int) -> int:
        return 1 if seed == FOREIGN else 2 + seed % 5

    def _observation(self) -> dict[str, Any]:
        return {
            "episode": {"seed": np.array([self._seed], float), "clock": np.array([self._clock], float)},
            "kind": np.int64(5 + self._clock % 3),
            "action": self._action.copy(),
            "camera": np.full((4, 6, 3), self._clock, np.uint8),
            "name": "count",
        }


def vector(num_envs: int, mode: str | None = "NextStep", **kwargs: Any) -> SyncVectorEnv:
    env = SyncVectorEnv(
        [lambda: Count(**kwargs)] * num_envs, autoreset_mode=AutoresetMode(mode or "NextStep"), observation_mode="same"
    )
    if mode is None:
        del env.metadata["autoreset_mode"]
    return env


class Forgetful(Count):
    """Ignores the seed of a reset."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed)
        observation["kind"] = np.int64(5 + Forgetful.resets % 3)
        Forgetful.resets += 1
        return observation, info

    resets = 0


class Blind(Count):
    """Cannot be rendered."""

    metadata = {"render_modes": ["human"]}  # noqa: RUF012


def counting_expert(env: gymnasium.Env[Any, Any]) -> Any:
    """Acts by the steps since it was made for the episode, and by what it sees."""
    steps = 0

    def act(observation: Any) -> Any:
        nonlocal steps
        steps += 1
        seen = float(observation["episode"]["clock"][0])
        assert seen == steps - 1, "an expert of another episode"
        space: Any = env.action_space
        return np.array([steps, 9.0]) if isinstance(space, spaces.Box) else space.start + steps % 2

    return act


def failing_expert(env: gymnasium.Env[Any, Any]) -> Any:
    return lambda observation: observation["no such key"]


def broken(**kwargs: Any) -> Count:
    raise RuntimeError("no licence for the arm")


def single(**kwargs: Any) -> Count:
    return Count(**kwargs)


def needy(**kwargs: Any) -> Count:
    raise gymnasium.error.DependencyNotInstalled("box2d is not installed")


class Unlit(Count):
    """Lacks a package that only drawing needs."""

    def render(self) -> Any:
        raise gymnasium.error.DependencyNotInstalled("pygame is not installed")


gymnasium.register("Needy-v0", needy)
gymnasium.register("Unlit-v0", lambda **kwargs: Unlit(**kwargs))
gymnasium.register("Count-v0", single)
gymnasium.register("CountVector-v0", vector_entry_point=vector)
gymnasium.register("CountBoth-v0", single, vector_entry_point=vector)
gymnasium.register("Broken-v0", broken)
gymnasium.register("Forgetful-v0", lambda **kwargs: Forgetful(**kwargs))
gymnasium.register("Blind-v0", lambda **kwargs: Blind(**kwargs))
