"""What `--task` means besides the task's id: its simulator, and its variant for evaluation. Starts nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

from regrasp.envs.isaaclab import catalog as isaaclab
from regrasp.envs.mujoco import catalog as mujoco
from regrasp.experiment import EnvConfig

EnvConfigT = TypeVar("EnvConfigT", bound=EnvConfig)
_LAB_KEYS = {
    "mapping": ("reward_source", "success_term", "call_zero_weight_terms", "instruction_key", "instructions"),
    "init_params": ("device", "headless", "camera_size", "presets", "hold_action"),
}
"""Keys of `env.<name>`, by block, that have an effect with Isaac Lab only."""


def evaluation_task(task_id: str) -> str:
    """The variant of a task that is for evaluation, or the task itself where it has none."""
    return mujoco.evaluation_task(task_id) if mujoco.is_embedded(task_id) else isaaclab.evaluation_task(task_id)


def other_simulator(config: EnvConfig, task_id: str) -> str | None:
    """The `env_type` that a task's name tells, where the configuration has the other one of those that come with us."""
    if config.env_type == "isaaclab" and mujoco.is_embedded(task_id):
        return "mujoco"
    if config.env_type == "mujoco" and isaaclab.is_lab_task(task_id):
        return "isaaclab"
    return None


def lab_settings(config: EnvConfig) -> Iterator[tuple[str, str, Any, Any]]:
    """Block, key, value and default of what is set and has an effect with Isaac Lab only."""
    for block, keys in _LAB_KEYS.items():
        values = getattr(config, block)
        defaults = {field.name: field.default for field in dataclasses.fields(values)}
        for key in keys:
            if getattr(values, key) != defaults[key]:
                yield block, key, getattr(values, key), defaults[key]


def without_lab_settings(config: EnvConfigT, name: str) -> tuple[EnvConfigT, list[str]]:
    """`env.<name>` for the embedded simulator, and the keys that went back to their defaults for that."""
    dropped: list[str] = []
    for block, key, _, default in list(lab_settings(config)):
        plain = dataclasses.replace(getattr(config, block), **{key: default})
        config = dataclasses.replace(config, **{block: plain})
        dropped.append(f"env.{name}.{block}.{key}")
    return config, dropped
