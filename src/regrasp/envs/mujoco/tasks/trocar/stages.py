"""The reference's stage machine (`isaaclab_tasks`, assemble_trocar, reward terms), called once per control step."""

from __future__ import annotations

import numpy as np

from regrasp.envs.mujoco.tasks.trocar.scene import BORE, TABLE_HEIGHT, Poses

NUM_STAGES = 4
"""Lifted, tips met, inserted, placed; an episode is in stage 0 to 4 and never goes back."""
LIFT_HEIGHT = TABLE_HEIGHT + 0.15
TIP_DISTANCE = 0.015
INSERT_ANGLE = 0.15
INSERT_DISTANCE = 0.05
ZONE = np.array([[-1.8, 1.5, -np.inf], [-1.4, 1.8, 0.9]])
"""Lowest and highest x, y and z of a placed object."""
DROP_HEIGHT = 0.5
TRUE_DEPTH = 0.02
"""How deep, in metres, the rod must be in the tube to count as truly inserted."""


def reached(poses: Poses) -> np.ndarray:
    """(4,) bool: which stage's condition holds, whatever came before."""
    lifted = (poses.centres[:, 2] > LIFT_HEIGHT).all()
    met = _distance(poses.tips) < TIP_DISTANCE
    inserted = _angle(poses) < INSERT_ANGLE and _distance(poses.centres) < INSERT_DISTANCE
    placed = ((poses.centres >= ZONE[0]) & (poses.centres <= ZONE[1])).all()
    return np.array([lifted, met, inserted, placed])


def advance(stage: int, conditions: np.ndarray) -> int:
    """The stage after this step; several may be completed at once."""
    while stage < NUM_STAGES and conditions[stage]:
        stage += 1
    return stage


def progress(poses: Poses) -> np.ndarray:
    """(4,) in [0, 1]: the reference's dense rewards of the four stages."""
    distance, angle = _distance(poses.centres), _angle(poses)
    excess = max(angle - 0.10, 0.0)
    near = np.exp(-(distance**2) / (2 * 0.05**2)) if angle < 0.10 else 0.0
    conditions = reached(poses)
    return np.array(
        [
            float(conditions[0]),
            np.exp(-(_distance(poses.tips) ** 2) / (2 * 0.02**2)),
            np.exp(-(excess**2) / (2 * 0.2**2)) * near,
            float(conditions[3]),
        ]
    )


def dense_reward(before: int, stage: int, poses: Poses, locked: np.ndarray, step_seconds: float) -> float:
    """Progress of the present stage plus, for completed ones, their progress when they were completed, per second.

    Args:
        before: Stage before this step.
        stage: Stage after it.
        poses: The objects.
        locked: (4,) progress at completion; updated in place.
        step_seconds: Seconds per control step.
    """
    now = progress(poses)
    locked[before:stage] = now[before:stage]
    present = now[stage] if stage < NUM_STAGES else 0.0
    return float(locked[:stage].sum() + present) * step_seconds


def insertion_depth(poses: Poses) -> float:
    """How far the rod's tip is inside the tube, in metres; 0 unless it went in through the opening.

    The reference's third stage looks at centres and directions only: a rod beside the tube satisfies it too.
    """
    (opening, tip), (axis, rod) = poses.tips, poses.axes
    depth = float((tip - opening) @ axis)
    slope = float(rod @ axis)
    if depth <= 0 or slope <= 0:
        return 0.0
    crossing = tip - rod * (depth / slope)
    off = [np.linalg.norm(point - opening - ((point - opening) @ axis) * axis) for point in (tip, crossing)]
    return depth if max(off) < BORE else 0.0


def dropped(poses: Poses) -> bool:
    """Whether an object has left the table."""
    return bool((poses.centres[:, 2] < DROP_HEIGHT).any())


def _distance(points: np.ndarray) -> float:
    return float(np.linalg.norm(points[0] - points[1]))


def _angle(poses: Poses) -> float:
    return float(np.arccos(min(1.0, abs(float(poses.axes[0] @ poses.axes[1])))))
