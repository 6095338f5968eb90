"""Unitree G1 with two Dex3 hands on a fixed base, of capsules, boxes and spheres."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import mujoco
import numpy as np

SIDES = ("left", "right")
BASE = (-1.84919, 1.94, 0.81168)
"""Position of the pelvis; the robot faces +x."""
GRASP_OFFSET = np.array([0.122, -0.081, 0.0])
"""Between the fingertips and the thumb of a closing left hand, in the frame of its wrist; right: y negated."""

_LEG = ("hip_pitch", "hip_roll", "hip_yaw", "knee", "ankle_pitch", "ankle_roll")
_WAIST = ("waist_yaw_joint", "waist_roll_joint", "waist_pitch_joint")
_ARM = ("shoulder_pitch", "shoulder_roll", "shoulder_yaw", "elbow", "wrist_roll", "wrist_pitch", "wrist_yaw")
_FINGERS = ("thumb_0", "thumb_1", "thumb_2", "middle_0", "middle_1", "index_0", "index_1")

ARM_JOINTS = tuple(f"{side}_{name}_joint" for side in SIDES for name in _ARM)
HAND_JOINTS = tuple(f"{side}_hand_{name}_joint" for side in SIDES for name in _FINGERS)
ACTION_JOINTS = (*(f"{side}_{name}_joint" for name in _LEG for side in SIDES), *_WAIST, *ARM_JOINTS, *HAND_JOINTS)
"""Joints in the order of the reference's action: the legs' alternate between left and right."""
BODY_JOINTS = (*(f"{side}_{name}_joint" for side in SIDES for name in _LEG), *_WAIST, *ARM_JOINTS)
"""Joints in the order of the reference's observation `robot_joint_state`."""
ACTION_OFFSETS = {"left_elbow_joint": -0.3, "right_elbow_joint": -0.3}
"""What the reference adds to an action before it becomes a joint's target, in radians."""

_ARMS_AT_START = (
    *(-0.754599, 0.550010, -0.399298, 0.278886, 0.320559, -0.203525, -0.387435),
    *(-0.340858, -0.186152, 0.015023, -0.777159, 0.019805, 1.182285, -0.022848),
)
_FINGERS_AT_START = np.radians([0, 0, 0, -60, -40, -60, -40])
START = dict(zip(ARM_JOINTS, _ARMS_AT_START, strict=True)) | dict(
    zip(HAND_JOINTS, [*_FINGERS_AT_START, *-_FINGERS_AT_START], strict=True)
)
"""Joint positions at the start of an episode, in radians; joints that are not named are at 0."""

ROBOT_CONTACT = (1, 2)
SCENE_CONTACT = (2, 3)
"""Contact type and affinity: the robot touches the scene and never itself."""
GRIP = {"condim": 4, "friction": [2.0, 0.02, 0.001], "solref": [0.01, 1.0]}
"""Contact of whatever holds or is held. Friction alone carries: at 1.5 a held object begins to turn in the hand."""

_LIGHT = (0.80, 0.81, 0.83, 1.0)
_DARK = (0.20, 0.21, 0.24, 1.0)
_PAD = (0.10, 0.10, 0.12, 1.0)
_FOREARM = ("left_elbow_link", "right_elbow_link")
_WRIST_CAMERA = np.array([-0.03, -0.075, 0.06])
"""On the left wrist; right: y negated. Ours: the reference's is given in the frame of a link that is not published."""
_HEAD_CAMERA = ((0.0576235, 0.01753, 0.42987), 0.8308)
"""Position on the torso and pitch, in radians."""


@dataclass(frozen=True)
class Link:
    """A row of the kinematic table."""

    name: str
    parent: str
    joint: str
    position: list[float]
    quaternion: list[float]
    axis: list[float]
    limits: list[float]
    effort: float
    mass: float

    @property
    def sign(self) -> int:
        """1 on the left, -1 on the right."""
        return -1 if self.name.startswith("right") else 1


@cache
def links() -> tuple[Link, ...]:
    """The kinematic table, parents first."""
    table = json.loads(resources.files("regrasp.envs.mujoco.tasks.trocar").joinpath("g1_dex3.json").read_text())
    return tuple(Link(*row) for row in table["links"])


def add_robot(spec: mujoco.MjSpec, movable: Collection[str] = ACTION_JOINTS) -> None:
    """Add the robot, with an actuator for each joint in `movable`; the other joints are rigid at 0."""
    pelvis = spec.worldbody.add_body(name="pelvis", pos=BASE, mass=3.813, inertia=[0.02] * 3, explicitinertial=True)
    add_geom(pelvis, mujoco.mjtGeom.mjGEOM_BOX, [0.06, 0.08, 0.05], _DARK)
    bodies = {"pelvis": pelvis}
    for link in links():
        body = bodies[link.parent].add_body(
            name=link.name,
            pos=link.position,
            quat=link.quaternion,
            gravcomp=1.0,
            mass=link.mass,
            ipos=_centre_of_mass(link),
            inertia=[0.4 * link.mass * (0.015 if "_hand_" in link.name else 0.04) ** 2] * 3,
            explicitinertial=True,
        )
        bodies[link.name] = body
        if link.joint in movable:
            _add_joint(body, link)
        _add_shape(body, link)
    for link in links():
        if link.joint in movable:
            _add_actuator(spec, link)


