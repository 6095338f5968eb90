"""Which image token shows an object: what grounding is taught besides positions."""

from __future__ import annotations

import torch
from torch import Tensor


def pointing_target(pixels: Tensor, grid: int, spread: float = 0.5) -> Tensor:
    """Which image token should be looked at: (..., grid * grid), a Gaussian around the object, summing to 1.

    Args:
        pixels: (..., 2) image coordinates, (0, 0) top left and (1, 1) bottom right.
        grid: Image tokens along one side, in row-major order.
        spread: Standard deviation in tokens.
    """
    centers = (torch.arange(grid, device=pixels.device) + 0.5) / grid
    squared = (pixels[..., 1, None, None] - centers[:, None]) ** 2 + (pixels[..., 0, None, None] - centers) ** 2
    return (-squared * (grid / spread) ** 2 / 2).flatten(-2).softmax(dim=-1)
