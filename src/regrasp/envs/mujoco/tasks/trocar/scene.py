"""Where table, tray, trocar and puncture device are around the robot; their shapes are in `scene.xml`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

from regrasp.envs.mujoco.tasks.trocar.robot import ACTION_JOINTS, START

TABLE_HEIGHT = 0.85483
OBJECTS = ("trocar_1", "trocar_2")
"""The trocar, then the puncture device."""
TIPS = np.array([-0.045, 0.045])
"""Where the tube opens and where the rod ends, along the object's axis."""
GRIPS = np.array([0.06, -0.065])
"""Middle of the handles along the object's axis."""
BORE = 0.0075
"""From the tube's axis to its walls, in metres."""
_YAWS = np.array([0.0, 0.0843])
"""By how much each object's axis is turned from the world's y axis, in radians."""


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
    model = mujoco.MjModel.from_xml_path(str(Path(__file__).with_name("scene.xml")))
    model.opt.timestep = timestep
    return model


class Layout:
    """Where robot and objects are in the arrays of `MjData`."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self.bodies = [model.body(name).id for name in OBJECTS]
        self._tray = model.body("tray").pos[:2]
        self._places = model.body_pos[self.bodies, :2]
        self._free = [model.joint(name).qposadr[0] for name in OBJECTS]
        self._start = {model.joint(name).qposadr[0]: value for name, value in START.items()}
        self._joints = [model.joint(name).qposadr[0] for name in ACTION_JOINTS]
        self._controls = [model.actuator(name).id for name in ACTION_JOINTS]

    def arrange(self, data: mujoco.MjData, yaw: float, shift: np.ndarray, jitter: np.ndarray) -> None:
        """Set the start in `data`, after a reset: the robot is told to hold its recorded joint positions.

        Args:
            data: Written to.
            yaw: By how much tray and objects are turned about the tray's centre, in radians.
            shift: (2,) metres by which tray and objects are moved.
            jitter: (2, 2) metres by which each object is moved besides.
        """
        for address, value in self._start.items():
            data.qpos[address] = value
        data.ctrl[self._controls] = data.qpos[self._joints]
        data.mocap_pos[0, :2] = self._tray + shift
        data.mocap_quat[0] = _about_z(yaw)
        turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
        for i, address in enumerate(self._free):
            data.qpos[address : address + 2] = self._tray + shift + turn @ (self._places[i] - self._tray) + jitter[i]
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
