"""The episode's own variables, as named fields of the flat vector that is saved with the physics."""

from __future__ import annotations

import numpy as np

from regrasp.envs.mujoco.tasks.trocar.robot import ACTION_JOINTS, ARM_JOINTS, HAND_JOINTS

_NUMBER, _ARMS, _HANDS = "f8", ("f8", len(ARM_JOINTS)), ("f8", len(HAND_JOINTS))
_POINTS = ("f8", (2, 3))

MEMORY = np.dtype(
    [
        ("clock", _NUMBER),  # control steps executed
        ("stage", _NUMBER),
        ("locked", "f8", 4),  # dense rewards of completed stages
        ("depth", _NUMBER),  # deepest true insertion so far, metres
        # The expert, between its answers.
        ("answered", _NUMBER),  # clock of the last answer plus 1; 0: none yet
        ("action", "f8", len(ACTION_JOINTS)),
        ("phase", _NUMBER),
        ("tick", _NUMBER),  # answers given in this phase
        ("arms", *_ARMS),  # last target
        ("start_arms", *_ARMS),
        ("goal_arms", *_ARMS),
        ("start_hands", *_HANDS),
        ("hand_position", *_POINTS),
        ("hand_rotation", "f8", (2, 3, 3)),
        ("start", *_POINTS),  # objects' centres at the start of the phase
        ("goal", *_POINTS),
        ("start_axis", *_POINTS),
        ("goal_axis", *_POINTS),
        ("reference", *_POINTS),  # where the objects should be by now
        ("reference_axis", *_POINTS),
    ]
)
SIZE = MEMORY.itemsize // 8


def memory_of(episode: np.ndarray) -> np.void:
    """The vector (SIZE,) float64 as a record that shares its memory."""
    return episode.view(MEMORY)[0]
