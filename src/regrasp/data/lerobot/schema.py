"""Names, paths and types of the LeRobotDataset v3.0 layout.

Source: the format's documentation, https://huggingface.co/docs/lerobot/lerobot-dataset-v3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import BeforeValidator, ConfigDict, NonNegativeInt
from pydantic.dataclasses import dataclass as checked_dataclass

CODEBASE_VERSION = "v3.0"
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
MODALITY_PATH = "meta/modality.json"
SOURCES_PATH = "meta/sources.json"
EPISODES_FOLDER = "meta/episodes"
EPISODES_PATH = EPISODES_FOLDER + "/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

SUCCESS = "next.success"
TASK_COLUMNS = ("__index_level_0__", "task")
"""The instruction's column in tasks.parquet, an unnamed pandas index; newer LeRobot releases name it."""
_TASK_METADATA = Path(__file__).with_name("tasks_pandas.json")
_SPAN = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
"""Columns of the episode table below `videos/<camera>/`."""

ARROW_TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "uint8": pa.uint8(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
}


def _joined(names: Any) -> Any:
    """Names that are grouped in a mapping, one after the other."""
    if isinstance(names, Mapping):
        names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
    return tuple(map(str, names)) if isinstance(names, list) else names


@checked_dataclass(frozen=True, config=ConfigDict(strict=True, extra="ignore"))
class FeatureSpec:
    """One feature of a frame: `dtype` "video" or "image" with shape (H, W, 3), or a NumPy dtype with shape (D,)."""

    dtype: str
    shape: tuple[NonNegativeInt, ...]
    names: Annotated[tuple[str, ...] | None, BeforeValidator(_joined)] = None
    """A name per dimension of a vector, or per axis of an image."""

    @property
    def is_video(self) -> bool:
        """The feature is a camera stored in video files."""
        return self.dtype == "video"

    @property
    def is_camera(self) -> bool:
        """The feature is a camera, in video files or as encoded images in the tables."""
        return self.is_video or self.dtype == "image"

    @property
    def is_numeric(self) -> bool:
        """The feature is a column of scalars or vectors."""
        return self.dtype in ARROW_TYPES and len(self.shape) == 1

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of a camera; LeRobot writes shapes with channels last or first."""
        assert self.is_camera
        height, width = self.shape[1:] if (self.names or ("height",))[0].startswith("c") else self.shape[:2]
        return height, width

    @property
    def arrow_type(self) -> pa.DataType:
        """Column type: a scalar where the shape is (1,), else a list of fixed length."""
        assert self.is_numeric
        scalar = ARROW_TYPES[self.dtype]
        return scalar if self.shape == (1,) else pa.list_(scalar, self.shape[0])

    def __post_init__(self) -> None:
        if self.is_camera and len(self.shape) != 3:
            raise ValueError(f"a camera of shape {self.shape}")


DEFAULT_FEATURES = {
    "timestamp": FeatureSpec("float32", (1,)),
    "frame_index": FeatureSpec("int64", (1,)),
    "episode_index": FeatureSpec("int64", (1,)),
    "index": FeatureSpec("int64", (1,)),
    "task_index": FeatureSpec("int64", (1,)),
}
"""Columns that every dataset has: seconds and frame within the episode, episode, frame overall, instruction."""


class FileIndex(NamedTuple):
    """Which numbered file: files are grouped in chunk folders."""

    chunk: int = 0
    file: int = 0

    def next(self, chunks_size: int) -> FileIndex:
        """The following file, in a new folder after `chunks_size` files."""
        return FileIndex(self.chunk + 1, 0) if self.file + 1 >= chunks_size else FileIndex(self.chunk, self.file + 1)

    def path(self, template: str, video_key: str = "") -> str:
        """The file's path relative to the dataset."""
        return template.format(chunk_index=self.chunk, file_index=self.file, video_key=video_key)


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode lies in a camera's video files, in seconds."""

    file: FileIndex
    from_timestamp: float
    to_timestamp: float


@dataclass(frozen=True)
class Episode:
    """One row of the episode table."""

    index: int
    tasks: tuple[str, ...]
    length: int
    """Number of frames."""
    start: int
    """First frame in the dataset."""
    data_file: FileIndex
    videos: Mapping[str, VideoSpan]

    @property
    def stop(self) -> int:
        """One past the last frame in the dataset."""
        return self.start + self.length

    @property
    def task(self) -> str:
        """The instruction, the first where there are several."""
        return self.tasks[0]


