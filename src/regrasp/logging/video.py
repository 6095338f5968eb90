"""H.264 videos of episodes, written frame by frame."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from regrasp.logging.overlay import Frame, annotate, tile

__all__ = ["Frame", "VideoWriter", "annotate", "tile", "write_episode"]

_MIN_SIDE = 256
"""Smaller episodes are enlarged, so that the overlay can be read."""


class VideoWriter:
    """Encodes frames as they come: H.264, yuv420p, index at the front (starts playing before it is loaded).

    The file appears under its name when it is complete; a writer left by an exception leaves none.
    Odd sizes are padded by one repeated row or column, as yuv420p needs.

    Args:
        path: The `.mp4` to write; its folder is created, an existing file replaced.
        fps: Frames per second of playback.
    """

    def __init__(self, path: Path, fps: float) -> None:
        if fps <= 0:
            raise ValueError(f"fps must be positive, found {fps}")
        self.path = path
        self._partial = path.with_name(f"{path.stem}.partial{path.suffix}")
        self._rate = Fraction(fps).limit_denominator(1000)
        self._output: tuple[OutputContainer, VideoStream] | None = None
        self._shape: tuple[int, ...] | None = None

    def add(self, frame: Frame) -> None:
        """Append one (H, W, 3) uint8 RGB frame; every frame has the size of the first."""
        if self._output is None:
            self._output = self._start(frame)
        container, stream = self._output
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ValueError(f"expected a frame {self._shape} uint8, found {frame.shape} {frame.dtype}")
        height, width, _ = frame.shape
        padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        container.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))

    def close(self) -> None:
        """Finish the file; without a frame none is written."""
        if self._output is None:
            return
        container, stream = self._output
        container.mux(stream.encode())
        container.close()
        self._output = None
        self._partial.replace(self.path)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._output is not None:
            self._output[0].close()
            self._partial.unlink(missing_ok=True)

    def _start(self, frame: Frame) -> tuple[OutputContainer, VideoStream]:
        if frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"a frame is (H, W, 3), found {frame.shape}")
        self._shape = frame.shape
        self.path.parent.mkdir(parents=True, exist_ok=True)
        container = av.open(str(self._partial), "w", format="mp4", options={"movflags": "+faststart"})
        stream = container.add_stream("libx264", rate=self._rate, options={"crf": "21", "preset": "veryfast"})
        stream.height, stream.width = (side + side % 2 for side in frame.shape[:2])
        stream.pix_fmt = "yuv420p"
        return container, stream


def write_episode(
    path: Path,
    frames: NDArray[np.uint8],
    instruction: str,
    rewards: NDArray[np.floating],
    success: bool,
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
        success: Whether the task's success signal was seen.
        fps: Frames per second of playback.
        hold_last_s: Seconds that the last frame stays.
        measures: The task's own measures at the end, shown with the last frame.
    """
    if len(frames) == 0 or len(frames) != len(rewards):
        raise ValueError(f"need one reward per frame and at least one, found {len(frames)} and {len(rewards)}")

    summary = "  ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in (measures or {}).items())

    def overlaid(index: int, outcome: str | None) -> Frame:
        frame = _enlarged(np.asarray(frames[index]))
        extra = summary if outcome is not None else None
        reward = float(rewards[index])
        return annotate(frame, instruction=instruction, step=index + 1, reward=reward, outcome=outcome, extra=extra)

    with VideoWriter(path, fps) as video:
        for index in range(len(frames) - 1):
            video.add(overlaid(index, None))
        last = overlaid(len(frames) - 1, "success" if success else "failure")
        for _ in range(1 + round(hold_last_s * fps)):
            video.add(last)


def _enlarged(frame: Frame) -> Frame:
    factor = -(-_MIN_SIDE // min(frame.shape[:2]))
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)
