"""Three coloured cubes on a table under a parallel gripper: the scene that the cube tasks share.

The gripper floats on three slides and is driven by relative Cartesian control, as Isaac Lab's IK-Rel tasks are: an
action is (dx, dy, dz, gripper) in [-1, 1]; one unit of translation moves the commanded position by 3 cm, a negative
gripper value closes and any other opens. Control runs at 10 Hz.
"""

from __future__ import annotations

from collections.abc import Mapping

import mujoco
import numpy as np

from regrasp.envs.mujoco.task import Camera, GroundingScene, Task

COLORS = ("red", "green", "blue")
_RGBA = ("0.87 0.12 0.13 1", "0.13 0.70 0.22 1", "0.13 0.28 0.92 1")
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

_CUBES = "".join(
    f"""
    <body name="{color}_cube" pos="0 0 {CUBE_HALF}">
      <freejoint/>
      <geom type="box" size="{CUBE_HALF} {CUBE_HALF} {CUBE_HALF}" rgba="{rgba}" mass="0.04"
            friction="1.5 0.02 0.001" condim="4"/>
    </body>"""
    for color, rgba in zip(COLORS, _RGBA, strict=True)
)

_FINGER = """
      <body name="{side}_finger" gravcomp="1">
        <joint name="{side}_finger" type="slide" axis="0 {sign} 0" range="0.005 {opening}" damping="8"/>
        <geom type="box" pos="0 {sign}.006 0.027" size="0.012 0.006 0.040" rgba="0.13 0.13 0.15 1" mass="0.05"
              friction="2 0.05 0.001" condim="4"/>
      </body>"""
_FINGERS = "".join(
    _FINGER.format(side=side, sign=sign, opening=FINGER_OPEN).replace(f"{sign}.006", f"{float(sign) * 0.006}")
    for side, sign in (("left", "1"), ("right", "-1"))
)

_SCENE = f"""
<mujoco model="cube table">
  <option timestep="0.01" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <global offwidth="512" offheight="512"/>
    <quality shadowsize="0" offsamples="0" numslices="8" numstacks="4"/>
    <map znear="0.02" zfar="5"/>
    <headlight ambient="0.5 0.5 0.5" diffuse="0.5 0.5 0.5" specular="0 0 0"/>
  </visual>
  <worldbody>
    <light pos="0.3 0 1" dir="-0.3 0 -1" castshadow="false" diffuse="0.35 0.35 0.35"/>
    <geom name="table" type="plane" size="3 3 0.1" rgba="0.66 0.60 0.53 1" friction="1 0.01 0.001"/>
    <camera name="front_camera" pos="0.36 0 0.36" xyaxes="0 1 0 -0.66 0 0.75" fovy="40"/>
    <camera name="overview" pos="0.46 -0.27 0.52" xyaxes="0.502 0.865 0 -0.565 0.328 0.757" fovy="38"/>{_CUBES}
    <body name="hand" gravcomp="1">
      <joint name="hand_x" type="slide" axis="1 0 0" damping="40"/>
      <joint name="hand_y" type="slide" axis="0 1 0" damping="40"/>
      <joint name="hand_z" type="slide" axis="0 0 1" damping="40"/>
      <geom type="box" pos="0 0 0.075" size="0.018 0.055 0.012" rgba="0.27 0.28 0.31 1" mass="0.4"/>
      <geom type="box" pos="0 0 0.100" size="0.012 0.012 0.020" rgba="0.90 0.78 0.20 1" mass="0.1"
            contype="0" conaffinity="0"/>
      <camera name="wrist_camera" pos="0.07 0 0.10" xyaxes="0 1 0 -0.8 0 0.6" fovy="70"/>{_FINGERS}
    </body>
  </worldbody>
  <actuator>
    <position joint="hand_x" kp="1000"/>
    <position joint="hand_y" kp="1000"/>
    <position joint="hand_z" kp="1000"/>
    <position joint="left_finger" kp="200" forcerange="-6 6"/>
    <position joint="right_finger" kp="200" forcerange="-6 6"/>
  </actuator>
</mujoco>
"""


class CubeTable(Task):
    """The scene, its actuation and its observations; subclasses say what the words ask for."""

    action_dim = 4
    physics_steps = 10
    episode_size = EPISODE_SIZE
    cameras = (Camera("front_camera", 84, 84), Camera("wrist_camera", 84, 84))
    video_camera = "overview"
    meanings: tuple[tuple[int, ...], ...]
    """For each instruction the cubes it names, in the order of their mention."""

    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_string(_SCENE)
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
        return GroundingScene(self.instructions, positions)

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


def towards(episode: np.ndarray, goal: np.ndarray, *, closed: bool) -> np.ndarray:
    """The action that moves the commanded position as far to `goal` as one step allows."""
    motion = np.clip((goal - episode[COMMAND]) / TRANSLATION, -1.0, 1.0)
    return np.append(motion, -1.0 if closed else 1.0).astype(np.float32)


def reached(position: np.ndarray, goal: np.ndarray, tolerance: float) -> bool:
    """Whether `position` is within `tolerance` metres of `goal` along every axis."""
    return bool(np.abs(position - goal).max() < tolerance)
