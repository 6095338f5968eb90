"""Joints of the robot in `robot.xml`, a Unitree G1 with two Dex3 hands, in the orders of the reference."""

from __future__ import annotations

import numpy as np

SIDES = ("left", "right")

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
ACTION_OFFSETS = np.array([-0.3 if name.endswith("elbow_joint") else 0.0 for name in ACTION_JOINTS])
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
