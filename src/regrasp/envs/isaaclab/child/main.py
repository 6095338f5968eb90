"""Creates the simulator inside Isaac Sim's process."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from regrasp.envs.isaaclab.child import episodes, launch, task
from regrasp.envs.isaaclab.child.options import TaskOptions
from regrasp.envs.isaaclab.child.simulator import IsaacLabSimulator
from regrasp.envs.process.simulator import with_tuples


def create(num_envs: int, options: Mapping[str, Any]) -> IsaacLabSimulator:
    """The factory, called by name with the JSON of `TaskOptions`.

    Raises:
        UserError: The task is unknown, or the options do not fit it.
    """
    settings = TaskOptions(**with_tuples(options))
    launch.require_isaac_lab(settings)
    running = contextlib.ExitStack()
    arguments = {"device": settings.device, "enable_cameras": settings.cameras, "headless": settings.headless}
    # Isaac Lab 2.x starts the application before a task's configuration can be read, 3.x from the configuration.
    lazy = launch.lazy_launcher()
    if lazy is None:
        running.enter_context(launch.application(**arguments))
    name = task.register(settings)
    config = task.configure(name, settings, num_envs)
    if lazy is not None:
        running.enter_context(lazy(config, arguments))
    way = episodes.choose(config, ignore_terminations=settings.ignore_terminations)
    env = task.build(name, config)
    return IsaacLabSimulator(way(env), settings, running.close)
