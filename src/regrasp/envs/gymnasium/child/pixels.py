"""What an environment renders, as an image of a given size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from regrasp.envs.gymnasium.child.options import EnvOptions
from regrasp.errors import UserError


def check_renders(metadata: Mapping[str, Any], options: EnvOptions) -> None:
    """Check that the environment renders images at all.

    Raises:
        UserError: It does not.
    """
    modes = metadata.get("render_modes") or ()
    if "rgb_array" not in modes:
        raise _no_image(options, f"metadata['render_modes'] with rgb_array; it has {', '.join(modes) or 'none'}")


def resized(frame: Any, size: tuple[int, ...], options: EnvOptions) -> np.ndarray:
    """An image (H, W, 3) uint8 in another size (height, width): each pixel is the mean of the area that it covers.

    Raises:
        UserError: It is no image.
    """
    image = np.asarray(frame)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise _no_image(options, f"an array (H, W, 3) of uint8; render() gave {image.dtype} {image.shape}")
    for axis, target in enumerate(size):
        if image.shape[axis] != target:
            image = _resampled(image, axis, target)
    return image if image.dtype == np.uint8 else np.rint(image).astype(np.uint8)


def _resampled(image: np.ndarray, axis: int, target: int) -> np.ndarray:
    """Means over `target` equal parts of an axis, from differences of its running sum."""
    length = image.shape[axis]
    sums = np.insert(np.cumsum(image, axis, dtype=np.float64), 0, 0.0, axis)
    edges = np.linspace(0, length, target + 1)
    whole = np.minimum(edges.astype(int), length - 1)
    part = (edges - whole).reshape([-1 if i == axis else 1 for i in range(image.ndim)])
    at = sums.take(whole, axis) * (1 - part) + sums.take(whole + 1, axis) * part
    return np.diff(at, axis=axis) * (target / length)


def render_error(options: EnvOptions, error: Exception, fix: str) -> UserError:
    """What to tell of an environment that failed to render."""
    problem = f"The environment cannot be rendered: {type(error).__name__}: {error}"
    return _refused(options, problem, f"what {options.id} can render", f"{fix}; or leave it out")


def _no_image(options: EnvOptions, expected: str) -> UserError:
    fix = f"remove it, or wrap {options.id} in an environment that renders"
    return _refused(options, "The environment does not render images", expected, fix)


def _refused(options: EnvOptions, problem: str, expected: str, fix: str) -> UserError:
    asked = "video_cfg.save_video" if options.pixels is None else "init_params.pixels"
    return UserError(
        problem,
        key=f"{options.location}.{asked}",
        value=True if options.pixels is None else list(options.pixels),
        expected=expected,
        fix=fix,
    )
