"""Table, tray, trocar and puncture device around the robot; poses as recorded in the reference.

The shapes are ours: the reference's meshes may not be redistributed. Along its own z axis, which lies along the
world's y axis at the start, the trocar is a square handle and an octagonal tube that opens at its lower end; the
puncture device is a square handle and a rod, whose tip is its upper end. The rod has a radius of 5 mm and the tube's
bore an apothem of 7.5 mm, so that 2.5 mm of clearance remain all around.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from regrasp.envs.mujoco.tasks.trocar.robot import ACTION_JOINTS, GRIP, SCENE_CONTACT, START, add_geom, add_robot, look

TABLE_HEIGHT = 0.85483
OBJECTS = ("trocar_1", "trocar_2")
"""The trocar, then the puncture device."""
TIPS = np.array([-0.045, 0.045])
"""Where the tube opens and where the rod ends, along the object's axis."""
GRIPS = np.array([0.06, -0.065])
"""Middle of the handles along the object's axis."""
BORE = 0.0075
ROD = 0.005
HANDLE = 0.012
"""Half the width of a handle."""
TRAY = np.array([-1.54919, 2.03365])
TRAY_FLOOR = 0.004
_PLACES = np.array([[-1.60202, 1.91362], [-1.50635, 1.90997]])
_YAWS = np.array([0.0, 0.0843])
"""By how much each object's axis is turned from the world's y axis, in radians."""
LYING_HEIGHT = TABLE_HEIGHT + TRAY_FLOOR + HANDLE + 0.0005

_ROOM = (-1.5, 1.9, 0.0)
_WALL = 0.0035
_TUBE = (-0.045, 0.02)
_ROD = (-0.025, 0.045)
_SMOOTH = {"condim": 3, "friction": [0.2, 0.005, 0.0001]}
_BOX = mujoco.mjtGeom.mjGEOM_BOX


@dataclass(frozen=True)
class Poses:
    """Both objects, the trocar first."""

    centres: np.ndarray
    """(2, 3) metres."""
    axes: np.ndarray
    """(2, 3) unit vectors along the objects' z axes."""

    @property
    def tips(self) -> np.ndarray:
        """(2, 3) metres: the tube's opening and the rod's end."""
        return self.centres + TIPS[:, None] * self.axes


def build_model(timestep: float) -> mujoco.MjModel:
    """The whole scene."""
    spec = mujoco.MjSpec()
    spec.modelname = "assemble trocar"
    spec.compiler.degree = False
    _set_options(spec, timestep)
    world = spec.worldbody
    world.add_light(pos=[-1.2, 1.6, 2.6], dir=[-0.1, 0.15, -1], diffuse=[0.6] * 3, castshadow=False)
    _add_room(world)
    table = (0.68, 0.62, 0.53, 1)
    add_geom(world, _BOX, [0.32, 0.7, 0.02], table, SCENE_CONTACT, pos=[-1.40, 1.94, TABLE_HEIGHT - 0.02])
    world.add_camera(name="overview", pos=[-0.86, 1.38, 1.50], quat=look([-0.70, 0.49, -0.56]), fovy=38)
    add_robot(spec)
    _add_tray(world)
    _add_trocar(world)
    _add_puncture_device(world)
    return spec.compile()


def _add_room(world: Any) -> None:
    """A floor and four walls, so that no camera looks into the void."""
    add_geom(world, mujoco.mjtGeom.mjGEOM_PLANE, [3, 3, 0.1], (0.42, 0.45, 0.49, 1), SCENE_CONTACT, pos=_ROOM)
    wall = (0.58, 0.62, 0.66, 1)
    for offset in (-2.5, 2.5):
        add_geom(world, _BOX, [0.05, 2.5, 1.5], wall, pos=[_ROOM[0] + offset, _ROOM[1], 1.5])
        add_geom(world, _BOX, [2.5, 0.05, 1.5], wall, pos=[_ROOM[0], _ROOM[1] + offset, 1.5])


def _set_options(spec: mujoco.MjSpec, timestep: float) -> None:
    option = spec.option
    option.timestep = timestep
    option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    option.impratio = 10
    option.iterations, option.ls_iterations = 20, 10
    spec.stat.extent = 1.0
    visual = spec.visual
    visual.quality.shadowsize, visual.quality.offsamples = 0, 0
    visual.quality.numslices, visual.quality.numstacks = 14, 7
    visual.global_.offwidth, visual.global_.offheight = 512, 512
    visual.map.znear, visual.map.zfar = 0.01, 20
    visual.headlight.ambient, visual.headlight.diffuse, visual.headlight.specular = [0.45] * 3, [0.4] * 3, [0.0] * 3


