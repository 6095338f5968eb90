"""Reads the HDF5 files of Isaac Lab's recorder: teleoperated, scripted and Mimic demonstrations.

Layout: a group `data` with the attribute `env_args` (JSON), and in it a group per episode, `demo_0`, `demo_1` and so
on, with the attributes `num_samples` and `success`, the dataset `actions` (T, A) and the observations `obs/<term>`
(T, ...). An observation is recorded before the action of its row. The stock recorder knows the group `policy` only and
leaves its name out; recorder terms of one's own may add `obs/<group>/<term>` or `<group>/<term>`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic_core import from_json

from regrasp.errors import UserError
from regrasp.extras import install_command

try:
    import h5py
except ImportError:
    raise UserError(
        "Reading Isaac Lab's recordings needs the package h5py",
        expected="h5py to be installed",
        fix=install_command("isaaclab"),
    ) from None

POLICY_GROUP = "policy"
"""The observation group that Isaac Lab's own recorder terms record."""

_NOT_OBSERVED = frozenset({"obs", "actions", "processed_actions", "states", "initial_state", "joint_targets"})
"""Parts of an episode that are no observation of the policy; `states` are those after the action."""
_DEPTH = 8
"""Groups within groups that are followed: links can form circles."""
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeError)
"""What h5py raises where a file's content is damaged."""


class EpisodeError(Exception):
    """One episode cannot be used; the text says why.

    Args:
        reason: Why.
        fix: What the user can do about it, if there is anything but to record it again.
    """

    def __init__(self, reason: str, fix: str | None = None) -> None:
        super().__init__(reason)
        self.fix = fix


@dataclass(frozen=True)
class RecordedArray:
    """One observation of an episode."""

    path: str
    """Within the episode's group."""
    length: int
    """Rows."""
    shape: tuple[int, ...]
    """Of one row; a camera's is (height, width, 3)."""
    dtype: str
    """NumPy dtype name; a camera's is uint8, whatever the file holds."""
    is_camera: bool


@dataclass(frozen=True)
class RecordedEpisode:
    """What an episode holds; no array has been read."""

    file: Path
    name: str
    success: bool | None
    """None where the file does not say."""
    num_steps: int
    """T."""
    action_dim: int
    """Width of the simulator's action."""
    observations: Mapping[str, RecordedArray]
    """By `group/term`; a group that was recorded as one vector has the group's name."""

    def check_rows(self, key: str) -> None:
        """Check that an observation has a row per action; some recorders add one after the last action.

        Raises:
            EpisodeError: It has not.
        """
        array = self.observations[key]
        if array.length not in (self.num_steps, self.num_steps + 1):
            raise EpisodeError(f"{array.path} has {array.length} rows for {self.num_steps} actions")


