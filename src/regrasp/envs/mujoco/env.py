"""The parent's side of the embedded simulator. Does not import MuJoCo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from regrasp.config.parse import parse
from regrasp.envs.config import EnvName
from regrasp.envs.env_type import EnvType, TaskRow
from regrasp.envs.mujoco import backend
from regrasp.envs.mujoco.catalog import (
    KnownTask,
    find_task,
    is_place,
    known_tasks,
    same_class,
    search_path,
    task_class,
)
from regrasp.envs.mujoco.config import MujocoEnvConfig, MujocoEvalConfig, MujocoTrainConfig
from regrasp.errors import UserError

if TYPE_CHECKING:
    from regrasp.envs.contract import VecEnv
    from regrasp.envs.mujoco.task import Task
    from regrasp.envs.process.simulator import SimulatorSpec


class Mujoco(EnvType[MujocoEnvConfig]):
    """The embedded simulator."""

    train = MujocoTrainConfig
    eval = MujocoEvalConfig
    bytes_per_env = 640_000
    bytes_per_process = 100_000_000

    def describe(self, config: MujocoEnvConfig, name: str) -> SimulatorSpec:
        """What the environments of `env.<name>` will offer; starts none.

        Raises:
            UserError: The task is unknown, or an option of it wrong.
        """
        task = _create_task(config, name)
        from regrasp.envs.mujoco.simulator import describe_task

        return describe_task(task, config.max_episode_steps)

    def check_expert(self, config: MujocoEnvConfig, name: str) -> None:
        """Check that the task's scripted expert can act; starts no environment.

        Raises:
            UserError: The task is unknown, an option of it wrong, or a package missing that its expert needs.
        """
        _create_task(config, name).check_expert()

    def create_env(self, config: MujocoEnvConfig, name: EnvName, max_chunk: int, seed: int) -> VecEnv:
        """Start MuJoCo environments as `env.<name>` says; nothing is drawn for that, so `seed` does not matter.

        Raises:
            UserError: The task is unknown or cannot be imported, an option of it wrong, its observations do not fit the
                mapping, or images cannot be rendered.
        """
        from regrasp.envs.process.vector import RemoteVecEnv

        renders = config.mapping.main_images is not None or config.video_cfg.save_video
        return RemoteVecEnv(
            config,
            name,
            max_chunk,
            factory="regrasp.envs.mujoco.simulator:create",
            settings={
                "task_id": config.init_params.id,
                "task_options": _options(config, name),
                "max_episode_steps": config.max_episode_steps,
                "location": f"env.{name}",
                "search_path": search_path(config.python),
            },
            environment=backend.graphics(backend.require_backend() if renders else "disable"),
        )

    def owns_task(self, task_id: str) -> bool:
        """Its tasks begin with `Regrasp-`, are those of other packages, or are named by a class, `module:Class`."""
        known = task_id in (task.task_id for task in known_tasks())
        return known or task_id.startswith("Regrasp-") or is_place(task_id)

    def evaluation_task(self, task_id: str) -> str:
        """The task's own variant for evaluation, or itself."""
        variant = f"{task_id.removesuffix('-v0')}-Eval-v0"
        return variant if variant in (task.task_id for task in known_tasks()) else task_id

    def namesakes(self, task_id: str) -> tuple[str, ...]:
        """The task's other names: it may be known by an id and by its class."""
        return same_class(task_id)

    def tasks(self, task_id: str | None, overrides: Sequence[str], shipped: Sequence[str]) -> Iterator[TaskRow]:
        """Every task that is known, and the given one where it is a class; those of other packages are imported."""
        runnable = "runs here" if backend.working_backend() else "cannot render here, see regrasp doctor"
        named = [KnownTask(task_id, task_id)] if task_id is not None and is_place(task_id) else []
        for task in (*known_tasks(), *named):
            if task.package is None and task not in named:
                yield TaskRow(task.task_id, runnable)
            else:
                source = task.place if task.package is None else f"{task.package}, {task.place}"
                yield TaskRow(task.task_id, _problem_of(task) or runnable, source=source)


def _problem_of(task: KnownTask) -> str | None:
    """Why a task of another package is none, in a few words; None where it can be imported."""
    try:
        task_class(task.task_id, "init_params.id")
    except UserError as error:
        return error.problem
    return None


def _create_task(config: MujocoEnvConfig, name: str) -> Task:
    """The task itself, for what is asked before environments start."""
    find_task(config.init_params.id, f"env.{name}.init_params.id")
    options = _options(config, name)
    from regrasp.envs.mujoco.simulator import create_task

    return create_task(config.init_params.id, options, key=f"env.{name}.init_params.id")


def _options(config: MujocoEnvConfig, name: str) -> dict[str, Any]:
    """The task's options as given, after a check against the task's own class."""
    backend.require_chosen_backend()
    given, key = config.init_params.task_options, f"env.{name}.init_params.task_options"
    options = task_class(config.init_params.id, f"env.{name}.init_params.id").options_type
    if options is None:
        if given:
            raise UserError(
                f"{config.init_params.id} has no options",
                key=key,
                value=given,
                expected="no options",
                fix=f"remove {key}",
            )
        return {}
    try:
        parse(options, given, file=None, key=key)
    except UserError as error:
        raise UserError(**{**error.fields(), "fix": "correct it, or remove it for the task's default"}) from None
    return given
