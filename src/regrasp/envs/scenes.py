"""Scenes of a task, with what instructions may name in them: what a backbone is grounded on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scenes:
    """N scenes of one task, with I instructions of which each names up to S objects."""

    instructions: tuple[str, ...]
    images: np.ndarray
    """(N, H, W, 3) uint8."""
    positions: np.ndarray
    """(N, I, S, 2) float32 metres: xy of the S objects that each instruction names; NaN past the last one."""
    pixels: np.ndarray
    """(N, I, S, 2) float32: the same objects in the image, (0, 0) top left and (1, 1) bottom right."""
    robot: np.ndarray
    """(N, D) float32 metres: what the robot's own sensors would say; D may be 0."""
