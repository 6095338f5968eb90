"""A scripted expert: both hands grasp from above, lift, align the axes, insert, and put the assembly down.

It sees the true object poses. What it remembers is in the episode's memory, so that a restored episode goes on bit
for bit, and one control step gets one answer, however often it is asked.
"""

from __future__ import annotations

from enum import IntEnum

import mujoco
import numpy as np

from regrasp.envs.mujoco.tasks.trocar.ik import POSTURE, ArmSolver, rotation
from regrasp.envs.mujoco.tasks.trocar.robot import ACTION_JOINTS, ACTION_OFFSETS, ARM_JOINTS, HAND_JOINTS
from regrasp.envs.mujoco.tasks.trocar.scene import GRIPS, TIPS, Layout

HOVER = 0.07
_LIFT = np.array([[0.03, 0.0, 0.17], [0.0, 0.0, 0.17]])
"""The trocar also moves away from the robot, where the left wrist has room to turn. The puncture device also moves
along y, until its tip is as far from the tube's opening as before the touch: then they cannot meet on the way."""
MEETING_POINT = np.array([-1.54, 1.86, 1.03])
"""Where the tube's opening waits for the rod."""
PLACE = np.array([-1.56, 1.765, 0.878])
"""Where the trocar's centre is put down, inside the zone of the last stage."""
APART, TOUCHING, DEPTH = 0.03, 0.006, 0.055
_PITCH = 0.35
"""The fingers point down by this angle, so that their pads are vertical."""
_AXIS = np.array([0.0, 1.0, 0.0])

_GAIN = 0.12
_MAX_CORRECTION, _MAX_TURN = 0.004, 0.03
_LAG = 0.25
"""Without it the correction winds up while the arm is still moving, and throws the object."""

_OPEN = np.array([0, 0.1, 0.3, *np.radians([-25, -45, -25, -45])])
_CLOSED = np.array([0, 0.42, 0.5, *np.radians([-58, -50, -58, -50])])
_MIRROR = np.array([1.0, -1.0])
_RESTING = np.zeros(len(ACTION_JOINTS) - len(ARM_JOINTS) - len(HAND_JOINTS))
"""Legs and waist, the first of an action."""
_CLOSING_SHARE = 0.7
"""Part of its phase in which the hand closes; then the grip settles."""


class Phase(IntEnum):
    """What the hands are doing."""

    REACH = 0
    DESCEND = 1
    CLOSE = 2
    LIFT = 3
    ALIGN = 4
    TOUCH = 5
    INSERT = 6
    PLACE = 7
    HOLD = 8


_STEPS = {
    Phase.REACH: (32, 0),
    Phase.DESCEND: (18, 2),
    Phase.CLOSE: (14, 0),
    Phase.LIFT: (30, 2),
    Phase.ALIGN: (34, 5),
    Phase.TOUCH: (14, 2),
    Phase.INSERT: (24, 4),
    Phase.PLACE: (46, 14),
    Phase.HOLD: (1, 0),
}
"""Control steps of motion, then of settling."""


