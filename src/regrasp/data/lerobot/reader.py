"""Reads a LeRobotDataset v3.0."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from regrasp.data.lerobot.metadata import (
    RESTORE,
    Info,
    count_rows,
    damaged,
    read_episodes,
    read_info,
    read_stats,
    read_table,
    read_tasks,
)
from regrasp.data.lerobot.schema import INFO_PATH, SUCCESS, Episode, FileIndex, column_to_array
from regrasp.data.lerobot.video import VideoReader
from regrasp.errors import UserError


class DemonstrationDataset:
    """Demonstrations on disk; use `open`.

    Opening reads the metadata and compares it with the header of every file; frames are read when asked for.
    """

    def __init__(
        self,
        root: Path,
        info: Info,
        stats: dict[str, dict[str, np.ndarray]],
        tasks: tuple[str, ...],
        episodes: tuple[Episode, ...],
    ) -> None:
        self.root = root
        self.features = dict(info.features)
        self.stats = stats
        """Per feature: min, max, mean, std, q01, q10, q50, q90, q99 (D,) or (3, 1, 1), and count (1,), in float64."""
        self.tasks = tasks
        """Instructions by `task_index`."""
        self._info = info
        self._episodes = episodes

    @classmethod
    def open(cls, root: Path) -> DemonstrationDataset:
        """Open the dataset in folder `root`.

        Raises:
            UserError: If it is no LeRobotDataset v3.0, or a file is missing, damaged or disagrees with the metadata.
        """
        info = read_info(root)
        dataset = cls(root, info, read_stats(root), read_tasks(root), read_episodes(root, info))
        dataset._check_files()
        return dataset

    @property
    def num_frames(self) -> int:
        """Frames of all episodes."""
        return self._info.num_frames

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return self._info.num_episodes

    @property
    def fps(self) -> int:
        """Frames per second."""
        return self._info.fps

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the features stored as video."""
        return tuple(name for name, feature in self.features.items() if feature.is_video)

    @cached_property
    def episode_table(self) -> tuple[Episode, ...]:
        """The episodes in order, with their success where the dataset has `next.success`."""
        if SUCCESS not in self.features:
            return self._episodes
        seen = self.load_columns([SUCCESS])[SUCCESS]
        return tuple(replace(e, success=bool(seen[e.start : e.stop].any())) for e in self._episodes)

    def load_columns(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Whole columns, frames in order: (N,) for scalars, (N, D) for vectors.

        Raises:
            UserError: If the dataset has no such column, or a data file is damaged.
        """
        wanted = tuple(names)
        for name in wanted:
            if not (name in self.features and self.features[name].is_numeric):
                raise self._no_feature(name, [key for key, f in self.features.items() if f.is_numeric])
        parts = [
            self._read_data_file(file, tuple(dict.fromkeys((*wanted, "index"))))
            for file in dict.fromkeys(episode.data_file for episode in self._episodes)
        ]
        index = np.concatenate([part["index"] for part in parts])
        if not np.array_equal(index, np.arange(self.num_frames)):
            raise damaged(self.root / "data", "the column index does not count the frames from 0")
        return {name: np.concatenate([part[name] for part in parts]) for name in wanted}

    def load_images(self, camera_key: str, episodes: Sequence[int] | None = None) -> np.ndarray:
        """All images of a camera, decoded in order.

        Args:
            camera_key: Feature of dtype video, for example "observation.images.front".
            episodes: Episodes to load, in this order; None for all.

        Returns:
            (N, H, W, 3) uint8, the frames of the episodes one after the other.

        Raises:
            UserError: If there is no such camera, or a video is damaged.
        """
        if camera_key not in self.cameras:
            raise self._no_feature(camera_key, self.cameras)
        chosen = self._episodes if episodes is None else [self._episodes[index] for index in episodes]
        num_frames = sum(episode.length for episode in chosen)
        images = np.empty((num_frames, *self.features[camera_key].image_size, 3), dtype=np.uint8)
        filled = 0
        for file, start, length in self._runs(camera_key, chosen):
            with self._video(camera_key, file) as video:
                video.read(start, images[filled : filled + length])
            filled += length
        return images

    def read_frame(self, index: int) -> dict[str, Any]:
        """One frame: vectors (D,), scalars, cameras (H, W, 3) uint8, and the instruction under "task".

        The columns of numbers stay in memory after the first call.

        Raises:
            IndexError: If there is no such frame.
            UserError: If a file is damaged.
        """
        if not 0 <= index < self.num_frames:
            raise IndexError(f"frame {index} of {self.num_frames}")
        frame: dict[str, Any] = {name: column[index] for name, column in self._columns.items()}
        episode = self._episodes[int(frame["episode_index"])]
        for camera in self.cameras:
            image = np.empty((1, *self.features[camera].image_size, 3), dtype=np.uint8)
            file, start = self._video_start(camera, episode)
            with self._video(camera, file) as video:
                video.read(start + index - episode.start, image)
            frame[camera] = image[0]
        frame["task"] = self.tasks[int(frame["task_index"])]
        return frame

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return self.load_columns(name for name, feature in self.features.items() if feature.is_numeric)

    def _read_data_file(self, file: FileIndex, names: Sequence[str]) -> dict[str, np.ndarray]:
        path = self._data_path(file)
        table = read_table(path, columns=names)
        try:
            return {name: column_to_array(table[name], self.features[name]) for name in names}
        except ValueError as error:
            raise damaged(path, str(error)) from error

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
        path = self.root / file.path(self._info.video_path, camera)
        return VideoReader(path, self.features[camera].image_size, self.fps)

    def _data_path(self, file: FileIndex) -> Path:
        return self.root / file.path(self._info.data_path)

    def _check_files(self) -> None:
        """Compare the number of frames that each file holds with the episode table."""
        rows: Counter[FileIndex] = Counter()
        for episode in self._episodes:
            rows[episode.data_file] += episode.length
        for file, expected in rows.items():
            path = self._data_path(file)
            _compare(path, count_rows(path), expected)
        for camera in self.cameras:
            frames: Counter[FileIndex] = Counter()
            for episode in self._episodes:
                frames[episode.videos[camera].file] += episode.length
            for file, expected in frames.items():
                with self._video(camera, file) as video:
                    _compare(video.path, video.num_frames, expected)

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
