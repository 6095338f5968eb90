"""Reads the metadata files of a LeRobotDataset v3.0, turning every defect into a located error."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, BeforeValidator, ConfigDict
from pydantic.dataclasses import dataclass
from pydantic_core import from_json

from regrasp.config.parse import parse
from regrasp.config.types import Expect, PositiveInt
from regrasp.data.lerobot.schema import (
    CODEBASE_VERSION,
    EPISODES_FOLDER,
    INFO_PATH,
    STATS_PATH,
    TASK_COLUMNS,
    TASKS_PATH,
    Episode,
    FeatureSpec,
    episode_from_row,
)
from regrasp.errors import UserError
from regrasp.folders import leaves_folder

RESTORE = "collect or download the dataset again"


def _template(value: str) -> str:
    """A path template below the dataset's folder, whose placeholders are those of the format."""
    for _, name, spec, conversion in string.Formatter().parse(value):
        known = name is None or (name in _PLACEHOLDERS and _PLACEHOLDERS[name].fullmatch(spec or ""))
        if conversion or not known:
            raise ValueError(f"an unknown placeholder: {name}:{spec}")
    if leaves_folder(value):
        raise ValueError("a path out of the dataset's folder")
    return value


def _below(features: dict[str, FeatureSpec]) -> dict[str, FeatureSpec]:
    """Features whose names, which are folders of videos, stay below the dataset's folder."""
    if outside := next(filter(leaves_folder, features), None):
        raise ValueError(f"a path out of the dataset's folder: {outside}")
    return features


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


_NUMBER = re.compile(r"(0?[1-9])?d?")
_PLACEHOLDERS = {"chunk_index": _NUMBER, "file_index": _NUMBER, "video_key": re.compile("")}
"""What a path may be filled with, and in which formats: one of a large width would fill the memory."""
Template = Annotated[str, AfterValidator(_template), Expect("a path with placeholders for chunk, file and camera")]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="ignore"))
class Info:
    """What info.json says."""

    fps: Annotated[PositiveInt, BeforeValidator(_whole)]
    total_frames: PositiveInt
    total_episodes: PositiveInt
    data_path: Template
    video_path: Template | None
    features: Annotated[
        dict[str, FeatureSpec], AfterValidator(_below), Expect("a feature by each name, with dtype and shape")
    ]
    robot_type: Any = None
    """Free text; of `collect` and `convert`, the task."""


def read_info(root: Path) -> Info:
    """Read meta/info.json.

    Raises:
        UserError: If it is missing or malformed, or another version of the format.
    """
    path = root / INFO_PATH
    content = _read_json(path)
    version = content.get("codebase_version")
    if version != CODEBASE_VERSION:
        raise UserError(
            "The dataset has another version of the LeRobotDataset format.",
            file=path,
            key="codebase_version",
            value=version,
            expected=CODEBASE_VERSION,
            fix="convert it with LeRobot's own converter",
        )
    return parse(Info, content, file=path, fix=RESTORE)


def read_stats(root: Path) -> dict[str, dict[str, np.ndarray]]:
    """Read meta/stats.json."""
    path = root / STATS_PATH
    try:
        return {
            name: {key: np.asarray(value, dtype=np.float64) for key, value in entry.items()}
            for name, entry in _read_json(path).items()
        }
    except (TypeError, ValueError, AttributeError) as error:
        raise damaged(path, f"an entry is malformed ({error})") from error


def read_tasks(root: Path) -> tuple[str, ...]:
    """The instructions in the order of their `task_index`."""
    path = root / TASKS_PATH
    table = read_table(path)
    column = next((name for name in TASK_COLUMNS if name in table.column_names), None)
    if column is None or "task_index" not in table.column_names:
        raise damaged(path, f"it has the columns {table.column_names}, not task_index and {' or '.join(TASK_COLUMNS)}")
    tasks = dict(zip(table["task_index"].to_pylist(), table[column].to_pylist(), strict=True))
    if sorted(tasks) != list(range(len(tasks))):
        raise damaged(path, "task_index does not count from 0")
    return tuple(tasks[index] for index in range(len(tasks)))


def read_episodes(root: Path, info: Info) -> tuple[Episode, ...]:
    """The episode table, which must be gapless and agree with info.json."""
    folder = root / EPISODES_FOLDER
    paths = sorted(folder.glob("*/*.parquet"))
    if not paths:
        raise UserError("The dataset's episode table is missing.", file=folder, fix=RESTORE)
    cameras = [name for name, feature in info.features.items() if feature.is_video]
    episodes: list[Episode] = []
    for path in paths:
        table = read_table(path)
        table = table.select([name for name in table.column_names if not name.startswith("stats/")])
        try:
            episodes += [episode_from_row(row, cameras) for row in table.to_pylist()]
        except (KeyError, TypeError) as error:
            raise damaged(path, f"a column is missing or empty ({error})") from error
    episodes.sort(key=lambda episode: episode.index)
    starts = np.cumsum([0, *(episode.length for episode in episodes)]).tolist()
    if [(e.index, e.start) for e in episodes] != list(enumerate(starts[:-1])):
        raise damaged(folder, "episodes do not follow one another without a gap")
    if (len(episodes), starts[-1]) != (info.total_episodes, info.total_frames):
        raise damaged(
            folder,
            f"it lists {len(episodes)} episodes and {starts[-1]} frames, "
            f"info.json {info.total_episodes} and {info.total_frames}",
        )
    return tuple(episodes)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or the given columns of it."""
    if not path.is_file():
        raise UserError("A table of the dataset is missing.", file=path, fix=RESTORE)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            missing = set(columns or ()) - set(file.schema_arrow.names)
            if missing:
                raise damaged(path, f"it lacks the columns {sorted(missing)}")
            return file.read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, str(error)) from error


def count_rows(path: Path) -> int:
    """Number of rows by the Parquet file's footer."""
    return read_table(path, columns=[]).num_rows


def damaged(path: Path, why: str) -> UserError:
    """The error for a file of the dataset whose content cannot be right."""
    return UserError(f"A file of the dataset is damaged: {why}.", file=path, fix=RESTORE)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            "A metadata file of the dataset is missing, or the folder is no LeRobotDataset v3.0.",
            file=path,
            fix="check the path of the dataset",
        )
    try:
        content = from_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(path, f"it is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise damaged(path, "it holds no JSON object")
    return content
