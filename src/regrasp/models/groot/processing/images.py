"""Camera images as the published evaluation transforms prepare them: crop, resize, back to bytes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CPU_PIXELS = 2**18
_GPU_PIXELS = 2**25
"""Pixels resized at once: their float copy stays in a CPU's cache, and below 0.5 GB on a GPU."""


def prepare_images(views: Tensor, *, size: int, crop_scale: float) -> Tensor:
    """Crop the centre and resize, on the images' device, all environments and cameras alike.

    The arithmetic of Isaac-GR00T's evaluation transforms (gr00t/data/transform/video.py, torchvision backend): the
    crop's sides are rounded down, its offset is rounded half to even, pixels are resized as float32 in [0, 1] by a
    triangle filter that widens when it shrinks, and fractions of the result are cut off. Where nothing has to be
    cropped or resized, the images are returned as they are.

    Args:
        views: (B, V, H, W, 3) uint8.
        size: Height and width of the result, in pixels.
        crop_scale: Part of each side that is kept, in (0, 1].

    Returns:
        (B, V, size, size, 3) uint8.
    """
    cropped = _center_crop(views, crop_scale)
    if cropped.shape[2:4] == (size, size):
        return cropped
    images = cropped.flatten(0, 1)
    resized = images.new_empty((len(images), size, size, 3))
    at_once = max(1, (_CPU_PIXELS if images.is_cpu else _GPU_PIXELS) // (images.shape[1] * images.shape[2]))
    for target, source in zip(resized.split(at_once), images.split(at_once), strict=True):
        target.copy_(_resize(source, size))
    return resized.unflatten(0, views.shape[:2])


def _center_crop(views: Tensor, scale: float) -> Tensor:
    height, width = views.shape[2:4]
    kept_height, kept_width = int(height * scale), int(width * scale)
    top, left = round((height - kept_height) / 2), round((width - kept_width) / 2)
    return views[:, :, top : top + kept_height, left : left + kept_width]


def _resize(images: Tensor, size: int) -> Tensor:
    """(N, H, W, 3) uint8 to (N, size, size, 3) uint8."""
    pixels = images.permute(0, 3, 1, 2).float().div_(255)
    resized = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    return (resized * 255).to(torch.uint8).permute(0, 2, 3, 1)
