"""Stack one named cube on another."""

from __future__ import annotations

import mujoco
import numpy as np

from regrasp.envs.mujoco.task import TaskOutcome
from regrasp.envs.mujoco.tasks.cube_table import (
    BASE,
    CLOSED_STEPS,
    COLORS,
    COMMAND,
    CUBE_HALF,
    FINGERS,
    GRASP_HEIGHT,
    HOVER_HEIGHT,
    OBJECT,
    CubeTable,
    Phase,
    cube_positions,
    follow,
    near,
)

CARRY_HEIGHT = 0.11
RELEASE_HEIGHT = GRASP_HEIGHT + 2 * CUBE_HALF + 0.002
MAX_OFFSET = 0.018
"""Largest horizontal distance of the two centres, in metres: just under half a cube."""
_RELEASED = 0.06
"""The fingers' total opening, in metres, that cannot hold a cube any more."""
_PAIRS = tuple((i, j) for i in range(len(COLORS)) for j in range(len(COLORS)) if i != j)


class StackCube(CubeTable):
    """Sparse reward 1 when the first cube rests on the second and the gripper has let go."""

    instructions = tuple(f"stack the {COLORS[i]} cube on the {COLORS[j]} cube" for i, j in _PAIRS)
    meanings = _PAIRS
    max_episode_steps = 60
    info = ("lifted",)

    def outcome(self, data: mujoco.MjData, episode: np.ndarray) -> TaskOutcome:
        """Success ends the episode; `lifted` tells whether the first cube is off the table."""
        cubes = cube_positions(data)
        offset = cubes[int(episode[OBJECT])] - cubes[int(episode[BASE])]
        on_top = np.linalg.norm(offset[:2]) < MAX_OFFSET and abs(offset[2] - 2 * CUBE_HALF) < 0.006
        success = bool(on_top and data.qpos[FINGERS].sum() > _RELEASED)
        return TaskOutcome(float(success), success, success, {"lifted": float(cubes[int(episode[OBJECT]), 2] > 0.035)})

    def expert(self, data: mujoco.MjData, episode: np.ndarray) -> np.ndarray:
        """Hover, descend, close, lift, carry over the base, lower, release."""
        cubes, command = cube_positions(data), episode[COMMAND]
        cube, base = cubes[int(episode[OBJECT])], cubes[int(episode[BASE])]
        # Where the hand is when the held cube, wherever it sits in the grip, is over the base.
        above = base[:2] + command[:2] - cube[:2]
        phases = (
            Phase(np.array([*cube[:2], HOVER_HEIGHT]), done=near(command[:2], cube[:2], 0.008)),
            Phase(np.array([*cube[:2], GRASP_HEIGHT]), done=near(command[2], GRASP_HEIGHT, 0.006)),
            Phase(command, closed=True, done=episode[CLOSED_STEPS] >= 4),
            Phase(np.array([*command[:2], CARRY_HEIGHT]), closed=True, done=near(command[2], CARRY_HEIGHT, 0.012)),
            Phase(np.array([*above, CARRY_HEIGHT]), closed=True, done=near(command[:2], above, 0.006)),
            Phase(np.array([*above, RELEASE_HEIGHT]), closed=True, done=near(command[2], RELEASE_HEIGHT, 0.006)),
            Phase(command),
        )
        return follow(episode, phases)
