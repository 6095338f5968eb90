"""Pick up the cube that the instruction names."""

from __future__ import annotations

from enum import IntEnum

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
    PHASE,
    CubeTable,
    cube_positions,
    reached,
    towards,
)

LIFTED = 0.07
"""A cube's centre above this many metres counts as picked up; lying, it is at 0.02."""
_CLOSING_STEPS = 3


class _Phase(IntEnum):
    HOVER = 0
    DESCEND = 1
    CLOSE = 2
    LIFT = 3


class PickCube(CubeTable):
    """Sparse reward 1 when the named cube is lifted by 5 cm; the other two cubes are there to be told apart."""

    task_id = "Regrasp-Pick-Cube-v0"
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
        cube = cube_positions(data)[int(episode[OBJECT])]
        hover = np.array([*cube[:2], HOVER_HEIGHT])
        grasp = np.array([*cube[:2], GRASP_HEIGHT])
        if episode[PHASE] == _Phase.HOVER and reached(episode[COMMAND][:2], cube[:2], 0.008):
            episode[PHASE] = _Phase.DESCEND
        if episode[PHASE] == _Phase.DESCEND and reached(episode[COMMAND][2], grasp[2], 0.006):
            episode[PHASE] = _Phase.CLOSE
        if episode[PHASE] == _Phase.CLOSE and episode[CLOSED_STEPS] >= _CLOSING_STEPS:
            episode[PHASE] = _Phase.LIFT
        match _Phase(int(episode[PHASE])):
            case _Phase.HOVER:
                return towards(episode, hover, closed=False)
            case _Phase.DESCEND:
                return towards(episode, grasp, closed=False)
            case _Phase.CLOSE:
                return towards(episode, episode[COMMAND], closed=True)
            case _Phase.LIFT:
                return towards(episode, episode[COMMAND] + [0.0, 0.0, 0.03], closed=True)
