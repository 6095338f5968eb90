"""Rotations of Isaac Lab 3.x, with the real part last."""

from __future__ import annotations

from typing import Any

import torch


def quat_from_euler_xyz(roll: Any, pitch: Any, yaw: Any) -> Any:
    assert not torch.stack([roll, pitch, yaw]).any(), "the rotation by nothing is all that is asked for"
    return torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(len(roll), 4)
