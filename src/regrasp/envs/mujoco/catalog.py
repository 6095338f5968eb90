"""Which tasks are embedded. Importable without MuJoCo, so that listing and checking them is instant."""

from __future__ import annotations

import importlib
from typing import Any

TASK_IDS: dict[str, str] = {
    "Regrasp-Pick-Cube-v0": "regrasp.envs.mujoco.tasks.pick_cube:PickCube",
    "Regrasp-Stack-Cube-v0": "regrasp.envs.mujoco.tasks.stack_cube:StackCube",
    "Regrasp-Assemble-Trocar-G129-Dex3-v0": "regrasp.envs.mujoco.tasks.trocar.task:AssembleTrocar",
    "Regrasp-Assemble-Trocar-G129-Dex3-Eval-v0": "regrasp.envs.mujoco.tasks.trocar.task:AssembleTrocarEval",
}
"""Task id to `module:Class`."""
TASK_OPTIONS: dict[str, str] = dict.fromkeys(
    (task_id for task_id, task in TASK_IDS.items() if ".trocar." in task),
    "regrasp.envs.mujoco.tasks.trocar.options:TrocarOptions",
)
"""Task id to the class of its options, with which the task is created; other tasks have none."""


def load_class(path: str) -> Any:
    """The class of a `module:Class`."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)
