"""Our side of Gymnasium environments. Imports neither Gymnasium nor what registers environments with it."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from regrasp.envs.config import EnvName
from regrasp.envs.env_type import EnvType, TaskRow
from regrasp.envs.gymnasium.child.options import EnvOptions
from regrasp.envs.gymnasium.config import GymnasiumEnvConfig, GymnasiumEvalConfig, GymnasiumTrainConfig
from regrasp.errors import UserError

if TYPE_CHECKING:
    from regrasp.envs.contract import VecEnv

_log = logging.getLogger(__name__)


class Gymnasium(EnvType[GymnasiumEnvConfig]):
    """Environments that are registered with Gymnasium."""

    train = GymnasiumTrainConfig
    eval = GymnasiumEvalConfig

    def create_env(self, config: GymnasiumEnvConfig, name: EnvName, max_chunk: int, seed: int) -> VecEnv:
        """Start the environments of `env.<name>`; each is seeded by its resets alone, so `seed` does not matter.

        Raises:
            UserError: Gymnasium or the environment does not exist or cannot be made, or its spaces do not fit.
        """
        from regrasp.envs.process.vector import RemoteVecEnv

        env = RemoteVecEnv(
            config,
            name,
            max_chunk,
            factory="regrasp.envs.gymnasium.child.main:create",
            settings={"options": asdict(env_options(config, name))},
            environment=_graphics() if config.video_cfg.save_video or config.init_params.pixels else None,
        )
        for note in env.spec.notes:
            _log.warning("env.%s (%s): %s", name, env.spec.task_id, note)
        return env

    def look_up(self, config: GymnasiumEnvConfig, name: str) -> None:
        """Ask Gymnasium, in the Python of the environments, where this machine has it.

        Raises:
            UserError: It knows no such environment; the nearest ones are named.
        """
        from regrasp.envs.process.process import SimulatorProcess

        here = importlib.util.find_spec("gymnasium") if config.python is None else shutil.which(config.python)
        if here is None:
            lacking = "Gymnasium" if config.python is None else config.python
            _log.warning("env.%s.init_params.id is not looked up: this machine has no %s.", name, lacking)
            return
        process = SimulatorProcess(
            f"env.{name}",
            "regrasp.envs.gymnasium.child.main:look_up",
            {"options": asdict(env_options(config, name))},
            config.timeouts,
            config.python,
            only_calls=True,
        )
        try:
            process.finish()
        finally:
            process.request_close()
            process.close(deadline=5.0)

    def tasks(self, task_id: str | None, overrides: Sequence[str], shipped: Sequence[str]) -> Iterator[TaskRow]:
        """Those for which an experiment comes with Regrasp; Gymnasium has hundreds, and packages add theirs."""
        runnable = "runs here" if importlib.util.find_spec("gymnasium") else "needs the extra gymnasium"
        yield from (TaskRow(name, runnable) for name in sorted(set(shipped)))

    def check_expert(self, config: GymnasiumEnvConfig, name: str) -> None:
        """Say, before anything starts, that environments of Gymnasium have no scripted expert of their own.

        Raises:
            UserError: None is named.
        """
        if config.init_params.expert is None:
            raise UserError(
                "Environments of Gymnasium have no scripted expert of their own",
                key=f"env.{name}.init_params.expert",
                value=None,
                expected="module:function, of the Python that runs the environments",
                fix="name one; or record a script that acts from our side, with --policy module:function, or a policy,"
                " with --model_path",
            )


def _graphics() -> dict[str, str]:
    """How MuJoCo renders where there is no screen, unless the user has chosen."""
    headless = sys.platform == "linux" and not {"MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    return {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl"} if headless else {}


def env_options(config: GymnasiumEnvConfig, name: str) -> EnvOptions:
    """What the processes are told of `env.<name>`."""
    init = config.init_params
    return EnvOptions(
        location=f"env.{name}",
        id=init.id,
        kwargs=init.kwargs,
        tasks=tuple(map(asdict, init.tasks)),
        vector=init.vector,
        max_episode_steps=config.max_episode_steps,
        renders=config.video_cfg.save_video or init.pixels is not None,
        pixels=init.pixels,
        expert=init.expert,
        action_bounds=config.mapping.action_bounds,
        success_key=init.success_key,
        success_is_termination=init.success == "terminated",
        instruction_key=init.instruction_key,
        instructions=init.instructions,
    )
