"""Our side of an Isaac Lab task. Imports neither Isaac Lab nor its application."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from regrasp.envs.config import EnvName
from regrasp.envs.env_type import EnvType, TaskRow
from regrasp.envs.isaaclab import task_packages
from regrasp.envs.isaaclab.catalog import evaluation_task, is_lab_task, namesakes
from regrasp.envs.isaaclab.child.options import TaskOptions
from regrasp.envs.isaaclab.config import IsaacLabEnvConfig, IsaacLabEvalConfig, IsaacLabTrainConfig
from regrasp.errors import UserError

if TYPE_CHECKING:
    from regrasp.envs.contract import VecEnv

_log = logging.getLogger(__name__)


class IsaacLab(EnvType[IsaacLabEnvConfig]):
    """Tasks of Isaac Lab, and of packages for it."""

    train = IsaacLabTrainConfig
    eval = IsaacLabEvalConfig
    shared = {"python": ("python",)} | {
        key: ("init_params", key) for key in ("device", "headless", "camera_size", "presets", "hold_action")
    }
    mapping_alias = "isaaclab"
    without_experiment = (
        "--config_name with it, or a task that names its experiment"
        f" ({task_packages.EXPERIMENT_KEY}, docs/isaaclab.md)",
        "add --config_name; if the task's package is in another Python, add env.isaaclab.python=<it>",
    )

    def create_env(self, config: IsaacLabEnvConfig, name: EnvName, max_chunk: int, seed: int) -> VecEnv:
        """Start an Isaac Lab task as `env.<name>` says, in one process of its own; `seed` becomes its `cfg.seed`.

        Raises:
            UserError: The task, a camera, a state, a term or the simulator's Python does not exist.
            SimulatorError: The simulator failed, died or did not start in time.
        """
        from regrasp.envs.isaaclab.vector import IsaacLabVecEnv

        self.check(config, name)
        env = IsaacLabVecEnv(
            config,
            name,
            max_chunk,
            factory="regrasp.envs.isaaclab.child.main:create",
            settings={"options": asdict(task_options(config, name, seed))},
            num_workers=1,
        )
        for note in env.spec.notes:
            _log.warning("env.%s (%s): %s", name, env.spec.task_id, note)
        return env

    def check_expert(self, config: IsaacLabEnvConfig, name: str) -> None:
        """Say, before a simulator starts, that no task of Isaac Lab has a scripted expert.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "Tasks of Isaac Lab have no scripted expert",
            key=f"env.{name}.init_params.id",
            value=config.init_params.id,
            fix="`regrasp collect` also records a script of your own, with --policy module:function, or a policy, with"
            " --model_path; `regrasp convert` takes recordings that Isaac Lab made",
        )

    def check(self, config: IsaacLabEnvConfig, name: str) -> None:
        """Check what can be checked of `env.<name>` before the simulator starts.

        Raises:
            UserError: Instructions, workers or videos are asked for in a way that cannot work.
        """
        mapping = config.mapping
        if (config.num_workers or 1) > 1:
            raise UserError(
                "Isaac Lab runs one simulator per GPU",
                key=f"env.{name}.num_workers",
                value=config.num_workers,
                expected="1 or null",
                fix=f"raise env.{name}.total_num_envs: they step together on the GPU",
            )
        sources = {key: getattr(mapping, key) for key in ("task_description", "instruction_key", "instructions")}
        if [bool(source) for source in sources.values()] not in ([True, False, False], [False, True, True]):
            raise UserError(
                "The policy needs its instruction from one source: Isaac Lab tasks carry none",
                key=f"env.{name}.mapping",
                value=sources,
                expected="task_description, a sentence as in the demonstrations that the policy was trained on; or"
                " instruction_key and instructions, from which an observation chooses",
                fix="give the one or the other",
            )
        if config.video_cfg.save_video and mapping.main_images is None:
            raise UserError(
                "There is no camera to record",
                key=f"env.{name}.video_cfg.save_video",
                value=True,
                expected="false, or a camera in main_images",
                fix=f"set env.{name}.video_cfg.save_video=false",
            )

    def owns_task(self, task_id: str) -> bool:
        """Its tasks begin with `Isaac-`, or are written with their package, `package:Task-Id`."""
        return is_lab_task(task_id)

    def evaluation_task(self, task_id: str) -> str:
        """The task's own variant for evaluation, or itself."""
        return evaluation_task(task_id)

    def namesakes(self, task_id: str) -> tuple[str, ...]:
        """See `EnvType.namesakes`."""
        return namesakes(task_id)

    def experiment_of_task(self, task_id: str, overrides: Sequence[str]) -> Path | None:
        """The experiment that the task names where its package registers it.

        Raises:
            UserError: It names one that cannot be found.
        """
        return task_packages.experiment_of_task(task_id, task_packages.pythons_in(overrides))

    def experiment_folders(self, overrides: Sequence[str]) -> Iterator[Path]:
        """Isaac Lab's own tasks, which keep their experiments beside them, in every interpreter that is known."""
        for python in (None, *task_packages.pythons_in(overrides)):
            folder = task_packages.package_folder(task_packages.LAB_PACKAGE, python)
            if folder is not None:
                yield folder

    def tasks(self, task_id: str | None, overrides: Sequence[str], shipped: Sequence[str]) -> Iterator[TaskRow]:
        """The tasks of Isaac Lab and of the given task's package, then those of which only an experiment is here."""
        found = task_packages.installed_tasks(task_id, task_packages.pythons_in(overrides))
        rows = {row.task_id: row for row in reversed(list(found))}
        yield from reversed(rows.values())
        for name in sorted(set(shipped) - rows.keys()):
            yield TaskRow(name, "not here, see env.isaaclab.python")


def task_options(config: IsaacLabEnvConfig, name: str, seed: int) -> TaskOptions:
    """What the simulator's process is told of `env.<name>`, and the seed under which it is to be built."""
    mapping, init = config.mapping, config.init_params
    cameras = (mapping.main_images, *mapping.extra_view_images)
    names = (*cameras, *(entry.key for entry in mapping.states), mapping.instruction_key)
    own = {
        "location": f"env.{name}",
        "seed": seed,
        "max_episode_steps": config.max_episode_steps,
        "ignore_terminations": config.ignore_terminations,
        "cameras": mapping.main_images is not None,
        "observation_names": tuple(name for name in names if name is not None),
    }
    values = vars(init) | vars(mapping) | own
    return TaskOptions(**{field.name: values[field.name] for field in fields(TaskOptions)})