def _add_tray(world: Any) -> None:
    tray = world.add_body(name="tray", pos=[*TRAY, TABLE_HEIGHT], mocap=True)
    color, (x, y), wall = (0.24, 0.42, 0.66, 1), (0.12, 0.27), 0.008
    add_geom(tray, _BOX, [x, y, TRAY_FLOOR / 2], color, SCENE_CONTACT, pos=[0, 0, TRAY_FLOOR / 2])
    for sign in (-1, 1):
        add_geom(tray, _BOX, [0.003, y, wall], color, SCENE_CONTACT, pos=[sign * x, 0, wall])
        add_geom(tray, _BOX, [x, 0.003, wall], color, SCENE_CONTACT, pos=[0, sign * y, wall])


def _add_object(world: Any, index: int, color: tuple[float, ...], balance: float) -> Any:
    body = world.add_body(
        name=OBJECTS[index],
        pos=[*_PLACES[index], LYING_HEIGHT],
        mass=0.06,
        ipos=[0.0, 0.0, balance],
        inertia=[1.2e-4, 1.2e-4, 9.6e-6],
        explicitinertial=True,
    )
    body.add_freejoint(name=OBJECTS[index])
    add_geom(body, _BOX, [HANDLE, HANDLE, 0.04], color, SCENE_CONTACT, pos=[0, 0, GRIPS[index]], **GRIP)
    return body


def _add_trocar(world: Any) -> None:
    body = _add_object(world, 0, (0.16, 0.66, 0.36, 1), 0.03)
    half_length, middle = (_TUBE[1] - _TUBE[0]) / 2, sum(_TUBE) / 2
    half_width = (BORE + _WALL) * np.tan(np.pi / 8)
    for angle in np.arange(8) * np.pi / 4:
        radius = BORE + _WALL / 2
        add_geom(
            body,
            _BOX,
            [_WALL / 2, half_width, half_length],
            (0.93, 0.93, 0.95, 1),
            SCENE_CONTACT,
            pos=[radius * np.cos(angle), radius * np.sin(angle), middle],
            quat=[np.cos(angle / 2), 0, 0, np.sin(angle / 2)],
            **_SMOOTH,
        )


def _add_puncture_device(world: Any) -> None:
    body = _add_object(world, 1, (0.84, 0.24, 0.18, 1), -0.03)
    capsule = mujoco.mjtGeom.mjGEOM_CAPSULE
    ends = [0, 0, _ROD[0], 0, 0, _ROD[1] - ROD]
    add_geom(body, capsule, [ROD], (0.90, 0.76, 0.22, 1), SCENE_CONTACT, fromto=ends, **_SMOOTH)


class Layout:
    """Where robot and objects are in the arrays of `MjData`."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self.bodies = [model.body(name).id for name in OBJECTS]
        self._free = [model.joint(name).qposadr[0] for name in OBJECTS]
        self._start = {model.joint(name).qposadr[0]: value for name, value in START.items()}
        self._joints = [model.joint(name).qposadr[0] for name in ACTION_JOINTS]
        self._controls = [model.actuator(name).id for name in ACTION_JOINTS]

    def arrange(self, data: mujoco.MjData, yaw: float, shift: np.ndarray, jitter: np.ndarray) -> None:
        """Set the start, with the robot at its recorded joint positions, which it is told to hold.

        Args:
            data: Written to.
            yaw: By how much tray and objects are turned about the tray's centre, in radians.
            shift: (2,) metres by which tray and objects are moved.
            jitter: (2, 2) metres by which each object is moved besides.
        """
        for address, value in self._start.items():
            data.qpos[address] = value
        data.ctrl[self._controls] = data.qpos[self._joints]
        data.mocap_pos[0, :2] = TRAY + shift
        data.mocap_quat[0] = _about_z(yaw)
        turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
        for i, address in enumerate(self._free):
            data.qpos[address : address + 2] = TRAY + shift + turn @ (_PLACES[i] - TRAY) + jitter[i]
            data.qpos[address + 2] = LYING_HEIGHT
            data.qpos[address + 3 : address + 7] = lying(yaw + _YAWS[i])

    def place(self, data: mujoco.MjData, index: int, position: np.ndarray, quaternion: np.ndarray) -> None:
        """Put one object somewhere."""
        address = self._free[index]
        data.qpos[address : address + 7] = [*position, *quaternion]

    def poses(self, data: mujoco.MjData) -> Poses:
        """Where the objects are."""
        return Poses(data.xpos[self.bodies], data.xmat[self.bodies].reshape(2, 3, 3)[:, :, 2])


def lying(yaw: float) -> np.ndarray:
    """Quaternion (4,) of an object whose axis is the world's y axis turned by `yaw` about the vertical."""
    quaternion = np.empty(4)
    mujoco.mju_mulQuat(quaternion, _about_z(yaw), np.array([np.cos(np.pi / 4), -np.sin(np.pi / 4), 0.0, 0.0]))
    return quaternion


def _about_z(angle: float) -> np.ndarray:
    return np.array([np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)])