class RecorderFile:
    """One recorder file, open for reading; a context manager.

    Args:
        path: The file.

    Raises:
        UserError: The package h5py is missing, or this is no readable recorder file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open(path)
        try:
            self._data = self._data_group()
            self.episode_names = sorted(self._data, key=_natural)
            """Names of the episodes, `demo_2` before `demo_10`."""
            self.env_args_problem: str | None = None
            """Why the attribute `env_args` cannot be read, None where it can; task and step rate are not known then."""
            self._env_args = self._read_env_args()
        except BaseException as error:
            self._file.close()
            if isinstance(error, _DAMAGE):
                raise _unreadable(path, str(error)) from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    @property
    def env_name(self) -> str | None:
        """The task that was recorded, None where the file does not say."""
        name = self._env_args.get("env_name")
        return name if isinstance(name, str) and name else None

    @property
    def steps_per_second(self) -> float | None:
        """Environment steps per second of simulated time, None where the file does not say."""
        sim = self._env_args.get("sim_args")
        if not isinstance(sim, Mapping):
            return None
        dt, decimation = sim.get("dt"), sim.get("decimation")
        if not (isinstance(dt, int | float) and isinstance(decimation, int | float) and 0 < dt * decimation < math.inf):
            return None
        return 1 / (dt * decimation)

    @property
    def format_version(self) -> int:
        """Of the recorder; 0 before there was one.

        Raises:
            UserError: It is no number.
        """
        version = self._file.attrs.get("format_version", 0)
        try:
            return int(version)
        except (TypeError, ValueError):
            raise _unreadable(self.path, f"its attribute format_version is {version!r}, no whole number") from None

    def describe(self, name: str) -> RecordedEpisode:
        """What an episode holds.

        Raises:
            EpisodeError: The episode is damaged, or has no actions.
        """
        with _damage_in(name):
            group = self._data[name]
            if not isinstance(group, h5py.Group):
                raise EpisodeError("it is no group")
            num_steps, action_dim = _action_shape(group)
            samples = group.attrs.get("num_samples", num_steps)
            if int(samples) != num_steps:
                raise EpisodeError(f"damaged: it holds {num_steps} actions of {samples}")
            return RecordedEpisode(
                file=self.path,
                name=name,
                success=_success(group.attrs.get("success")),
                num_steps=num_steps,
                action_dim=action_dim,
                observations=dict(_observations(group)),
            )

    def read_actions(self, episode: RecordedEpisode) -> np.ndarray:
        """The simulator's actions (T, A), float32.

        Raises:
            EpisodeError: They are damaged or not finite.
        """
        with _damage_in("actions"):
            actions = self._read(f"{episode.name}/actions", episode.num_steps)
        _check_finite(actions, "actions")
        return actions.astype(np.float32)

    def read_observation(self, episode: RecordedEpisode, key: str) -> np.ndarray:
        """The rows (T, ...) of an observation, those before an action; a camera's as (T, H, W, 3) uint8.

        Raises:
            EpisodeError: It is damaged, not finite, or an image that cannot be turned back into colours.
        """
        array = episode.observations[key]
        with _damage_in(array.path):
            values = self._read(f"{episode.name}/{array.path}", episode.num_steps)
        if array.is_camera:
            return _as_images(values, array.path)
        _check_finite(values, array.path)
        return values

    def _read(self, path: str, num_rows: int) -> np.ndarray:
        array = self._data[path]
        if not isinstance(array, h5py.Dataset):
            raise ValueError("no array")
        return array[:num_rows]

    def _data_group(self) -> h5py.Group:
        data = self._file.get("data")
        if not isinstance(data, h5py.Group):
            found = sorted(self._file)[:5]
            raise _unreadable(self.path, f"it has no group 'data', but {found}" if found else "it is empty")
        return data

    def _read_env_args(self) -> dict[str, Any]:
        text = self._data.attrs.get("env_args", "{}")
        try:
            content = from_json(text)
        except (TypeError, ValueError) as error:
            self.env_args_problem = f"the attribute env_args of the group 'data' is no JSON ({error})"
            return {}
        return content if isinstance(content, dict) else {}


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        raise UserError(
            "A folder is no recording" if path.is_dir() else "There is no such recording",
            value=str(path),
            expected="an HDF5 file that Isaac Lab's recorder wrote",
            fix="name the .hdf5 files in it" if path.is_dir() else "correct the path",
        )
    try:
        return h5py.File(path, "r")
    except _DAMAGE as error:
        if "unable to lock file" in str(error):
            raise UserError(
                "The recording is still open in another program",
                file=path,
                value=str(error),
                expected="a recording that has ended",
                fix="end the recording, or close what has it open, and convert again",
            ) from error
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(
        f"This is no readable recording of Isaac Lab: {why}",
        file=path,
        expected="a complete HDF5 file with the group 'data', as Isaac Lab's recorder writes it",
        fix="leave the file out, or record it again",
    )


def _success(value: Any) -> bool | None:
    """The attribute `success`, however it was written: as a truth, a number or a text, None where it is not there.

    Raises:
        EpisodeError: It is neither true nor false.
    """
    if value is None:
        return None
    entry = np.asarray(value).reshape(-1)
    item = entry[0] if entry.size == 1 else ""
    text = item.decode(errors="replace") if isinstance(item, bytes) else str(item)
    truth = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}.get(text.strip().lower())
    if truth is None:
        raise EpisodeError(
            f"its attribute success is {value!r}, neither true nor false", "write the attribute as True or False"
        )
    return truth


def _natural(name: str) -> tuple[str, int, str]:
    """`demo_2` before `demo_10`."""
    number = re.search(r"\d+$", name)
    return (name[: number.start()], int(number[0]), name) if number else (name, -1, name)


@contextmanager
def _damage_in(what: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise EpisodeError(f"damaged: {what} cannot be read ({' '.join(str(error).split())})") from error


def _action_shape(group: h5py.Group) -> tuple[int, int]:
    actions = group.get("actions")
    if not isinstance(actions, h5py.Dataset):
        raise EpisodeError("it has no actions")
    if len(actions.shape) != 2 or actions.dtype.kind not in "fiu":
        raise EpisodeError(f"its actions are {actions.dtype} {actions.shape}, not numbers of shape (T, A)")
    return actions.shape


def _observations(group: h5py.Group) -> Iterator[tuple[str, RecordedArray]]:
    """By `group/term`."""
    for path, array in _arrays(group.get("obs"), "", _DEPTH):
        key = path if "/" in path else f"{POLICY_GROUP}/{path}".rstrip("/")
        yield key, _recorded(f"obs/{path}".rstrip("/"), array)
    for name in sorted(group.keys() - _NOT_OBSERVED):
        part = group.get(name)
        if isinstance(part, h5py.Group):
            for path, array in _arrays(part, name, _DEPTH):
                yield path, _recorded(path, array)


def _arrays(node: Any, path: str, depth: int) -> Iterator[tuple[str, h5py.Dataset]]:
    """Arrays (T, ...) of numbers with their paths; links to other files are not followed."""
    if isinstance(node, h5py.Dataset):
        if node.shape and node.dtype.kind in "biuf":
            yield path, node
    elif isinstance(node, h5py.Group) and depth:
        for name in node:
            if isinstance(node.get(name, getlink=True), h5py.HardLink):
                yield from _arrays(node[name], f"{path}/{name}".lstrip("/"), depth - 1)


def _recorded(path: str, array: h5py.Dataset) -> RecordedArray:
    length, *shape = array.shape
    dtype = array.dtype.name
    is_camera = len(shape) == 3 and shape[2] in (3, 4) and (dtype == "uint8" or array.dtype.kind == "f")
    if is_camera:
        shape, dtype = [*shape[:2], 3], "uint8"
    return RecordedArray(path, length, tuple(shape), dtype, is_camera)


def _as_images(values: np.ndarray, path: str) -> np.ndarray:
    """(T, H, W, 3 or 4) as uint8 RGB: of floats either in [0, 1], or whole numbers from 0 to 255."""
    values = values[..., :3]
    if values.dtype == np.uint8:
        return values
    lowest, highest = float(values.min()), float(values.max())
    if lowest >= 0 and highest <= 1:
        return np.rint(values * 255).astype(np.uint8)
    whole = lowest >= 0 and highest <= 255 and bool((values == np.rint(values)).all())
    if not whole:
        raise EpisodeError(
            f"{path} is a float image from {lowest:g} to {highest:g}, which cannot be turned back into colours:"
            " record it with normalize: False",
            "set normalize: False in the parameters of the task's image term (mdp.image) and record again",
        )
    return values.astype(np.uint8)


def _check_finite(values: np.ndarray, path: str) -> None:
    with np.errstate(over="ignore"):
        as_stored = values.astype(np.float32)
    if not np.isfinite(as_stored).all():
        raise EpisodeError(f"{path} holds a number that is not finite")