def add_geom(
    body: Any,
    kind: mujoco.mjtGeom,
    size: Sequence[float],
    color: Sequence[float],
    contact: tuple[int, int] = (0, 0),
    **properties: Any,
) -> None:
    """Add a massless geom of the given half sizes in metres; without `contact` it is only seen."""
    padded = [*size, *[0.0] * (3 - len(size))]
    body.add_geom(
        type=kind, size=padded, rgba=color, mass=0.0, contype=contact[0], conaffinity=contact[1], **properties
    )


def look(forward: Sequence[float], up: Sequence[float] = (0.0, 0.0, 1.0)) -> np.ndarray:
    """Quaternion (4,) of a camera that looks along `forward` with `up` above."""
    back = -np.asarray(forward) / np.linalg.norm(forward)
    right = np.cross(up, back)
    right /= np.linalg.norm(right)
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, np.stack([right, np.cross(back, right), back], 1).ravel())
    return quaternion


def _centre_of_mass(link: Link) -> list[float]:
    if "_hand_" not in link.name:
        return [0.0, 0.0, 0.0]
    return [0.0, -0.02 * link.sign, 0.0] if "thumb" in link.name else [0.02, 0.0, 0.0]


def _add_joint(body: Any, link: Link) -> None:
    hand = "_hand_" in link.name
    body.add_joint(
        name=link.joint,
        type=mujoco.mjtJoint.mjJNT_HINGE,
        axis=link.axis,
        range=link.limits,
        limited=True,
        armature=0.002 if hand else 0.03,
        frictionloss=0.01 if hand else 0.03,
    )


def _gains(joint: str) -> tuple[float, float]:
    """Stiffness in N m/rad and damping in N m s/rad."""
    if "_hand_" in joint:
        return 5.0, 0.25
    if "wrist" in joint:
        return 100.0, 5.0
    return (300.0, 20.0) if joint in ARM_JOINTS else (500.0, 30.0)


def _add_actuator(spec: mujoco.MjSpec, link: Link) -> None:
    stiffness, damping = _gains(link.joint)
    actuator = spec.add_actuator(name=link.joint, target=link.joint, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    actuator.set_to_position(kp=stiffness, kv=damping)
    actuator.ctrlrange, actuator.ctrllimited = link.limits, True
    actuator.forcerange, actuator.forcelimited = [-link.effort, link.effort], True


def _add_shape(body: Any, link: Link) -> None:
    if "_hand_" in link.name:
        _add_finger(body, link)
    elif "wrist_yaw" in link.name:
        _add_palm(body, link)
    elif link.name == "torso_link":
        _add_torso(body)
    else:
        _add_limb(body, link)


def _add_finger(body: Any, link: Link) -> None:
    joint = link.joint.removesuffix("_joint")
    capsule = mujoco.mjtGeom.mjGEOM_CAPSULE
    if joint.endswith("thumb_0"):
        add_geom(body, capsule, [0.012], _DARK, fromto=[0, 0, 0, -0.0025, -0.0193 * link.sign, 0])
        return
    thumb, tip = "thumb" in joint, joint.endswith(("thumb_2", "middle_1", "index_1"))
    length = (0.042 if thumb else 0.045) if tip else 0.0458
    end = [0.0, -length * link.sign, 0.0] if thumb else [length, 0.0, 0.0]
    radius, color = (0.009, _PAD) if tip else (0.011, _LIGHT)
    add_geom(body, capsule, [radius], color, ROBOT_CONTACT, fromto=[0, 0, 0, *end], **GRIP)


def _add_palm(body: Any, link: Link) -> None:
    side = SIDES[0] if link.sign > 0 else SIDES[1]
    mirror = np.array([1.0, link.sign, 1.0])
    box, capsule = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CAPSULE
    add_geom(body, box, [0.045, 0.014, 0.034], _LIGHT, ROBOT_CONTACT, pos=mirror * [0.0715, 0.003, 0.0])
    add_geom(body, capsule, [0.026], _DARK, fromto=[0, 0, 0, 0.03, 0, 0])
    body.add_site(name=f"{side}_grasp", pos=mirror * GRASP_OFFSET, size=[0.004, 0, 0], group=5)
    body.add_camera(name=f"{side}_wrist_camera", pos=mirror * _WRIST_CAMERA, quat=look([0.9, 0.0, -0.43]), fovy=61.4)


def _add_torso(body: Any) -> None:
    position, pitch = _HEAD_CAMERA
    add_geom(body, mujoco.mjtGeom.mjGEOM_BOX, [0.06, 0.09, 0.16], _LIGHT, pos=[0.0, 0.0, 0.16])
    add_geom(body, mujoco.mjtGeom.mjGEOM_SPHERE, [0.07], _DARK, pos=[0.0, 0.0, 0.43])
    body.add_camera(name="front_camera", pos=position, quat=look([np.cos(pitch), 0.0, -np.sin(pitch)]), fovy=68.3)


def _add_limb(body: Any, link: Link) -> None:
    """A capsule to the next joint; only the forearms collide."""
    child = next((child for child in links() if child.parent == link.name), None)
    if child is None or np.linalg.norm(child.position) < 0.03 or link.name.startswith("waist"):
        return
    forearm = link.name in _FOREARM
    contact = ROBOT_CONTACT if forearm or "wrist" in link.name else (0, 0)
    radius = 0.024 if forearm or "wrist" in link.name else 0.03
    capsule = mujoco.mjtGeom.mjGEOM_CAPSULE
    add_geom(body, capsule, [radius], _LIGHT, contact, fromto=[0, 0, 0, *child.position])
