"""Camera images as the published evaluation transforms prepare them: crop, resize, back to bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_CPU_PIXELS = 2**18
_GPU_PIXELS = 2**25
"""Pixels resized at once: their float copy stays in a CPU's cache, and below 0.5 GB on a GPU."""


def prepare_images(views: Sequence[Tensor], *, size: int, crop_scale: float) -> Tensor:
    """Crop the centre and resize, on the images' device, all environments and cameras alike.

    The arithmetic of Isaac-GR00T's evaluation transforms (gr00t/data/transform/video.py, torchvision backend): the
    crop's sides are rounded down, its offset is rounded half to even, pixels are resized as float32 in [0, 1] by a
    triangle filter that widens when it shrinks, and fractions of the result are cut off. Where nothing has to be
    cropped or resized, the images of a single camera are returned as they are, without a copy.

    Args:
        views: (B, H, W, 3) uint8 of each of V cameras.
        size: Height and width of the result, in pixels.
        crop_scale: Part of each side that is kept, in (0, 1].

    Returns:
        (B, V, size, size, 3) uint8.
    """
    cropped = [_center_crop(images, crop_scale) for images in views]
    if len(cropped) == 1 and cropped[0].shape[1:3] == (size, size):
        return cropped[0].unsqueeze(1)
    prepared = views[0].new_empty((len(views[0]), len(views), size, size, 3))
    for images, target in zip(cropped, prepared.unbind(1), strict=True):
        if images.shape[1:3] == (size, size):
            target.copy_(images)
            continue
        at_once = max(1, (_CPU_PIXELS if images.is_cpu else _GPU_PIXELS) // (images.shape[1] * images.shape[2]))
        for part, source in zip(target.split(at_once), images.split(at_once), strict=True):
            part.copy_(_resize(source, size))
    return prepared


def _center_crop(images: Tensor, scale: float) -> Tensor:
    height, width = images.shape[1:3]
    kept_height, kept_width = int(height * scale), int(width * scale)
    top, left = round((height - kept_height) / 2), round((width - kept_width) / 2)
    return images[:, top : top + kept_height, left : left + kept_width]


def _resize(images: Tensor, size: int) -> Tensor:
    """(N, H, W, 3) uint8 to (N, size, size, 3) uint8."""
    pixels = images.permute(0, 3, 1, 2).float().div_(255)
    resized = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    return (resized * 255).to(torch.uint8).permute(0, 2, 3, 1)
