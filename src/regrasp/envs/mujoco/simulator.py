"""MuJoCo environments of one worker process: one model and renderer, one `MjData` per environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np

from regrasp.envs.chunk import ChunkedSimulator, Outcome
from regrasp.envs.mujoco.catalog import TASK_IDS, TASK_OPTIONS, load_class
from regrasp.envs.mujoco.renderer import Renderer
from regrasp.envs.mujoco.task import Task
from regrasp.envs.process.simulator import Simulator, SimulatorSpec

CAMERA_GROUP = "camera_images/"
VECTOR_GROUP = "policy/"
_PHYSICS_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


def create(
    task_id: str,
    num_envs: int,
    max_episode_steps: int,
    *,
    ignore_terminations: bool,
    task_options: Mapping[str, Any] | None = None,
) -> Simulator:
    """The factory that worker processes call."""
    inner = MujocoSimulator(create_task(task_id, task_options), num_envs, max_episode_steps)
    return ChunkedSimulator(inner, num_envs, ignore_terminations=ignore_terminations)


def create_task(task_id: str, options: Mapping[str, Any] | None = None) -> Task:
    """One of the tasks of the catalog, with its checked options (None: their defaults)."""
    task = load_class(TASK_IDS[task_id])
    if task_id not in TASK_OPTIONS:
        assert not options, "checked before the workers start"
        return task()
    return task(load_class(TASK_OPTIONS[task_id])(**(options or {})))


def describe_task(task: Task, max_episode_steps: int) -> SimulatorSpec:
    """What the simulator of a task offers."""
    raw: dict[str, tuple[tuple[int, ...], str]] = {
        CAMERA_GROUP + camera.name: ((camera.height, camera.width, 3), "uint8") for camera in task.cameras
    }
    raw |= {VECTOR_GROUP + name: ((width,), "float32") for name, width in task.vectors.items()}
    return SimulatorSpec(
        task_id=task.task_id,
        raw_observations=raw,
        action_dim=task.action_dim,
        instructions=task.instructions,
        step_seconds=task.step_seconds,
        max_episode_steps=max_episode_steps,
        state_size=mujoco.mj_stateSize(task.model, _PHYSICS_STATE) + task.episode_size,
        info=task.info,
        has_expert=task.has_expert,
    )


class MujocoSimulator:
    """A `SingleStepSimulator` over one task."""

    def __init__(self, task: Task, num_envs: int, max_episode_steps: int) -> None:
        self._task = task
        self._limit = max_episode_steps
        self._data = [mujoco.MjData(task.model) for _ in range(num_envs)]
        self._episodes = np.zeros((num_envs, task.episode_size))
        self._renderers: dict[tuple[int, int], Renderer] = {}
        self._physics_size = mujoco.mj_stateSize(task.model, _PHYSICS_STATE)

    def describe(self) -> SimulatorSpec:
        """Sizes of the task."""
        return describe_task(self._task, self._limit)

    def begin(self, row: int, seed: int) -> int:
        """Start an episode."""
        return self._task.reset(self._data[row], self._episodes[row], np.random.default_rng(seed))

    def advance(self, row: int, action: np.ndarray) -> Outcome:
        """One control step."""
        task, data, episode = self._task, self._data[row], self._episodes[row]
        task.actuate(data, episode, action)
        mujoco.mj_step(task.model, data, task.physics_steps)
        _update_positions(task.model, data)
        return task.outcome(data, episode)

    def observe(self, row: int, targets: Mapping[str, np.ndarray]) -> None:
        """Render the cameras asked for and copy the vectors."""
        data = self._data[row]
        vectors = self._task.observe(data, self._episodes[row])
        for key, target in targets.items():
            if key.startswith(CAMERA_GROUP):
                self._render(data, key.removeprefix(CAMERA_GROUP), target)
            else:
                target[:] = vectors[key.removeprefix(VECTOR_GROUP)]

    def frame(self, row: int, target: np.ndarray) -> None:
        """The video camera at the size of `target`."""
        self._render(self._data[row], self._task.video_camera, target)

    def expert(self, row: int) -> np.ndarray:
        """The task's expert."""
        return self._task.expert(self._data[row], self._episodes[row])

    def save(self, row: int, target: np.ndarray) -> None:
        """Physics, then the episode's own variables."""
        physics = np.empty(self._physics_size)
        mujoco.mj_getState(self._task.model, self._data[row], physics, _PHYSICS_STATE)
        target[: self._physics_size] = physics
        target[self._physics_size :] = self._episodes[row]

    def load(self, row: int, source: np.ndarray) -> None:
        """Restore what `save` wrote."""
        mujoco.mj_setState(self._task.model, self._data[row], source[: self._physics_size].copy(), _PHYSICS_STATE)
        mujoco.mj_forward(self._task.model, self._data[row])
        self._episodes[row] = source[self._physics_size :]

    def close(self) -> None:
        """Free the graphics contexts."""
        for renderer in self._renderers.values():
            renderer.close()

    def _render(self, data: mujoco.MjData, camera: str, target: np.ndarray) -> None:
        size = (target.shape[0], target.shape[1])
        if size not in self._renderers:
            self._renderers[size] = Renderer(self._task.model, *size)
        self._renderers[size].render(data, camera, target)


def _update_positions(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Body, camera and light poses of the present joint positions: `mj_step` leaves those before its integration."""
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)
