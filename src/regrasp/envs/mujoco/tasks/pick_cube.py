"""Pick up the cube that the instruction names."""

from __future__ import annotations

import mujoco
import numpy as np

from regrasp.envs.mujoco.task import TaskOutcome
from regrasp.envs.mujoco.tasks.cube_table import (
    CLOSED_STEPS,
    COLORS,
    COMMAND,
    GRASP_HEIGHT,
    HOVER_HEIGHT,
    OBJECT,
    CubeTable,
    Phase,
    cube_positions,
    follow,
    near,
)

LIFTED = 0.07
"""A cube's centre above this many metres counts as picked up; lying, it is at 0.02."""


class PickCube(CubeTable):
    """Sparse reward 1 when the named cube is lifted by 5 cm; the other two cubes are there to be told apart."""

    instructions = tuple(f"pick up the {color} cube" for color in COLORS)
    meanings = tuple((i,) for i in range(len(COLORS)))
    max_episode_steps = 40
    info = ("wrong_object",)

    def outcome(self, data: mujoco.MjData, episode: np.ndarray) -> TaskOutcome:
        """Success ends the episode; `wrong_object` tells whether another cube is lifted."""
        lifted = cube_positions(data)[:, 2] > LIFTED
        success = bool(lifted[int(episode[OBJECT])])
        return TaskOutcome(float(success), success, success, {"wrong_object": float(lifted.any() and not success)})

    def expert(self, data: mujoco.MjData, episode: np.ndarray) -> np.ndarray:
        """Hover over the cube, descend, close, lift."""
        cube, command = cube_positions(data)[int(episode[OBJECT])], episode[COMMAND]
        phases = (
            Phase(np.array([*cube[:2], HOVER_HEIGHT]), done=near(command[:2], cube[:2], 0.008)),
            Phase(np.array([*cube[:2], GRASP_HEIGHT]), done=near(command[2], GRASP_HEIGHT, 0.006)),
            Phase(command, closed=True, done=episode[CLOSED_STEPS] >= 3),
            Phase(command + np.array([0.0, 0.0, 0.03]), closed=True),
        )
        return follow(episode, phases)
