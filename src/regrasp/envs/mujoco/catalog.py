"""Which tasks are embedded. Importable without MuJoCo, so that listing and checking them is instant."""

from __future__ import annotations

TASK_IDS: dict[str, str] = {
    "Regrasp-Pick-Cube-v0": "regrasp.envs.mujoco.tasks.pick_cube:PickCube",
    "Regrasp-Stack-Cube-v0": "regrasp.envs.mujoco.tasks.stack_cube:StackCube",
}
"""Task id to `module:Class`."""
