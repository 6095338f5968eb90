"""Writes demonstrations as a LeRobotDataset v3.0."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from regrasp.data.lerobot.schema import (
    CODEBASE_VERSION,
    DATA_PATH,
    DEFAULT_FEATURES,
    EPISODES_PATH,
    INFO_PATH,
    MODALITY_PATH,
    SOURCES_PATH,
    STATS_PATH,
    SUCCESS,
    TASKS_PATH,
    VIDEO_PATH,
    Episode,
    FeatureSpec,
    FileIndex,
    VideoSpan,
    column_from_array,
    data_schema,
    episode_row,
    task_table,
)
from regrasp.data.lerobot.video import open_encoder, video_info
from regrasp.data.statistics import Statistics, combined_statistics, compute_statistics, image_statistics
from regrasp.errors import UserError
from regrasp.folders import atomic_folder, require_output
from regrasp.logging.encoder import H264Encoder

EpisodeArrays = Mapping[str, np.ndarray]
"""The L frames of an episode: (L, D) per vector, (L,) or (L, 1) per scalar, (L, H, W, 3) uint8 per camera."""

LIMITS: dict[str, Any] = {"chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200}
"""A new file is begun before it has so many MiB, and a new chunk folder after so many files."""


class DatasetWriter:
    """Collects episodes in a folder beside `root` that becomes `root` when it is complete.

    A run that dies leaves no dataset behind. Besides the given features a dataset has the columns of
    `DEFAULT_FEATURES` and `next.success`, true on the last frame of an episode that succeeded.

    Args:
        root: Folder of the dataset; its parents are made.
        fps: Frames per second of simulated time.
        robot_type: Free text, kept in info.json.
        features: What `add_episode` gets, by name.
        overwrite: Replace a dataset that exists at `root`.
        modality: Content of GR00T's meta/modality.json, which slices state and action by name.
        sources: Content of meta/sources.json: the observations that cameras and state were made of.

    Raises:
        UserError: If `root` exists and may not be replaced, or a camera has an odd size.
    """

    def __init__(
        self,
        root: Path,
        *,
        fps: int,
        robot_type: str,
        features: Mapping[str, FeatureSpec],
        overwrite: bool = False,
        modality: Mapping[str, Any] | None = None,
        sources: Mapping[str, Any] | None = None,
    ) -> None:
        self.root = root.absolute()
        self.features = _all_features(features)
        self._schema = data_schema(self.features)
        self._fps, self._robot_type = fps, robot_type
        self._given = {
            path: content for path, content in ((MODALITY_PATH, modality), (SOURCES_PATH, sources)) if content
        }
        self._overwrite = overwrite
        self._check_target()
        self._files = contextlib.ExitStack()
        self._folder = self._files.enter_context(atomic_folder(self.root, overwrite=overwrite))
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._episode_statistics: list[dict[str, Statistics]] = []
        self._num_frames = 0
        self._data = self._numbered(DATA_PATH, "", "data", self._create_table)
        self._videos = {
            name: self._numbered(VIDEO_PATH, name, "video", partial(self._create_video, feature.image_size))
            for name, feature in self.features.items()
            if feature.is_video
        }
        for file in (self._data, *self._videos.values()):
            self._files.callback(file.close)

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the dataset in its place, or after an error leave nothing of it and what was at `root` as it was.

        Raises:
            UserError: There is no episode, or another dataset has appeared at `root`.
        """
        if kind is not None:
            self._files.__exit__(kind, error, trace)
            return
        with self._files:
            if not self._rows:
                raise UserError("No episode was recorded, so there is no dataset to write.", file=self.root)
            for file in (self._data, *self._videos.values()):
                file.close()
            self._write_metadata()
            self._check_target()

    @property
    def num_episodes(self) -> int:
        """Episodes added so far."""
        return len(self._rows)

    def add_episode(self, frames: EpisodeArrays, task: str, success: bool) -> None:
        """Append one episode.

        Args:
            frames: Exactly the features given at the start, of L >= 1 frames each, in their declared dtype.
            task: The instruction.
            success: Whether the episode ended in success.

        Raises:
            ValueError: If the arrays do not fit the features.
        """
        length = _check_frames(frames, self.features)
        columns = {name: frames[name] for name in frames if not self.features[name].is_video}
        columns |= self._default_columns(length, self._tasks.get(task, len(self._tasks)), success)
        stats = {name: compute_statistics(array) for name, array in columns.items()}

        spans: dict[str, VideoSpan] = {}
        for name, video in self._videos.items():
            stats[name] = image_statistics(frames[name])
            spans[name] = self._write_video(video, frames[name])
        arrays = [column_from_array(columns[name], self.features[name]) for name in self._schema.names]
        self._data.with_room_for(length).write(pa.Table.from_arrays(arrays, schema=self._schema))
        episode = Episode(
            index=len(self._rows),
            tasks=(task,),
            length=length,
            start=self._num_frames,
            data_file=self._data.index,
            videos=spans,
        )
        self._tasks.setdefault(task, len(self._tasks))
        self._rows.append(episode_row(episode, stats))
        self._episode_statistics.append(stats)
        self._num_frames += length

    def _numbered(self, template: str, camera: str, kind: str, create: Callable[[Path], File]) -> _Files[File]:
        """The files of the data, or of a camera."""

        def place(index: FileIndex) -> Path:
            return self._folder / index.path(template, camera)

        return _Files(place, create, int(LIMITS[f"{kind}_files_size_in_mb"] * 2**20))

    def _create_table(self, path: Path) -> _Table:
        return _Table(path, self._schema)

    def _create_video(self, size: tuple[int, int], path: Path) -> H264Encoder:
        return open_encoder(path, size, self._fps)

    def _write_video(self, files: _Files[H264Encoder], images: np.ndarray) -> VideoSpan:
        encoder = files.with_room_for(len(images))
        start = encoder.num_frames
        for number, image in enumerate(images):  # a keyframe first: programs cut out episodes without encoding again
            encoder.write(image, keyframe=number == 0)
        return VideoSpan(files.index, start / self._fps, encoder.num_frames / self._fps)

    def _default_columns(self, length: int, task_index: int, success: bool) -> dict[str, np.ndarray]:
        frame = np.arange(length, dtype=np.int64)
        return {
            SUCCESS: (frame == length - 1) & success,
            "timestamp": (frame / self._fps).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(length, len(self._rows), dtype=np.int64),
            "index": self._num_frames + frame,
            "task_index": np.full(length, task_index, dtype=np.int64),
        }

    def _write_metadata(self) -> None:
        (self._folder / "meta").mkdir()
        pq.write_table(task_table(list(self._tasks)), self._folder / TASKS_PATH, write_page_checksum=True)
        episodes = self._folder / FileIndex().path(EPISODES_PATH)
        episodes.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._rows), episodes, write_page_checksum=True)
        _write_json(self._folder / STATS_PATH, self._statistics())
        for path, content in self._given.items():
            _write_json(self._folder / path, content)
        _write_json(self._folder / INFO_PATH, self._info())

    def _statistics(self) -> dict[str, Statistics]:
        """Statistics over all episodes."""
        return {
            name: combined_statistics([stats[name] for stats in self._episode_statistics]) for name in self.features
        }

    def _info(self) -> dict[str, Any]:
        features = {name: asdict(feature) for name, feature in self.features.items()}
        for name in self._videos:
            features[name]["info"] = video_info(self.features[name].image_size, self._fps)
        return {
            "codebase_version": CODEBASE_VERSION,
            "robot_type": self._robot_type,
            "total_episodes": len(self._rows),
            "total_frames": self._num_frames,
            "total_tasks": len(self._tasks),
            **LIMITS,
            "fps": self._fps,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self._videos else None,
            "features": features,
        }

    def _check_target(self) -> None:
        require_output(self.root, replaces=INFO_PATH, overwrite=self._overwrite)


