"""Reads a LeRobotDataset v3.0."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

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
from regrasp.data.lerobot.schema import INFO_PATH, Episode, FileIndex, column_to_array
from regrasp.data.lerobot.video import VideoReader
from regrasp.errors import UserError
from regrasp.folders import check_checksums


class DemonstrationDataset:
    """Demonstrations on disk.

    Opening reads the metadata and compares it with the header of every file; frames are read when asked for.

    Args:
        root: Folder of the dataset.

    Raises:
        UserError: It is no LeRobotDataset v3.0, or a file is missing, damaged or disagrees with the metadata.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        check_checksums(root)
        self._info = read_info(root)
        self.features = self._info.features
        self.stats = read_stats(root)
        """Per feature: min, max, mean, std, q01, q10, q50, q90, q99 (D,) or (3, 1, 1), and count (1,), in float64."""
        self.tasks = read_tasks(root)
        """Instructions by `task_index`."""
        self.episodes = read_episodes(root, self._info)
        """In their order."""
        self._check_files()

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
        """Names of the features stored as video."""
        return tuple(name for name, feature in self.features.items() if feature.is_video)

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
            for file in dict.fromkeys(episode.data_file for episode in self.episodes)
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
        chosen = self.episodes if episodes is None else [self.episodes[index] for index in episodes]
        num_frames = sum(episode.length for episode in chosen)
        images = np.empty((num_frames, *self.features[camera_key].image_size, 3), dtype=np.uint8)
        filled = 0
        for file, start, length in self._runs(camera_key, chosen):
            with self._video(camera_key, file) as video:
                video.read(start, images[filled : filled + length])
            filled += length
        return images

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
        for camera in self.cameras:
            frames: Counter[FileIndex] = Counter()
            for episode in self.episodes:
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
