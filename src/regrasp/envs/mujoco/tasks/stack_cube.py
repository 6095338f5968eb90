"""Stack one named cube on another."""

from __future__ import annotations

from enum import IntEnum

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
    PHASE,
    CubeTable,
    cube_positions,
    towards,
)

CARRY_HEIGHT = 0.11
RELEASE_HEIGHT = GRASP_HEIGHT + 2 * CUBE_HALF + 0.002
MAX_OFFSET = 0.018
"""Largest horizontal distance of the two centres, in metres: just under half a cube."""
_RELEASED = 0.06
"""The fingers' total opening, in metres, that cannot hold a cube any more."""
_CLOSING_STEPS = 4
_PAIRS = tuple((i, j) for i in range(len(COLORS)) for j in range(len(COLORS)) if i != j)


class _Phase(IntEnum):
    HOVER = 0
    DESCEND = 1
    CLOSE = 2
    LIFT = 3
    CARRY = 4
    LOWER = 5
    RELEASE = 6


class StackCube(CubeTable):
    """Sparse reward 1 when the first cube rests on the second and the gripper has let go."""

    task_id = "Regrasp-Stack-Cube-v0"
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
        cubes = cube_positions(data)
        cube, base = cubes[int(episode[OBJECT])], cubes[int(episode[BASE])]
        goals = {
            _Phase.HOVER: np.array([*cube[:2], HOVER_HEIGHT]),
            _Phase.DESCEND: np.array([*cube[:2], GRASP_HEIGHT]),
            _Phase.CLOSE: episode[COMMAND].copy(),
            _Phase.LIFT: np.array([*episode[COMMAND][:2], CARRY_HEIGHT]),
            _Phase.CARRY: np.array([*self._above(base, cube, episode), CARRY_HEIGHT]),
            _Phase.LOWER: np.array([*self._above(base, cube, episode), RELEASE_HEIGHT]),
            _Phase.RELEASE: episode[COMMAND].copy(),
        }
        while self._completed(episode, goals):
            episode[PHASE] += 1
        phase = _Phase(int(episode[PHASE]))
        return towards(episode, goals[phase], closed=phase in (_Phase.CLOSE, _Phase.LIFT, _Phase.CARRY, _Phase.LOWER))

    @staticmethod
    def _above(base: np.ndarray, cube: np.ndarray, episode: np.ndarray) -> np.ndarray:
        """Where to command the hand so that the held cube, wherever it sits in the grip, comes over the base."""
        return base[:2] + episode[COMMAND][:2] - cube[:2]

    @staticmethod
    def _completed(episode: np.ndarray, goals: dict[_Phase, np.ndarray]) -> bool:
        tolerances = {
            _Phase.HOVER: [0.008, 0.008, 1.0],
            _Phase.DESCEND: [1.0, 1.0, 0.006],
            _Phase.LIFT: [1.0, 1.0, 0.012],
            _Phase.CARRY: [0.006, 0.006, 1.0],
            _Phase.LOWER: [1.0, 1.0, 0.006],
        }
        phase = _Phase(int(episode[PHASE]))
        if phase == _Phase.CLOSE:
            return bool(episode[CLOSED_STEPS] >= _CLOSING_STEPS)
        return phase in tolerances and bool(np.all(np.abs(episode[COMMAND] - goals[phase]) < tolerances[phase]))