class _Table:
    """A Parquet file with a row group per episode."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.num_frames = 0
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pq.ParquetWriter(self._sink, schema, write_page_checksum=True)

    @property
    def num_bytes(self) -> int:
        """Bytes written so far."""
        return self._sink.tell()

    def write(self, table: pa.Table) -> None:
        """Append one episode."""
        self._writer.write_table(table)
        self.num_frames += len(table)

    def close(self) -> None:
        """Finish the file."""
        with self._sink:
            self._writer.close()


File = TypeVar("File", _Table, H264Encoder)


class _Files(Generic[File]):
    """Numbered files of at most `limit` bytes, with many whole episodes in each."""

    def __init__(self, place: Callable[[FileIndex], Path], create: Callable[[Path], File], limit: int) -> None:
        self.index = FileIndex()
        """Of the file that was last given."""
        self._place, self._create, self._limit = place, create, limit
        self._file: File | None = None

    def with_room_for(self, num_frames: int) -> File:
        """The file for the next episode: a new one where frames of the average size so far would reach the limit."""
        file = self._file
        if file is not None and file.num_bytes * (1 + num_frames / file.num_frames) >= self._limit:
            self.close()
            self.index = self.index.next(LIMITS["chunks_size"])
        if self._file is None:
            path = self._place(self.index)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._create(path)
        return self._file

    def close(self) -> None:
        """Finish the file that is open."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _all_features(features: Mapping[str, FeatureSpec]) -> dict[str, FeatureSpec]:
    """The given features, checked, and those that the writer adds."""
    automatic = {SUCCESS: FeatureSpec("bool", (1,)), **DEFAULT_FEATURES}
    axes = ("height", "width", "channels")
    checked: dict[str, FeatureSpec] = {}
    for name, feature in features.items():
        is_camera = feature.is_video and feature.shape[-1] == 3 and feature.names in (None, axes)
        if name in automatic or "/" in name or not (is_camera or feature.is_numeric):
            raise ValueError(f"{name!r} is reserved, holds a '/', or is neither vector nor (H, W, 3) camera: {feature}")
        if is_camera and any(side % 2 for side in feature.image_size):
            raise UserError(
                f"Camera {name} has an odd image size, which H.264 cannot store.",
                key=name,
                value=feature.image_size,
                expected="an even height and an even width",
                fix="change the camera's size by one pixel",
            )
        checked[name] = FeatureSpec(feature.dtype, feature.shape, axes) if is_camera else feature
    return checked | automatic


def _check_frames(frames: EpisodeArrays, features: Mapping[str, FeatureSpec]) -> int:
    """Number of frames, after comparing every array with its feature."""
    expected = [name for name in features if name not in DEFAULT_FEATURES and name != SUCCESS]
    if set(frames) != set(expected):
        raise ValueError(f"an episode needs exactly {sorted(expected)}, not {sorted(frames)}")
    length = len(next(iter(frames.values())))
    if length == 0:
        raise ValueError("an episode needs at least one frame")
    for name, array in frames.items():
        feature = features[name]
        dtype = "uint8" if feature.is_video else feature.dtype
        shapes = [(length, *feature.shape)] + ([(length,)] if feature.shape == (1,) else [])
        if array.dtype != np.dtype(dtype) or array.shape not in shapes:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {dtype} {shapes[0]}")
    return length


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
