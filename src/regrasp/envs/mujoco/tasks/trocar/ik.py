"""Inverse kinematics of both arms, by mink."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np

from regrasp.envs.mujoco.tasks.trocar.robot import ARM_JOINTS, SIDES
from regrasp.errors import UserError

try:
    import mink
except ImportError as error:
    raise UserError(
        "The trocar task's expert needs the package mink",
        fix='pip install "regrasp[trocar]"',
    ) from error

POSTURE = np.array([0, 0.1, -0.3, 0, 1.6, 0.3, -0.3, -0.3, 0, 0.2, 0.2, -1.5, 0.2, 0.4])
"""Arm joints, in radians, that the redundant directions tend to."""
_ORIENTATION_COST = (0.15, 0.15, 0.05)
"""Metres per radian about the hand's axes: it may roll about the object that it holds, which is its z axis."""
_POSTURE_COST = 0.01
_DAMPING = 1e-4
_LIMIT_MARGIN = 0.01
_STEP_SECONDS = 1.0


class ArmSolver:
    """Arm joints (14,) that bring both hands to given poses. Keeps nothing between calls."""

    def __init__(self) -> None:
        spec = mujoco.MjSpec.from_file(str(Path(__file__).with_name("robot.xml")))
        for fixed in [part for part in (*spec.actuators, *spec.joints) if part.name not in ARM_JOINTS]:
            spec.delete(fixed)
        model = spec.compile()
        self._address = [model.joint(name).qposadr[0] for name in ARM_JOINTS]
        self._configuration = mink.Configuration(model)
        self._hands = [mink.FrameTask(f"{side}_grasp", "site", 1.0, _ORIENTATION_COST) for side in SIDES]
        self._posture = mink.PostureTask(model, _POSTURE_COST)
        self._posture.set_target(self._positions(POSTURE))
        self._limits = [mink.ConfigurationLimit(model, min_distance_from_limits=_LIMIT_MARGIN)]

    def solve(self, arms: np.ndarray, positions: np.ndarray, rotations: np.ndarray, iterations: int) -> np.ndarray:
        """Improve `arms` (14,) by damped least squares within the joints' limits.

        Args:
            arms: Where to begin, in radians.
            positions: (2, 3) metres, left then right.
            rotations: (2, 3, 3).
            iterations: Steps; 3 follow a moving target, 100 reach a distant one.
        """
        for task, position, rotation in zip(self._hands, positions, rotations, strict=True):
            frame = mink.SE3.from_rotation_and_translation(mink.SO3.from_matrix(rotation), position)
            task.set_target(frame)
        self._configuration.update(self._positions(arms))
        for _ in range(iterations):
            velocity = mink.solve_ik(
                self._configuration,
                [*self._hands, self._posture],
                _STEP_SECONDS,
                solver="daqp",
                damping=_DAMPING,
                limits=self._limits,
            )
            self._configuration.integrate_inplace(velocity, _STEP_SECONDS)
        return self._configuration.q[self._address]

    def _positions(self, arms: np.ndarray) -> np.ndarray:
        positions = np.zeros(len(self._address))
        positions[self._address] = arms
        return positions


def rotation(vector: np.ndarray) -> np.ndarray:
    """Matrix (3, 3) of a rotation vector (3,) in radians."""
    return mink.SO3.exp(vector).as_matrix()