def data_schema(features: Mapping[str, FeatureSpec]) -> pa.Schema:
    """Schema of a data file: every feature that is not a video."""
    return pa.schema([(name, feature.arrow_type) for name, feature in features.items() if not feature.is_video])


def episode_row(episode: Episode, stats: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The episode and its statistics under the columns of meta/episodes."""
    row: dict[str, Any] = {
        "episode_index": episode.index,
        "tasks": list(episode.tasks),
        "length": episode.length,
        "data/chunk_index": episode.data_file.chunk,
        "data/file_index": episode.data_file.file,
        "dataset_from_index": episode.start,
        "dataset_to_index": episode.stop,
    }
    for camera, span in episode.videos.items():
        values = (*span.file, span.from_timestamp, span.to_timestamp)
        row.update({f"videos/{camera}/{key}": value for key, value in zip(_SPAN, values, strict=True)})
    for name, values in stats.items():
        row.update({f"stats/{name}/{key}": value for key, value in values.items()})
    row["meta/episodes/chunk_index"] = 0
    row["meta/episodes/file_index"] = 0
    return row


def episode_from_row(row: Mapping[str, Any], cameras: Sequence[str]) -> Episode:
    """Inverse of `episode_row`, without statistics.

    Raises:
        KeyError, TypeError: If a column is missing or empty.
    """
    videos: dict[str, VideoSpan] = {}
    for camera in cameras:
        chunk, file, start, stop = (row[f"videos/{camera}/{key}"] for key in _SPAN)
        videos[camera] = VideoSpan(FileIndex(int(chunk), int(file)), float(start), float(stop))
    return Episode(
        index=int(row["episode_index"]),
        tasks=tuple(row["tasks"]),
        length=int(row["length"]),
        start=int(row["dataset_from_index"]),
        data_file=FileIndex(int(row["data/chunk_index"]), int(row["data/file_index"])),
        videos=videos,
    )


def column_from_array(array: np.ndarray, feature: FeatureSpec) -> pa.Array:
    """(L, D) or (L,) as an Arrow column of the feature's type."""
    flat = pa.array(array.reshape(-1), type=ARROW_TYPES[feature.dtype])
    return flat if feature.shape == (1,) else pa.FixedSizeListArray.from_arrays(flat, feature.shape[0])


def column_to_array(column: pa.ChunkedArray, feature: FeatureSpec) -> np.ndarray:
    """Inverse of `column_from_array`: (N,) for scalars, (N, D) for vectors.

    Raises:
        ValueError: If a value is missing or a vector has another length.
    """
    num_rows = len(column)
    values = column.combine_chunks()
    nulls = values.null_count
    if not pa.types.is_primitive(values.type):
        values = values.flatten()
        nulls += values.null_count
    if nulls or len(values) != num_rows * feature.shape[0]:
        raise ValueError(f"{num_rows} rows of {feature.shape[0]} hold {len(values)} values and {nulls} nulls")
    array = values.to_numpy(zero_copy_only=False).astype(feature.dtype, copy=False)
    return array if feature.shape == (1,) else array.reshape(num_rows, *feature.shape)


def first_incomplete_row(column: pa.ChunkedArray, feature: FeatureSpec) -> int | None:
    """The first row that lacks values of the feature or has too many."""
    for row, value in enumerate(column.to_pylist()):
        values = value if isinstance(value, list) else [value]
        if len(values) != feature.shape[0] or None in values:
            return row
    return None


def task_table(tasks: Sequence[str]) -> pa.Table:
    """tasks.parquet: the table that pandas writes for a frame of `task_index` indexed by instruction."""
    metadata = json.loads(_TASK_METADATA.read_text(encoding="utf-8"))
    metadata["creator"]["version"] = pa.__version__
    schema = pa.schema([("task_index", pa.int64()), (TASK_COLUMNS[0], pa.string())])
    return pa.table([range(len(tasks)), list(tasks)], schema=schema.with_metadata({"pandas": json.dumps(metadata)}))
