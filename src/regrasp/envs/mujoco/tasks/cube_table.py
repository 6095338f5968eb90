"""Three coloured cubes on a table under a parallel gripper: what the cube tasks share; the scene: `cube_table.xml`.

The gripper floats on three slides and is driven by relative Cartesian control, as Isaac Lab's IK-Rel tasks are: an
action is (dx, dy, dz, gripper) in [-1, 1]; one unit of translation moves the commanded position by 3 cm, a negative
gripper value closes and any other opens. Control runs at 10 Hz.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

from regrasp.envs.mujoco.task import Camera, GroundingScene, Task

COLORS = ("red", "green", "blue")
CUBE_HALF = 0.02
CUBE_QPOS = 7
HAND = slice(21, 24)
FINGERS = slice(24, 26)
FINGER_OPEN = 0.045
TRANSLATION = 0.03
GRASP_HEIGHT = 0.02
HOVER_HEIGHT = 0.085
_WORKSPACE = np.array([[-0.16, -0.20, 0.018], [0.16, 0.20, 0.26]])
_CUBE_AREA = np.array([0.10, 0.13])
_CUBE_SPACING = 0.085
_MAX_NAMED = 2
"""Cubes that one instruction can name."""

# Fields of the episode vector.
OBJECT, BASE, PHASE, CLOSED_STEPS = 0, 1, 2, 3
COMMAND = slice(4, 7)
EPISODE_SIZE = 7


class CubeTable(Task):
    """The scene, its actuation and its observations; subclasses say what the words ask for."""

    action_dim = 4
    grippers = (3,)
    physics_steps = 10
    episode_size = EPISODE_SIZE
    cameras = (Camera("front_camera", 84, 84), Camera("wrist_camera", 84, 84))
    video_camera = "overview"
    meanings: tuple[tuple[int, ...], ...]
    """For each instruction the cubes it names, in the order of their mention."""

    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_path(str(Path(__file__).with_suffix(".xml")))
        self.vectors: Mapping[str, int] = {
            "gripper_position": 3,
            "gripper_opening": 1,
            "object_positions": 3 * len(COLORS),
            "target_one_hot": len(self.instructions),
        }

    def reset(self, data: mujoco.MjData, episode: np.ndarray, rng: np.random.Generator) -> int:
        """Place the cubes apart from each other, the open gripper above, and choose what to ask for."""
        mujoco.mj_resetData(self.model, data)
        place_cubes(data, rng)
        hand = rng.uniform([-0.06, -0.06, 0.14], [0.06, 0.06, 0.18])
        data.qpos[HAND] = data.ctrl[:3] = hand
        data.qpos[FINGERS] = data.ctrl[3:] = FINGER_OPEN
        instruction = int(rng.integers(len(self.instructions)))
        named = self.meanings[instruction]
        episode[:] = 0
        episode[OBJECT], episode[BASE] = named[0], named[-1]
        episode[COMMAND] = hand
        mujoco.mj_forward(self.model, data)
        return instruction

    def actuate(self, data: mujoco.MjData, episode: np.ndarray, action: np.ndarray) -> None:
        """Move the commanded position and open or close the fingers."""
        motion = TRANSLATION * np.clip(action[:3], -1.0, 1.0)
        episode[COMMAND] = np.clip(episode[COMMAND] + motion, *_WORKSPACE)
        closed = action[3] < 0
        episode[CLOSED_STEPS] = episode[CLOSED_STEPS] + 1 if closed else 0
        data.ctrl[:3] = episode[COMMAND]
        data.ctrl[3:] = 0.0 if closed else FINGER_OPEN

    def observe(self, data: mujoco.MjData, episode: np.ndarray) -> Mapping[str, np.ndarray]:
        """Proprioception in metres, and privileged object positions."""
        wanted = np.zeros(len(self.instructions))
        wanted[self._instruction(episode)] = 1.0
        return {
            "gripper_position": data.qpos[HAND],
            "gripper_opening": data.qpos[FINGERS].sum(keepdims=True),
            "object_positions": cube_positions(data).ravel(),
            "target_one_hot": wanted,
        }

    def scatter(self, data: mujoco.MjData, rng: np.random.Generator) -> GroundingScene:
        """A random scene: the gripper anywhere, often over a cube, sometimes holding one, sometimes two stacked."""
        mujoco.mj_resetData(self.model, data)
        place_cubes(data, rng)
        hand = rng.uniform([-0.12, -0.15, 0.018], [0.12, 0.15, 0.24])
        fingers = rng.uniform(0.005, FINGER_OPEN) if rng.random() < 0.3 else FINGER_OPEN
        cube, other = rng.permutation(len(COLORS))[:2]
        where = data.qpos[CUBE_QPOS * cube :]
        situation = rng.random()
        if situation < 0.35:
            hand[:2] = where[:2] + rng.normal(0.0, 0.015, 2)
        elif situation < 0.50:
            where[:3] = hand
            fingers = CUBE_HALF
        elif situation < 0.55:
            where[:3] = data.qpos[CUBE_QPOS * other :][:3] + np.array([0.0, 0.0, 2 * CUBE_HALF])
        data.qpos[HAND] = hand
        data.qpos[FINGERS] = fingers
        mujoco.mj_forward(self.model, data)
        positions = np.full((len(self.meanings), _MAX_NAMED, 3), np.nan)
        for row, named in zip(positions, self.meanings, strict=True):
            row[: len(named)] = cube_positions(data)[list(named)]
        robot = np.append(data.qpos[HAND], data.qpos[FINGERS].sum())
        return GroundingScene(self.instructions, positions, robot)

    def _instruction(self, episode: np.ndarray) -> int:
        named = (int(episode[OBJECT]), int(episode[BASE]))
        return next(i for i, cubes in enumerate(self.meanings) if (cubes[0], cubes[-1]) == named)


def place_cubes(data: mujoco.MjData, rng: np.random.Generator) -> None:
    """Lay the cubes on the table at random, at least 8.5 cm apart, turned by up to 20 degrees."""
    while True:
        xy = rng.uniform(-_CUBE_AREA, _CUBE_AREA, (len(COLORS), 2))
        gaps = [np.linalg.norm(xy[i] - xy[j]) for i in range(len(COLORS)) for j in range(i)]
        if min(gaps) > _CUBE_SPACING:
            break
    half_yaw = rng.uniform(-0.175, 0.175, len(COLORS))
    for i in range(len(COLORS)):
        pose = [*xy[i], CUBE_HALF, np.cos(half_yaw[i]), 0.0, 0.0, np.sin(half_yaw[i])]
        data.qpos[CUBE_QPOS * i : CUBE_QPOS * (i + 1)] = pose


def cube_positions(data: mujoco.MjData) -> np.ndarray:
    """Centres of the cubes (3, 3) in metres."""
    return data.qpos[: CUBE_QPOS * len(COLORS)].reshape(len(COLORS), CUBE_QPOS)[:, :3]


@dataclass(frozen=True)
class Phase:
    """One motion of the scripted expert."""

    goal: np.ndarray
    """Where the commanded position goes, as far as one step allows."""
    closed: bool = False
    done: bool = False
    """Whether the next phase begins."""


def follow(episode: np.ndarray, phases: Sequence[Phase]) -> np.ndarray:
    """The expert's action in the phase that the episode is in, after those that are done."""
    while phases[int(episode[PHASE])].done:
        episode[PHASE] += 1
    phase = phases[int(episode[PHASE])]
    motion = np.clip((phase.goal - episode[COMMAND]) / TRANSLATION, -1.0, 1.0)
    return np.append(motion, -1.0 if phase.closed else 1.0).astype(np.float32)


def near(position: np.ndarray, goal: np.ndarray | float, tolerance: float) -> bool:
    """Whether `position` is within `tolerance` metres of `goal` along every axis."""
    return bool(np.abs(position - goal).max() < tolerance)
