"""Camera images as H.264, written as a stream and read at any frame."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Interpolation, VideoReformatter

from regrasp.data.lerobot.metadata import RESTORE, damaged
from regrasp.errors import UserError
from regrasp.logging.encoder import PIXEL_FORMAT, H264Encoder

CODEC = "h264"
CRF = 15
"""Constant rate factor, lower is closer to the images; see `H264Encoder`."""
KEYFRAME_INTERVAL = 2
"""Every second frame decodes on its own, so a random frame costs at most two."""

# swscale's fast default rounds towards black: a round trip darkens by about 1 in 255 on average.
_CONVERSION = (
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.FULL_CHR_H_INT
)


def video_info(size: tuple[int, int], fps: int) -> dict[str, Any]:
    """The `info` of a camera's feature in info.json."""
    return {
        "video.height": size[0],
        "video.width": size[1],
        "video.codec": CODEC,
        "video.pix_fmt": PIXEL_FORMAT,
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
        "video.g": KEYFRAME_INTERVAL,
        "video.crf": CRF,
    }


def open_encoder(path: Path, size: tuple[int, int], fps: int) -> H264Encoder:
    """A camera's video file: read at random, faithful in colour, and of the same bytes for the same images.

    x264's macroblock tree reads memory that it has not written, so that about one file in a thousand differed. With a
    keyframe every other frame it has little to weigh.
    """
    options = {"crf": str(CRF), "g": str(KEYFRAME_INTERVAL), "bf": "0", "forced-idr": "1", "x264-params": "mbtree=0"}
    return H264Encoder(path, size, Fraction(fps), options, conversion=_CONVERSION, num_threads=1)


class VideoReader:
    """Reads frames of one video file, in order or after a seek.

    Args:
        path: The file.
        size: Expected (height, width).
        fps: Frames per second of the dataset, which turns time stamps into frame numbers.

    Raises:
        UserError: If the file is missing, is no video, or its frames have another size.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        self.path = path
        self._size = size
        self._fps = fps
        self._reformatter = VideoReformatter()
        if not path.is_file():
            raise UserError("A video of the dataset is missing.", file=path, fix=RESTORE)
        try:
            self._container = av.open(str(path))
        except FFmpegError as error:
            raise damaged(path, str(error.strerror)) from error
        if not self._container.streams.video:
            self._container.close()
            raise damaged(path, "it holds no video stream")
        self._stream = self._container.streams.video[0]
        if not hasattr(self._stream, "height"):  # PyAV asks a decoder for it, and knows none
            self._container.close()
            raise damaged(path, "its images are in no known format")
        found = (self._stream.height, self._stream.width)
        if found != size:
            self._container.close()
            raise UserError(
                "A video of the dataset has the wrong image size.",
                file=path,
                value=found,
                expected=f"(height, width) {size}, as info.json says",
            )

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._container.close()

    @property
    def num_frames(self) -> int:
        """Number of frames by the file's header."""
        return self._stream.frames

    def read(self, start: int, out: np.ndarray) -> None:
        """Decode as many frames as `out` holds from frame `start` on; `out` is (L, H, W, 3) uint8.

        Raises:
            UserError: If a frame is missing or damaged.
        """
        assert out.shape[1:] == (*self._size, 3)
        num_read = 0
        try:
            for number, frame in self._decode_from(start):
                if number < start:
                    continue
                if number != start + num_read or frame.is_corrupt:
                    break
                converted = self._reformatter.reformat(frame, format="rgb24", interpolation=_CONVERSION, threads=1)
                out[num_read] = converted.to_ndarray()
                num_read += 1
                if num_read == len(out):
                    return
        except FFmpegError as error:
            raise damaged(self.path, str(error.strerror)) from error
        raise damaged(self.path, f"frame {start + num_read} cannot be read; the tables promise {start + len(out)}")

    def _decode_from(self, start: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames with their numbers, from a keyframe at or before `start`."""
        time_base = self._stream.time_base
        assert time_base is not None
        first = self._stream.start_time or 0
        self._container.seek(first + round(start / self._fps / time_base), stream=self._stream, backward=True)
        for frame in self._container.decode(self._stream):
            if frame.pts is None:
                raise damaged(self.path, "a frame has no time stamp")
            yield round((frame.pts - first) * time_base * Fraction(self._fps)), frame
