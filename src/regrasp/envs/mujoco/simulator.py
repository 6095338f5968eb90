"""MuJoCo environments of one worker process: one model and renderer, one `MjData` per environment."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import mujoco
import numpy as np

from regrasp.envs.mujoco.catalog import extend_search, task_class
from regrasp.envs.mujoco.renderer import Renderer
from regrasp.envs.mujoco.task import Task
from regrasp.envs.process.simulator import ArraySpec, Outcome, Simulator, SimulatorSpec
from regrasp.errors import UserError

CAMERA_GROUP = "camera_images/"
VECTOR_GROUP = "policy/"
_PHYSICS_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


def create(
    task_id: str,
    num_envs: int,
    max_episode_steps: int,
    *,
    task_options: Mapping[str, Any] | None = None,
    location: str = "env.train",
    search_path: Sequence[str] = (),
) -> MujocoSimulator:
    """The factory that worker processes call; `search_path` has the folders in which the parent finds tasks."""
    extend_search(search_path)
    task = create_task(task_id, task_options, key=f"{location}.init_params.id")
    return MujocoSimulator(task, num_envs, max_episode_steps)


def create_task(
    task_id: str, options: Mapping[str, Any] | None = None, *, key: str = "env.train.init_params.id"
) -> Task:
    """A task, with its checked options (None: their defaults).

    Args:
        task_id: Its id, or its place.
        options: See above.
        key: Where the id is given, for errors.

    Raises:
        UserError: It is unknown, or fails or lacks something when it is created.
    """
    found = task_class(task_id, key)
    arguments = () if found.options_type is None else (found.options_type(**(options or {})),)
    assert found.options_type or not options, "checked before the workers start"
    fix = f"correct the class {found.__qualname__} in {found.__module__} (docs/tasks.md)"
    try:
        task = found(*arguments)
    except UserError:
        raise
    except Exception as error:
        problem = f"{task_id} cannot be created: {type(error).__name__}: {error}"
        raise UserError(problem, key=key, value=task_id, expected="a class that can be created", fix=fix) from error
    task.task_id = task_id
    if problem := _problem_of(task):
        raise UserError(problem, key=key, value=task_id, expected="a complete task", fix=fix)
    return task


def _problem_of(task: Task) -> str | None:
    """What a task lacks that every simulation of it needs; None where it is complete."""
    needed = [name for name in inspect.get_annotations(Task) if not hasattr(Task, name)]
    if missing := [name for name in needed if not hasattr(task, name)]:
        return f"{task.task_id} does not say its {', '.join(missing)}"
    cameras = [task.video_camera, *(camera.name for camera in task.cameras)]
    known = [task.model.camera(index).name for index in range(task.model.ncam)]
    if unknown := [name for name in cameras if name not in known]:
        return f"The model of {task.task_id} has no camera '{unknown[0]}'; it has {', '.join(known) or 'none'}"
    return None


def describe_task(task: Task, max_episode_steps: int) -> SimulatorSpec:
    """What the simulator of a task offers."""
    raw = {CAMERA_GROUP + camera.name: ArraySpec((camera.height, camera.width, 3), "uint8") for camera in task.cameras}
    raw |= {VECTOR_GROUP + name: ArraySpec((width,), "float32") for name, width in task.vectors.items()}
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
        grippers=task.grippers,
    )


class MujocoSimulator(Simulator):
    """Environments of one task, stepped one after the other."""

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

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> list[int]:
        """Start episodes."""
        return [
            self._task.reset(self._data[row], self._episodes[row], np.random.default_rng(seed))
            for row, seed in zip(rows, seeds, strict=True)
        ]

    def advance(self, actions: np.ndarray, running: np.ndarray) -> Outcome:
        """One control step of the running rows."""
        task, count = self._task, len(self._data)
        rewards, (terminated, truncated, success) = np.zeros(count, np.float32), np.zeros((3, count), bool)
        info = {name: np.zeros(count, np.float32) for name in task.info}
        for row in np.flatnonzero(running):
            data, episode = self._data[row], self._episodes[row]
            task.actuate(data, episode, actions[row])
            mujoco.mj_step(task.model, data, task.physics_steps)
            _update_positions(task.model, data)
            outcome = task.outcome(data, episode)
            rewards[row], terminated[row], truncated[row] = outcome.reward, outcome.terminated, outcome.truncated
            success[row] = outcome.success
            for name, value in outcome.info.items():
                if name not in info:
                    raise self._contradiction(f"outcome gives '{name}'", "info", task.info)
                info[name][row] = value
        return Outcome(rewards, terminated, truncated, success, info)

    def observe(self, rows: Sequence[int], targets: Mapping[str, np.ndarray]) -> None:
        """Render the cameras asked for and copy the vectors."""
        for row in rows:
            vectors = self._task.observe(self._data[row], self._episodes[row])
            for key, target in targets.items():
                if key.startswith(CAMERA_GROUP):
                    self._render(self._data[row], key.removeprefix(CAMERA_GROUP), target[row])
                else:
                    name = key.removeprefix(VECTOR_GROUP)
                    if name not in vectors:
                        raise self._contradiction(f"observe does not give '{name}'", "vectors", list(vectors))
                    target[row] = vectors[name]

    def _contradiction(self, what: str, attribute: str, given: Sequence[str]) -> UserError:
        """What one of the task's methods does is not what an attribute of it says."""
        return UserError(
            f"{type(self._task).__qualname__}.{what}, which is not what its `{attribute}` says",
            key="init_params.id",
            value=self._task.task_id,
            expected=f"the same names in both; there: {', '.join(given) or 'none'}",
            fix=f"correct the class in {type(self._task).__module__} (docs/tasks.md)",
        )

    def render(self, rows: Sequence[int], targets: Sequence[np.ndarray]) -> None:
        """The video camera at the size of the targets."""
        for row, target in zip(rows, targets, strict=True):
            self._render(self._data[row], self._task.video_camera, target)

    def expert(self, rows: Sequence[int], target: np.ndarray) -> None:
        """The task's expert."""
        for row in rows:
            target[row] = self._task.expert(self._data[row], self._episodes[row])

    def save(self, target: np.ndarray) -> None:
        """Physics, then the episodes' own variables."""
        physics = np.empty(self._physics_size)
        for row, data in enumerate(self._data):
            mujoco.mj_getState(self._task.model, data, physics, _PHYSICS_STATE)
            target[row, : self._physics_size] = physics
        target[:, self._physics_size :] = self._episodes

    def load(self, source: np.ndarray) -> None:
        """Restore what `save` wrote."""
        for row, data in enumerate(self._data):
            mujoco.mj_setState(self._task.model, data, source[row, : self._physics_size].copy(), _PHYSICS_STATE)
            mujoco.mj_forward(self._task.model, data)
        self._episodes[:] = source[:, self._physics_size :]

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
