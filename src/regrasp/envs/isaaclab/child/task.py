"""Finds a registered Isaac Lab task and adapts its configuration before the environment is built."""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from regrasp.envs.isaaclab.catalog import aliases, split_id
from regrasp.envs.isaaclab.child.options import TaskOptions
from regrasp.envs.process.seeds import seed31
from regrasp.errors import UserError


def register(options: TaskOptions) -> str:
    """Import Isaac Lab's tasks and the user's package, and return the id under which the task is registered.

    Raises:
        UserError: The package cannot be found, or no such task is registered.
    """
    package, name = split_id(options.id)
    key = f"{options.location}.init_params.id"
    importlib.import_module("isaaclab_tasks")
    if package is not None:
        _import_package(package, options.id, key)
    registry = importlib.import_module("gymnasium").registry
    lab = sorted(task for task, spec in registry.items() if "env_cfg_entry_point" in (spec.kwargs or {}))
    for spelling in aliases(name):
        if spelling in lab:
            return spelling
    if name in registry:
        raise UserError(
            "The task is registered without a configuration, so it is no task of Isaac Lab",
            key=key,
            value=options.id,
            expected="a task registered with gym.register(kwargs={'env_cfg_entry_point': ...})",
            fix="add the entry point where the task is registered, or correct the id",
        )
    near = difflib.get_close_matches(name, lab, 3)
    raise UserError(
        "Isaac Lab has no such task",
        key=key,
        value=options.id,
        expected=f"one of {near}" if near else f"one of the {len(lab)} registered tasks, or package:Task-Id",
        fix="`regrasp train --list_tasks` lists the tasks; a task of your own package is written package:Task-Id",
    )


def _import_package(package: str, task_id: str, key: str) -> None:
    try:
        importlib.import_module(package)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{package}.".startswith(f"{error.name}."):
            raise UserError(
                f"The simulator's Python has no package '{package}'",
                key=key,
                value=task_id,
                expected="package:Task-Id, or the id of a task that Isaac Lab registers",
                fix=f"install the package for {sys.executable}",
            ) from None
        raise UserError(
            f"The package '{package}' cannot be imported: {type(error).__name__}: {error} ({_place(error)})",
            key=key,
            value=task_id,
            expected="a package that can be imported once the simulator runs",
            fix=f"fix it, or install what it needs for {sys.executable}",
        ) from error


def _place(error: Exception) -> str:
    """File and line where importing stopped."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}, line {last.lineno}"


def configure(task_id: str, options: TaskOptions, num_envs: int) -> Any:
    """The task's configuration with our settings in it; nothing is built yet."""
    config = _load(task_id, options, num_envs)
    config.seed = seed31(options.seed)
    config.scene.num_envs = num_envs
    config.sim.device = options.device
    step_seconds = config.sim.dt * config.decimation
    # Isaac Lab rounds the quotient up, so the half step keeps floating point from adding one.
    config.episode_length_s = (options.max_episode_steps - 0.5) * step_seconds
    if options.camera_size is not None:
        _resize_cameras(config.scene, options.camera_size, f"{options.location}.init_params.camera_size")
    groups = dict(vars(getattr(config, "observations", None) or SimpleNamespace()))
    _check_whole_groups(groups, options)
    for group, block in groups.items():
        if hasattr(block, "concatenate_terms") and group not in options.observation_names:
            block.concatenate_terms = False
    if options.cameras:
        _rerender_on_reset(config)
    return config


def build(task_id: str, config: Any) -> Any:
    """The vectorised environment itself, without Gymnasium's wrappers."""
    return importlib.import_module("gymnasium").make(task_id, cfg=config).unwrapped


def _load(task_id: str, options: TaskOptions, num_envs: int) -> Any:
    utilities = importlib.import_module("isaaclab_tasks.utils")
    if hasattr(utilities, "resolve_task_config"):
        sys.argv = [sys.argv[0], *options.presets]
        config, _ = utilities.resolve_task_config(task_id, "")
        return config
    if options.presets:
        raise UserError(
            "This Isaac Lab has no configuration presets",
            key=f"{options.location}.init_params.presets",
            value=list(options.presets),
            expected="[] with Isaac Lab 2.x",
            fix="remove the key",
        )
    return utilities.parse_env_cfg(task_id, device=options.device, num_envs=num_envs)


def _resize_cameras(scene: Any, size: tuple[int, int], key: str) -> None:
    parts = vars(scene).values()
    cameras = [part for part in parts if all(hasattr(part, name) for name in ("height", "width", "data_types"))]
    if not cameras:
        raise UserError(
            "The task's scene has no camera to resize",
            key=key,
            value=list(size),
            expected="null",
            fix="remove the key",
        )
    for camera in cameras:
        camera.height, camera.width = size


def _rerender_on_reset(config: Any) -> None:
    """Without it the first images of an episode show the end of the one before."""
    if hasattr(config, "num_rerenders_on_reset"):
        config.num_rerenders_on_reset = max(1, config.num_rerenders_on_reset)
    elif hasattr(config, "rerender_on_reset"):  # its name before Isaac Lab 2.3
        config.rerender_on_reset = True


def _check_whole_groups(groups: Mapping[str, Any], options: TaskOptions) -> None:
    """Check that no group is named as a whole, which makes it one vector, together with one of its terms."""
    names = set(options.observation_names)
    for group in names & groups.keys():
        elsewhere = {term for other, block in groups.items() if other != group for term in _terms(block)}
        own = _terms(groups[group])
        both = names & ({f"{group}/{term}" for term in own} | (own - elsewhere - {group}))
        if both:
            raise UserError(
                f"The mapping names the group '{group}' as a whole, and a term of it too",
                key=f"{options.location}.mapping",
                value=sorted({group, *both}),
                expected="the whole group, which is one vector, or terms of it",
                fix=f"name its terms instead of '{group}'; it has {sorted(own)}",
            )


def _terms(block: Any) -> set[str]:
    """Names of a group's observation terms."""
    return {name for name, term in vars(block).items() if hasattr(term, "func")}
