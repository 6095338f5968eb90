"""What RLinf's workers call when they start; for its releases 0.2 and 0.3, whose tables have different names."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from regrasp.envs.config import EnvConfig
from regrasp.errors import UserError
from regrasp.experiment.load import load_config
from regrasp.integrations.rlinf.converters import ActionConverter, ObservationConverter
from regrasp.integrations.rlinf.environment import RegraspEnv

CONFIG_FILE = "RLINF_CONFIG_FILE"
"""The variable that names the experiment, as Isaac Lab's extension reads it."""
_TASKS = "REGISTER_ISAACLAB_ENVS"
_OBSERVATIONS = "OBS_CONVERSION"
_ACTIONS = ("ACTION_CONVERSION_N1D5", "ACTION_CONVERSION")
"""The table of RLinf 0.3, and that of 0.2."""


class Tasks(dict[str, Any]):
    """RLinf's table of Isaac Lab's tasks, in which every task that RLinf has no code for is one of Regrasp's.

    So a task that an override of the command line names is known too, which no file lists.
    """

    def __contains__(self, task_id: object) -> bool:
        return isinstance(task_id, str)

    def __missing__(self, task_id: str) -> type[RegraspEnv]:
        return RegraspEnv


def register() -> None:
    """Put Regrasp's environments, and the converters of the experiment in RLINF_CONFIG_FILE, into RLinf's tables.

    Raises:
        UserError: The experiment is wrong, or RLinf lacks a table.
    """
    tasks = _module("rlinf.envs.isaaclab")
    if not isinstance(_table(tasks, _TASKS), Tasks):
        setattr(tasks, _TASKS, Tasks(_table(tasks, _TASKS)))
    if file := os.environ.get(CONFIG_FILE):
        config = load_config(file).config
        register_converters(config.env.train)


def register_converters(env: EnvConfig) -> None:
    """Register the layout of a robot, by its `obs_converter_type`, for GR00T N1.5; without one there is nothing to do.

    Raises:
        UserError: RLinf lacks a table.
    """
    name = env.mapping.obs_converter_type
    if name is None or env.mapping.gr00t_mapping is None:
        return
    module = _module("rlinf.models.embodiment.gr00t.simulation_io")
    _table(module, _OBSERVATIONS)[name] = ObservationConverter(env.mapping)
    actions = next((table for table in _ACTIONS if hasattr(module, table)), _ACTIONS[0])
    _table(module, actions)[name] = ActionConverter(env.mapping)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _unknown(f"{name} ({error})") from error


def _table(module: ModuleType, name: str) -> dict[str, Callable[..., Any]]:
    if not hasattr(module, name):
        raise _unknown(f"{module.__name__}.{name}")
    return getattr(module, name)


def _unknown(lacking: str) -> UserError:
    return UserError(
        "This version of RLinf is not known",
        value=f"no {lacking}",
        expected="RLinf 0.2 or 0.3",
        fix="install one of these, or train with Regrasp's own engine",
    )