class Expert:
    """Answers with the next action (43,); keeps nothing but the robot's geometry.

    Args:
        model: The whole scene.
        layout: Where its objects are.
        squeeze: How far holding hands are commanded to close, from 0 (open) to 1 (closed).
    """

    def __init__(self, model: mujoco.MjModel, layout: Layout, squeeze: float) -> None:
        self._layout = layout
        self._squeeze = squeeze
        self._solver = ArmSolver()
        self._controls = [model.actuator(name).id for name in ARM_JOINTS + HAND_JOINTS]

    def __call__(self, data: mujoco.MjData, memory: np.void) -> np.ndarray:
        """The action for the present state."""
        if memory["answered"] == memory["clock"] + 1:
            return memory["action"].copy()
        if memory["answered"] == 0:
            self._begin_reach(data, memory)
        phase = Phase(int(memory["phase"]))
        motion, settling = _STEPS[phase]
        share = (memory["tick"] + 1) / motion
        hands = self._move(phase, share, data, memory)
        memory["action"][:] = np.concatenate([_RESTING, memory["arms"], hands]) - ACTION_OFFSETS
        memory["answered"] = memory["clock"] + 1
        memory["tick"] += 1
        if memory["tick"] == motion + settling and phase != Phase.HOLD:
            memory["phase"], memory["tick"] = phase + 1, 0
        return memory["action"].copy()

    def _begin_reach(self, data: mujoco.MjData, memory: np.void) -> None:
        poses = self._layout.poses(data)
        commanded = data.ctrl[self._controls]
        memory["arms"][:] = memory["start_arms"][:] = commanded[: len(ARM_JOINTS)]
        memory["start_hands"][:] = commanded[len(ARM_JOINTS) :]
        memory["hand_position"][:] = poses.centres + GRIPS[:, None] * poses.axes
        memory["hand_rotation"][:] = [_grasp(axis) for axis in -_MIRROR[:, None] * poses.axes]
        above = memory["hand_position"] + [0.0, 0.0, HOVER]
        memory["goal_arms"][:] = self._solver.solve(POSTURE, above, memory["hand_rotation"], 60)

    def _move(self, phase: Phase, share: float, data: mujoco.MjData, memory: np.void) -> np.ndarray:
        """Set the arms' targets and return the hands' (14,)."""
        smooth = _min_jerk(share)
        if phase == Phase.REACH:
            memory["arms"][:] = _between(memory["start_arms"], memory["goal_arms"], smooth)
            return _between(memory["start_hands"], self._fingers(0.0), smooth)
        if phase == Phase.DESCEND:
            self._follow(memory, memory["hand_position"] + [0.0, 0.0, HOVER * (1 - smooth)])
            return self._fingers(0.0)
        if phase == Phase.CLOSE:
            return self._fingers(min(1.0, share / _CLOSING_SHARE))
        if phase != Phase.HOLD:
            self._carry(phase, smooth, _min_jerk(share - 1 / _STEPS[phase][0]), data, memory)
        return self._fingers(1.0)

    def _fingers(self, closed: float) -> np.ndarray:
        """Joint targets (14,) of both hands, from 0 (open) to 1 (holding)."""
        left = _between(_OPEN, _CLOSED, closed * self._squeeze)
        return np.concatenate(_MIRROR[:, None] * left)

    def _follow(self, memory: np.void, positions: np.ndarray) -> None:
        memory["arms"][:] = self._solver.solve(memory["arms"], positions, memory["hand_rotation"], 3)

    def _carry(self, phase: Phase, smooth: float, before: float, data: mujoco.MjData, memory: np.void) -> None:
        """Move the hands so that the held objects move from their start to their goal.

        Hands move as the objects should, plus a slow correction by what is seen of the objects.
        """
        poses = self._layout.poses(data)
        if memory["tick"] == 0:
            _plan(phase, poses.centres, poses.axes, memory)
        motion = (smooth - before) * (memory["goal"] - memory["start"])
        axes = _unit(_between(memory["start_axis"], memory["goal_axis"], smooth))
        old_axes = _unit(_between(memory["start_axis"], memory["goal_axis"], before))
        desired = _between(memory["start"], memory["goal"], smooth)
        memory["reference"][:] += _LAG * (desired - memory["reference"])
        memory["reference_axis"][:] += _LAG * (axes - memory["reference_axis"])
        gain = 0.0 if phase == Phase.LIFT else _GAIN
        error = gain * (memory["reference"] - poses.centres)
        turn = gain * np.cross(poses.axes, memory["reference_axis"])
        memory["hand_position"][:] += motion + np.clip(error, -_MAX_CORRECTION, _MAX_CORRECTION)
        turns = np.clip(turn, -_MAX_TURN, _MAX_TURN) + np.cross(old_axes, axes)
        for i, vector in enumerate(turns):
            memory["hand_rotation"][i] = rotation(vector) @ memory["hand_rotation"][i]
        self._follow(memory, memory["hand_position"])


def _plan(phase: Phase, centres: np.ndarray, axes: np.ndarray, memory: np.void) -> None:
    """Where the objects are to go in this phase, from where the last one meant to leave them."""
    first = phase == Phase.LIFT
    memory["start"][:] = centres if first else memory["goal"]
    memory["start_axis"][:] = axes if first else memory["goal_axis"]
    if first:
        memory["reference"][:], memory["reference_axis"][:] = centres, axes
        memory["goal"][:], memory["goal_axis"][:] = centres + _LIFT, axes
        memory["goal"][1, 1] = centres[0, 1] + TIPS[0] - APART - TIPS[1]
        return
    memory["goal_axis"][:] = _AXIS
    if phase == Phase.PLACE:
        memory["goal"][:] = PLACE + 0.02 * _AXIS + np.stack([np.zeros(3), centres[1] - centres[0]])
        return
    ahead = {Phase.ALIGN: -APART, Phase.TOUCH: -TOUCHING, Phase.INSERT: DEPTH}[phase]
    memory["goal"][0] = MEETING_POINT - TIPS[0] * _AXIS
    memory["goal"][1] = MEETING_POINT + (ahead - TIPS[1]) * _AXIS


def _grasp(axis: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) of a hand, palm down, whose z axis is `axis`."""
    forward = np.array([np.cos(_PITCH), 0.0, -np.sin(_PITCH)])
    forward = _unit(forward - axis * (forward @ axis))
    return np.stack([forward, np.cross(axis, forward), axis], 1)


def _min_jerk(share: float) -> float:
    """The fraction of a motion's length that is done after a `share` of its time (Flash and Hogan, 1985)."""
    t = min(max(share, 0.0), 1.0)
    return t**3 * (10 - 15 * t + 6 * t * t)


def _between(start: np.ndarray, end: np.ndarray, share: float) -> np.ndarray:
    return start + share * (end - start)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
