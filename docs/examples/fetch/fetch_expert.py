"""A scripted expert for FetchPickAndPlace of Gymnasium-Robotics: over the block, down, close, to the goal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

OPEN, CLOSED = 1.0, -1.0
_GAIN = 12.0
"""Action per metre; an action of 1 moves the gripper by about 3 cm."""


def expert(env: Any) -> Callable[[Any], np.ndarray]:
    """A new episode's expert; it remembers whether it has begun to close the gripper."""
    closing = 0

    def act(observation: Any) -> np.ndarray:
        nonlocal closing
        state, goal = observation["observation"], observation["desired_goal"]
        gripper, block = state[:3], state[3:6]
        offset = block - gripper
        if closing and np.linalg.norm(offset) > 0.05:
            closing = 0  # it slipped
        if not closing and np.linalg.norm(offset[:2]) > 0.015 and offset[2] > -0.1:
            return _towards(offset + np.array([0.0, 0.0, 0.05]), OPEN)
        if not closing and np.linalg.norm(offset) > 0.015:
            return _towards(offset, OPEN)
        closing += 1
        return _towards(goal - block if closing > 3 else np.zeros(3), CLOSED)

    return act


def _towards(offset: np.ndarray, fingers: float) -> np.ndarray:
    return np.clip([*(_GAIN * offset), fingers], -1, 1).astype(np.float32)
