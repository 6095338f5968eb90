"""The H.264 encoder of every video: those of episodes, and the cameras of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import Interpolation, VideoReformatter

PIXEL_FORMAT = "yuv420p"


class H264Encoder:
    """Writes RGB images to one MP4 file.

    Args:
        path: File to write.
        size: (height, width), both even.
        fps: Frames per second.
        options: Of x264, beside its preset: `crf` is the constant rate factor, lower is closer to the images.
        container_options: Of the MP4 file.
        conversion: How colours are converted; None for swscale's fast default.
        num_threads: Of the encoder; 0 for its own choice. One thread makes the same images give the same bytes.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        fps: Fraction,
        options: Mapping[str, str],
        *,
        container_options: Mapping[str, str] | None = None,
        conversion: Interpolation | None = None,
        num_threads: int = 0,
    ) -> None:
        self.num_frames = 0
        self.num_bytes = 0
        """Bytes written so far, without the few frames that the encoder still holds."""
        self._size, self._frame_seconds, self._conversion = size, 1 / fps, conversion
        self._reformatter = VideoReformatter()
        self._container = av.open(str(path), "w", format="mp4", options=dict(container_options or {}))
        self._stream = self._container.add_stream("libx264", rate=fps, options={"preset": "veryfast", **options})
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = PIXEL_FORMAT
        self._stream.codec_context.thread_count = num_threads

    def write(self, image: np.ndarray, *, keyframe: bool = False) -> None:
        """Append one image, (H, W, 3) uint8, if so wanted as one that decodes on its own."""
        assert image.dtype == np.uint8
        assert image.shape == (*self._size, 3)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = self._reformatter.reformat(frame, format=PIXEL_FORMAT, interpolation=self._conversion, threads=1)
        frame.pts, frame.time_base = self.num_frames, self._frame_seconds
        if keyframe:
            frame.pict_type = PictureType.I
        self._mux(frame)
        self.num_frames += 1

    def close(self) -> None:
        """Flush the encoder and finish the file."""
        try:
            self._mux(None)
        finally:
            self._container.close()

    def _mux(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            self.num_bytes += packet.size
            self._container.mux(packet)
