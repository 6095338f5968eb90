"""Reads a LeRobotDataset v3.0."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from regrasp.data.lerobot.images import decode_image
from regrasp.data.lerobot.metadata import (
    RESTORE,
    count_rows,
    damaged,
    read_episodes,
    read_info,
    read_stats,
    read_table,
    read_tasks,
)
from regrasp.data.lerobot.schema import (
    DEFAULT_FEATURES,
    INFO_PATH,
    Episode,
    FeatureSpec,
    FileIndex,
    column_to_array,
    first_incomplete_row,
)
from regrasp.data.lerobot.video import VideoReader
from regrasp.errors import UserError


class DemonstrationDataset:
    """Demonstrations on disk.

    Opening reads the metadata and compares it with the header of every file and the columns that every dataset has;
    other columns and images are read when asked for.

    Args:
        root: Folder of the dataset.

    Raises:
        UserError: It is no LeRobotDataset v3.0, or a file is missing, damaged or disagrees with the metadata.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._info = read_info(root)
        self.features = self._info.features
        self.robot_type = self._info.robot_type
        """Whatever its writer put there; `collect` and `convert` put the task."""
        self.tasks = read_tasks(root)
        """Instructions by `task_index`."""
        self.episodes = read_episodes(root, self._info)
        """In their order."""
        self._check_files()
        self._check_tables()
        self._image_columns: dict[str, tuple[FileIndex, pa.ChunkedArray]] = {}

    @classmethod
    def open(cls, root: Path | str) -> DemonstrationDataset:
        """The dataset in a folder, for users' own scripts."""
        return cls(Path(root))

    @cached_property
    def stats(self) -> dict[str, dict[str, np.ndarray]]:
        """Per feature: min, max, mean, std, q01, q10, q50, q90, q99 (D,) or (3, 1, 1), and count (1,), in float64."""
        return read_stats(self.root)

    @property
    def num_frames(self) -> int:
        """Frames of all episodes."""
        return self._info.total_frames

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return self._info.total_episodes

    @property
    def fps(self) -> int:
        """Frames per second."""
        return self._info.fps

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the features stored as video or as images."""
        return tuple(name for name, feature in self.features.items() if feature.is_camera)

    def load_columns(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Whole columns, frames in order: (N,) for scalars, (N, D) for vectors.

        Raises:
            UserError: If the dataset has no such column, a data file is damaged, or a number is not finite.
        """
        wanted = tuple(names)
        for name in wanted:
            if not (name in self.features and self.features[name].is_numeric):
                raise self._no_feature(name, [key for key, f in self.features.items() if f.is_numeric])
        columns = self._read_columns(wanted)
        for name, column in columns.items():
            bad = ~np.isfinite(column.reshape(len(column), -1)).all(axis=1)
            if bad.any():
                row = int(bad.argmax())
                raise self._wrong_value(name, row, column[row].tolist(), "finite numbers")
        return columns

    def load_texts(self, name: str) -> list[str]:
        """A column of texts, frames in order.

        Raises:
            UserError: If there is no such column, or a row is empty.
        """
        if name not in self.features or self.features[name].dtype != "string":
            raise self._no_feature(name, [key for key, feature in self.features.items() if feature.dtype == "string"])
        texts = [text for file in self._data_files() for text in self._table(file, (name,))[name].to_pylist()]
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise self._wrong_value(name, row, text, "a text")
        return texts

    def row_name(self, row: int) -> str:
        """Where a frame of the dataset is, for messages."""
        episode = self._episode_of(row)
        return f"episode {episode.index}, frame {row - episode.start}"

    def load_images(self, camera_key: str, episodes: Sequence[int] | None = None) -> np.ndarray:
        """All images of a camera, decoded in order.

        Args:
            camera_key: Feature of dtype video or image, for example "observation.images.front".
            episodes: Episodes to load, in this order; None for all.

        Returns:
            (N, H, W, 3) uint8, the frames of the episodes one after the other.

        Raises:
            UserError: If there is no such camera, or a video is damaged.
        """
        if camera_key not in self.cameras:
            raise self._no_feature(camera_key, self.cameras)
        chosen = self.episodes if episodes is None else [self.episodes[index] for index in episodes]
        num_frames = sum(episode.length for episode in chosen)
        images = np.empty((num_frames, *self.features[camera_key].image_size, 3), dtype=np.uint8)
        if not self.features[camera_key].is_video:
            rows = (row for episode in chosen for row in range(episode.start, episode.stop))
            for image, row in zip(images, rows, strict=True):
                image[:] = self._stored_image(camera_key, row)
            return images
        filled = 0
        for file, start, length in self._runs(camera_key, chosen):
            with self._video(camera_key, file) as video:
                video.read(start, images[filled : filled + length])
            filled += length
        return images

    def _data_files(self) -> list[FileIndex]:
        return list(dict.fromkeys(episode.data_file for episode in self.episodes))

    def _table(self, file: FileIndex, names: Sequence[str]) -> pa.Table:
        return read_table(self._data_path(file), columns=names)

    def _read_columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        tables = [(file, self._table(file, names)) for file in self._data_files()]
        features = self.features | DEFAULT_FEATURES
        return {name: np.concatenate([self._array(name, features[name], *table) for table in tables]) for name in names}

    def _array(self, name: str, feature: FeatureSpec, file: FileIndex, table: pa.Table) -> np.ndarray:
        try:
            return column_to_array(table[name], feature)
        except ValueError as error:
            row = first_incomplete_row(table[name], feature)
            if row is None:
                raise damaged(self._data_path(file), f"column {name}: {error}") from error
            start = min(episode.start for episode in self.episodes if episode.data_file == file)
            value = table[name][row].as_py()
            raise self._wrong_value(name, start + row, value, f"{feature.shape[0]} value(s)") from error

    def _stored_image(self, camera: str, row: int) -> np.ndarray:
        """An image of a feature whose images are in the tables, one file of which is held at a time."""
        file = self._episode_of(row).data_file
        if self._image_columns.get(camera, (None,))[0] != file:
            self._image_columns[camera] = file, self._table(file, (camera,))[camera]
        start = min(episode.start for episode in self.episodes if episode.data_file == file)
        entry = self._image_columns[camera][1][row - start].as_py()
        try:
            return decode_image(entry, self.features[camera].image_size)
        except ValueError as error:
            raise self._wrong_value(camera, row, str(error), "a PNG or JPEG of 8-bit RGB in the table") from error

    def _episode_of(self, row: int) -> Episode:
        return self.episodes[bisect.bisect_right(self.episodes, row, key=lambda episode: episode.start) - 1]

    def _wrong_value(self, column: str, row: int, value: object, expected: str) -> UserError:
        return UserError(
            f"Column {column} cannot be used: {self.row_name(row)}",
            file=self._data_path(self._episode_of(row).data_file),
            key=column,
            value=value,
            expected=expected,
            fix="correct it, or leave the episode out",
        )

    def _runs(self, camera: str, episodes: Iterable[Episode]) -> Iterator[tuple[FileIndex, int, int]]:
        """Stretches (file, first frame in it, length) that hold the episodes; adjacent ones are joined."""
        run: tuple[FileIndex, int, int] | None = None
        for episode in episodes:
            file, start = self._video_start(camera, episode)
            if run is not None and (file, start) == (run[0], run[1] + run[2]):
                run = (file, run[1], run[2] + episode.length)
                continue
            if run is not None:
                yield run
            run = (file, start, episode.length)
        if run is not None:
            yield run

    def _video_start(self, camera: str, episode: Episode) -> tuple[FileIndex, int]:
        """The video file of an episode and its first frame there."""
        span = episode.videos[camera]
        return span.file, round(span.from_timestamp * self.fps)

    def _video(self, camera: str, file: FileIndex) -> VideoReader:
        path = self.root / file.path(self._info.video_path or "", camera)
        return VideoReader(path, self.features[camera].image_size, self.fps)

    def _data_path(self, file: FileIndex) -> Path:
        return self.root / file.path(self._info.data_path)

    def _check_files(self) -> None:
        """Compare the number of frames that each file holds with the episode table."""
        rows: Counter[FileIndex] = Counter()
        for episode in self.episodes:
            rows[episode.data_file] += episode.length
        for file, expected in rows.items():
            path = self._data_path(file)
            _compare(path, count_rows(path), expected)
        for camera in (name for name, feature in self.features.items() if feature.is_video):
            frames: Counter[FileIndex] = Counter()
            for episode in self.episodes:
                frames[episode.videos[camera].file] += episode.length
            for file, expected in frames.items():
                with self._video(camera, file) as video:
                    _compare(video.path, video.num_frames, expected)

    def _check_tables(self) -> None:
        """Compare the columns that every dataset has with the episode table, frame by frame."""
        columns = self._read_columns(tuple(DEFAULT_FEATURES))
        lengths = [episode.length for episode in self.episodes]
        frame = np.concatenate([np.arange(length) for length in lengths])
        seconds = frame / self.fps
        for name, expected in (
            ("index", np.arange(self.num_frames)),
            ("episode_index", np.repeat(np.arange(self.num_episodes), lengths)),
            ("frame_index", frame),
        ):
            self._compare_rows(name, columns[name], expected, columns[name] == expected)
        near = np.abs(columns["timestamp"] - seconds) < 0.5 / self.fps
        self._compare_rows("timestamp", columns["timestamp"], seconds, near)
        tasks = columns["task_index"]
        known = (tasks >= 0) & (tasks < len(self.tasks))
        if not known.all():
            row = int((~known).argmax())
            raise self._wrong_value(
                "task_index", row, int(tasks[row]), f"an index of the {len(self.tasks)} tasks in meta/tasks.parquet"
            )

    def _compare_rows(self, name: str, found: np.ndarray, expected: np.ndarray, same: np.ndarray) -> None:
        if not same.all():
            row = int((~same).argmax())
            raise self._wrong_value(name, row, found[row].item(), f"{expected[row]}, as the episode table says")

    def _no_feature(self, name: str, available: Iterable[str]) -> UserError:
        return UserError(
            f"The dataset has no feature {name} of the wanted kind.",
            file=self.root / INFO_PATH,
            key="features",
            expected="one of " + ", ".join(available),
        )


def _compare(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise UserError(
            "A file of the dataset does not hold the frames that the episode table promises.",
            file=path,
            value=found,
            expected=f"{expected} frames",
            fix=RESTORE,
        )
