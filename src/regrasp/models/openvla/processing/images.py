"""Camera images as OpenVLA's processor prepares them: crop, resize, and each tower's normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regrasp.errors import UserError

CROP_AREA = 0.9
"""Part of the image that is kept where training cut out random parts of that size."""
LETTERBOX, NAIVE = "letterbox", "resize-naive"
PUBLISHED_MEANS = ((0.485, 0.456, 0.406), (0.5, 0.5, 0.5))
PUBLISHED_STDS = ((0.229, 0.224, 0.225), (0.5, 0.5, 0.5))
PREPROCESSOR_FILE = "preprocessor_config.json"
_SLAB = 2**18
"""Pixels resized at once, whose float copy stays in a cache."""


@dataclass(frozen=True)
class ImageSettings:
    """How images are prepared."""

    size: int
    """Height and width of the result, pixels."""
    means: tuple[tuple[float, ...], ...] = PUBLISHED_MEANS
    """Of each tower's three channels, of pixels in [0, 1]."""
    stds: tuple[tuple[float, ...], ...] = PUBLISHED_STDS
    strategy: str = NAIVE
    """`resize-naive` stretches an image to a square, `letterbox` pads it with the first tower's mean colour."""

    @classmethod
    def read(cls, content: Mapping[str, Any], size: int, strategy: str, file: Path) -> ImageSettings:
        """Read preprocessor_config.json.

        Raises:
            UserError: The normalisations are not those of two towers, or the strategy is unknown.
        """
        strategy = content.get("image_resize_strategy", strategy)
        if strategy not in (NAIVE, LETTERBOX):
            raise UserError(
                "Images are prepared in a way that is not supported",
                file=file,
                key="image_resize_strategy",
                value=strategy,
                expected=f"{NAIVE} or {LETTERBOX}",
            )
        values = [content.get(name, published) for name, published in _PUBLISHED.items()]
        for name, value in zip(_PUBLISHED, values, strict=True):
            is_fit = isinstance(value, Sequence) and len(value) == 2
            if not is_fit or any(not _is_colour(row, positive=name == "stds") for row in value):
                raise UserError(
                    "Not the normalisation of two towers", file=file, key=name, value=value, expected="two lists of 3"
                )
        means, stds = (tuple(tuple(map(float, row)) for row in value) for value in values)
        return cls(size, means, stds, strategy)


_PUBLISHED = {"means": PUBLISHED_MEANS, "stds": PUBLISHED_STDS}


def _is_colour(row: Any, *, positive: bool) -> bool:
    return (
        isinstance(row, Sequence)
        and len(row) == 3
        and all(type(value) in (int, float) and (value > 0 or not positive) for value in row)
    )


def prepare_images(views: Sequence[Tensor], settings: ImageSettings, *, center_crop: bool) -> Tensor:
    """Crop and resize, on the images' device.

    Without `center_crop`, the arithmetic of Pillow's bicubic filter, rounded to bytes after each direction; with it,
    that of TensorFlow's `crop_and_resize` (bilinear, corners on corners), which the published evaluation uses.

    Args:
        views: (B, H, W, 3) uint8 of each of V cameras.
        settings: Sizes.
        center_crop: Keep the middle `CROP_AREA` of the image.

    Returns:
        (B, V, size, size, 3) uint8.
    """
    size = settings.size
    prepared = views[0].new_empty((len(views[0]), len(views), size, size, 3))
    for images, target in zip(views, prepared.unbind(1), strict=True):
        at_once = max(1, _SLAB // (images.shape[1] * images.shape[2]))
        for part, source in zip(target.split(at_once), images.split(at_once), strict=True):
            if settings.strategy == LETTERBOX:
                source = _letterboxed(source, settings.means[0])
            if center_crop:
                source = _cropped(source, size)
            part.copy_(source if source.shape[1:3] == (size, size) else _bicubic(source, size))
    return prepared


def normalized(images: Tensor, settings: ImageSettings, dtype: torch.dtype) -> Tensor:
    """(N, size, size, 3) uint8 to (N, 6, size, size): the two towers' channels."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    towers = zip(settings.means, settings.stds, strict=True)
    channels = [  # by numbers, because a CUDA graph cannot take tensors from the host
        (pixels[:, channel] - mean[channel]) / std[channel] for mean, std in towers for channel in range(3)
    ]
    return torch.stack(channels, dim=1).to(dtype)


def _bicubic(images: Tensor, size: int) -> Tensor:
    """(N, H, W, 3) uint8 to (N, size, size, 3) uint8; bytes again after each direction, as Pillow has it."""
    pixels = images.permute(0, 3, 1, 2).float()
    for shape in ((pixels.shape[2], size), (size, size)):
        if pixels.shape[2:] != shape:
            pixels = F.interpolate(pixels, size=shape, mode="bicubic", antialias=True)
            pixels = (pixels + 0.5).floor().clamp(0, 255)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1)


def _cropped(images: Tensor, size: int) -> Tensor:
    """The middle of (N, H, W, 3) uint8 as (N, size, size, 3) uint8."""
    side = CROP_AREA**0.5
    grid = torch.linspace(-side, side, size, device=images.device)
    where = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=-1).expand(len(images), -1, -1, -1)
    pixels = images.permute(0, 3, 1, 2).float() / 255
    sampled = F.grid_sample(pixels, where, mode="bilinear", padding_mode="border", align_corners=True)
    # TensorFlow's convert_image_dtype to bytes: scaled by 255.5 and cut off.
    return (sampled * 255.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _letterboxed(images: Tensor, mean: tuple[float, ...]) -> Tensor:
    """(N, H, W, 3) uint8 padded alike on both sides to a square, or one pixel less, with the first tower's mean."""
    height, width = images.shape[1:3]
    if height == width:
        return images
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    colour = torch.tensor([int(value * 255) for value in mean], dtype=torch.uint8, device=images.device)
    padded = colour.expand(len(images), height + 2 * top, width + 2 * left, 3).clone()
    padded[:, top : top + height, left : left + width] = images
    return padded
