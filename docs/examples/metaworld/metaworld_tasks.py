"""Meta-World's tasks for Regrasp: episodes that depend on their seed alone, quick images, and the scripted experts.

Importing this registers `MetaWorldTask-v0`. It runs in the Python that has Meta-World, beside Regrasp's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import mujoco
import numpy as np
from metaworld.policies import ENV_POLICY_MAP

import metaworld  # noqa: F401  (registers its environments)

_RENDERERS: dict[tuple[str, int, int], mujoco.Renderer] = {}
"""A task's environments share one: what it holds of the model (meshes, textures) is the same in all of them."""


class MetaWorldTask(gymnasium.Wrapper[Any, Any, Any, Any]):
    """One task with its goal in the observation, and reward 1 for success, which ends the episode.

    Meta-World ignores the seed of a reset, and draws object and goal once, when it is made. Here every reset draws them
    from its seed. Its images are rendered without shadows and multisampling, which on a CPU take ten times as long.
    """

    def __init__(self, task: str, width: int = 84, height: int = 84, camera: str = "corner2", **kwargs: Any) -> None:
        """Make the task of this name, `drawer-open-v3`; `kwargs` may hold the render mode, which is rgb_array."""
        super().__init__(gymnasium.make("Meta-World/goal_observable", env_name=task, seed=0, disable_env_checker=True))
        self.task = task
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 80}
        self._size, self._camera = (height, width), camera

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the episode of a seed."""
        raw: Any = self.unwrapped
        if seed is not None:
            raw.seed(seed)
        raw.seeded_rand_vec, raw._freeze_rand_vec = True, False
        return self.env.reset()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Execute an action: x, y, z of the hand, and the gripper."""
        observation, _, _, truncated, info = self.env.step(action)
        success = bool(info["success"])
        return observation, float(success), success, truncated, info

    def render(self) -> np.ndarray:
        """The camera's image (H, W, 3) uint8."""
        raw: Any = self.unwrapped
        key = (self.task, *self._size)
        if key not in _RENDERERS:
            raw.model.vis.quality.shadowsize = raw.model.vis.quality.offsamples = 0
            _RENDERERS[key] = mujoco.Renderer(raw.model, *self._size)
        renderer, camera = _RENDERERS[key], mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = raw.model.camera(self._camera).id
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(raw.model, raw.data, mujoco.MjvOption(), None, camera, everything, renderer.scene)
        return renderer.render()


def expert(env: gymnasium.Env[Any, Any]) -> Callable[[Any], Any]:
    """Meta-World's scripted policy of the environment's task."""
    return ENV_POLICY_MAP[env.get_wrapper_attr("task")]().get_action


gymnasium.register("MetaWorldTask-v0", MetaWorldTask, max_episode_steps=500)
