"""H.264 videos of episodes, written frame by frame."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regrasp.folders import atomic_file
from regrasp.logging.encoder import H264Encoder
from regrasp.logging.overlay import Frame, annotate

_MIN_SIDE = 256
"""Smaller episodes are enlarged, so that the overlay can be read."""


def write_video(path: Path, frames: Iterable[Frame], fps: float) -> None:
    """Encode frames as they come: H.264, yuv420p, index at the front (starts playing before it is loaded).

    The file appears under its name when it is complete; without a frame none is written. Odd sizes are padded by one
    repeated row or column, as yuv420p needs.

    Args:
        path: The `.mp4` to write; its folder is created, an existing file replaced.
        frames: (H, W, 3) uint8 RGB, all of one size.
        fps: Frames per second of playback.
    """
    if fps <= 0:
        raise ValueError(f"fps must be positive, found {fps}")
    rest = iter(frames)
    first = next(rest, None)
    if first is None:
        return
    if first.ndim != 3 or first.shape[2] != 3:
        raise ValueError(f"a frame is (H, W, 3), found {first.shape}")
    path.parent.mkdir(parents=True, exist_ok=True)
    size, rate = tuple(side + side % 2 for side in first.shape[:2]), Fraction(fps).limit_denominator(1000)
    with atomic_file(path) as draft:
        encoder = H264Encoder(draft, size, rate, {"crf": "21"}, container_options={"movflags": "+faststart"})
        with contextlib.closing(encoder):
            for frame in itertools.chain([first], rest):
                if frame.shape != first.shape or frame.dtype != np.uint8:
                    raise ValueError(f"expected a frame {first.shape} uint8, found {frame.shape} {frame.dtype}")
                padded = [(0, side - length) for side, length in zip((*size, 3), frame.shape, strict=True)]
                encoder.write(np.pad(frame, padded, mode="edge"))


def write_episode(
    path: Path,
    frames: NDArray[np.uint8],
    instruction: str,
    rewards: NDArray[np.floating],
    success: bool | None,
    fps: float,
    hold_last_s: float = 1.0,
    measures: Mapping[str, float] | None = None,
) -> None:
    """Write one episode with its overlay; the outcome appears with the last frame, which is held.

    Args:
        path: The `.mp4` to write.
        frames: (L, H, W, 3) uint8, the frame after each environment step; anything NumPy can index frame by frame.
        instruction: What the robot was told.
        rewards: (L,) reward of each step.
        success: Whether the task's success signal was seen; None where it has none.
        fps: Frames per second of playback.
        hold_last_s: Seconds that the last frame stays.
        measures: The task's own measures at the end, shown with the last frame.
    """
    if len(frames) == 0 or len(frames) != len(rewards):
        raise ValueError(f"need one reward per frame and at least one, found {len(frames)} and {len(rewards)}")

    summary = "  ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in (measures or {}).items())

    final, outcome_at_end = len(frames) - 1, None if success is None else "success" if success else "failure"

    def overlaid(index: int) -> Frame:
        frame = _enlarged(np.asarray(frames[index]))
        outcome, extra = (outcome_at_end, summary) if index == final else (None, None)
        reward = float(rewards[index])
        return annotate(frame, instruction=instruction, step=index + 1, reward=reward, outcome=outcome, extra=extra)

    held = itertools.repeat(overlaid(final), 1 + round(hold_last_s * fps))
    write_video(path, itertools.chain((overlaid(index) for index in range(final)), held), fps)


def _enlarged(frame: Frame) -> Frame:
    factor = -(-_MIN_SIDE // min(frame.shape[:2]))
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)
