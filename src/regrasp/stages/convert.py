"""Isaac Lab's recordings as a LeRobotDataset v3, by the mapping through which the policy will see the task."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from regrasp.data.isaaclab_hdf5 import EpisodeError, RecordedEpisode, RecorderFile
from regrasp.data.lerobot import DatasetWriter
from regrasp.data.lerobot.schema import INFO_PATH
from regrasp.envs.config import EnvConfig
from regrasp.envs.isaaclab.catalog import is_recording_of
from regrasp.envs.isaaclab.config import IsaacLabEnvConfig
from regrasp.envs.quaternions import QuaternionOrder
from regrasp.envs.registry import env_type_of
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.folders import require_output
from regrasp.logging.progress import progress
from regrasp.stages.camera_checks import CameraChecks
from regrasp.stages.demonstrations import (
    ACTION,
    STATE,
    check_actions,
    demonstration_features,
    modality,
    observation_ranges,
    sources,
)
from regrasp.stages.quaternion_checks import QuaternionChecks, order_of_recordings, recorded_order, two_orders
from regrasp.stages.recordings import LOCATION, ConvertedEpisode, EpisodeConverter, Layout

_log = logging.getLogger(__name__)

MIN_STEPS = 2
"""A shorter episode is a reset that was recorded."""
_RATE_TOLERANCE = 0.01
"""Relative difference up to which step rates are one; a dataset has a whole number of frames per second."""
_LOST_ACTION = 1e-4
"""A difference above rounding, of an entry of the action that the policy does not drive."""
_KEEP = "pass --keep_failed to convert episodes without success too"
_NAMES = 5
"""Episodes that a line of the report names."""


@dataclass(frozen=True)
class Omission:
    """A recorded episode, or a whole file, that is not in the dataset."""

    file: Path
    episode: str | None
    """None for the file."""
    reason: str
    fix: str | None = None
    """What can be done about it, if there is anything but to record it again."""


@dataclass(frozen=True)
class Survey:
    """What a conversion takes and leaves out; no array of these episodes is held."""

    episodes: tuple[RecordedEpisode, ...]
    omissions: tuple[Omission, ...]
    warnings: tuple[str, ...]
    fps: int
    quaternions: QuaternionOrder | None
    """In which order rotations are recorded."""

    @property
    def num_recorded(self) -> int:
        """Episodes of the recordings."""
        return len(self.episodes) + sum(omission.episode is not None for omission in self.omissions)

    @property
    def num_frames(self) -> int:
        """Frames of the episodes taken."""
        return sum(episode.num_steps for episode in self.episodes)


def survey(
    config: ExperimentConfig, files: Sequence[Path], *, fps: int | None = None, keep_failed: bool = False
) -> Survey:
    """Look through recordings and choose the episodes to convert.

    Args:
        config: The experiment; `env.train` names the task and has the mapping.
        files: Recorder files.
        fps: Environment steps per second; None: as the files say, or the simulator.
        keep_failed: Choose episodes without success too.

    Raises:
        UserError: A file is unreadable, no episode can be converted, there is no instruction, or the step rate is
            unknown or differs.
    """
    env = config.env.train
    _check_instruction(env)
    found = _Findings(config, keep_failed)
    rates: dict[Path, float | None] = {}
    orders: dict[Path, QuaternionOrder] = {}
    with progress("Looking through recordings", len(files)) as bar:
        for path in found.each_once(files):
            with RecorderFile(path) as recording:
                rates[path] = recording.steps_per_second
                orders[path] = recorded_order(recording)
                found.look_through(recording)
            bar.advance()
    if not found.episodes:
        raise found.mistake or _nothing_left(found.omissions)
    used = {episode.file: rates[episode.file] for episode in found.episodes}
    rate, warnings = _step_rate(used, fps, env)
    observations = EpisodeConverter(config, found.episodes[0]).observations
    order = order_of_recordings({file: orders[file] for file in used}, observations, env.mapping, LOCATION)
    return Survey(tuple(found.episodes), tuple(found.omissions), (*found.warnings, *warnings), rate, order)


def check_output(config: ExperimentConfig, output: Path | None, *, overwrite: bool) -> Path:
    """The folder that a conversion writes; see `convert`.

    Raises:
        UserError: It is taken or cannot be written.
    """
    key = "collect.output_dir" if output is None else "--output"
    folder = output or Path(config.collect.output_dir if config.collect else "demos")
    require_output(folder, replaces=INFO_PATH, overwrite=overwrite, key=key)
    return folder


def convert(
    config: ExperimentConfig,
    files: Sequence[Path],
    output: Path | None = None,
    *,
    fps: int | None = None,
    keep_failed: bool = False,
    overwrite: bool = False,
) -> tuple[Path, Survey]:
    """Convert recordings into the dataset folder `output` (default: `collect.output_dir`).

    Returns:
        As `write_dataset`, after the folder.

    Raises:
        UserError: As `survey` and `write_dataset`.
    """
    folder = check_output(config, output, overwrite=overwrite)
    chosen = survey(config, files, fps=fps, keep_failed=keep_failed)
    for warning in chosen.warnings:
        _log.warning(warning)
    written = write_dataset(config, chosen, folder, overwrite=overwrite)
    for warning in written.warnings:
        _log.warning(warning)
    return folder, written


def write_dataset(config: ExperimentConfig, chosen: Survey, output: Path, *, overwrite: bool = False) -> Survey:
    """Write the surveyed episodes into the dataset folder `output`, one in memory at a time.

    An episode that turns out to be damaged is left out and reported. An interrupted conversion leaves nothing.

    Returns:
        What was taken and left out, with the warnings of this step alone.

    Raises:
        UserError: The folder is taken, a file cannot be read any more, no episode was sound, the normalisation of
            the data configuration does not give the actions back, or quaternions seem to be of two orders.
    """
    omissions, largest = list(chosen.omissions), 0.0
    taken: list[RecordedEpisode] = []
    images, actions = CameraChecks(), list[np.ndarray]()
    quaternions = QuaternionChecks(observation_ranges(EpisodeConverter(config, chosen.episodes[0]).observations.states))
    with (
        progress("Converting demonstrations", len(chosen.episodes)) as bar,
        _writer(config, chosen, output, overwrite) as writer,
    ):
        for episode, result in _converted(config, chosen.episodes):
            if isinstance(result, EpisodeError):
                omissions.append(Omission(episode.file, episode.name, str(result), result.fix))
            else:
                images.add(result.columns)
                quaternions.add(episode.file, result.columns[STATE])
                writer.add_episode(result.columns, result.instruction, episode.success is True)
                taken.append(episode)
                actions.append(result.columns[ACTION])
                largest = max(largest, result.lost_action)
            bar.advance(frames=str(sum(episode.num_steps for episode in taken)), left_out=str(len(omissions)))
        if not taken:
            raise _nothing_left(omissions)
        check_actions(config, np.concatenate(actions), "The recordings")
        if config.env.train.mapping.quaternions is None and (mixed := quaternions.mixed()):
            raise two_orders(mixed, ", ".join(map(str, dict.fromkeys(episode.file for episode in taken))), LOCATION)
    warnings = images.warnings()
    if largest > _LOST_ACTION:
        warnings.append(
            "The recordings move entries of the action that the policy does not drive: they are up to"
            f" {largest:g} away from the constants of action_mapping. A policy trained on this cannot repeat them."
        )
    return replace(chosen, episodes=tuple(taken), omissions=tuple(omissions), warnings=tuple(warnings))


def _writer(config: ExperimentConfig, chosen: Survey, output: Path, overwrite: bool) -> DatasetWriter:
    env, model = config.env.train, config.actor.model
    first = EpisodeConverter(config, chosen.episodes[0])
    cameras = first.layout.camera_shapes
    return DatasetWriter(
        output,
        fps=chosen.fps,
        robot_type=env.init_params.id,
        features=demonstration_features(first.layout.state_dim, model.action_dim, cameras),
        overwrite=overwrite,
        modality=modality(env.mapping, first.observations, model.action_dim),
        sources=sources(first.observations, chosen.quaternions),
    )


def _converted(
    config: ExperimentConfig, episodes: Sequence[RecordedEpisode]
) -> Iterator[tuple[RecordedEpisode, ConvertedEpisode | EpisodeError]]:
    """Each episode, or why it cannot be read; a file is open while its episodes are read."""
    for path, group in itertools.groupby(episodes, key=lambda episode: episode.file):
        with RecorderFile(path) as recording:
            for episode in group:
                try:
                    yield episode, EpisodeConverter(config, episode).read(recording)
                except EpisodeError as error:
                    yield episode, error


class _Findings:
    """Episodes to convert, omissions and warnings of the files looked through so far."""

    def __init__(self, config: ExperimentConfig, keep_failed: bool) -> None:
        self.episodes: list[RecordedEpisode] = []
        self.omissions: list[Omission] = []
        self.warnings: list[str] = []
        self._config = config
        self._keep_failed = keep_failed
        self._layout: Layout | None = None
        self.mistake: UserError | None = None
        """The first that the experiment has, by the episodes."""

    def each_once(self, files: Sequence[Path]) -> list[Path]:
        """The files, without those that are another spelling of one before."""
        known: dict[Path, Path] = {}
        for path in files:
            place = path.resolve()
            if place in known:
                self.warnings.append(f"{path} is given twice (as {known[place]}); its episodes are taken once.")
            known.setdefault(place, path)
        return list(known.values())

    def look_through(self, recording: RecorderFile) -> None:
        """Sort the episodes of a file."""
        task, name = self._config.env.train.init_params.id, recording.env_name
        if not recording.episode_names:
            self.omissions.append(Omission(recording.path, None, "it holds no episode"))
        elif name is not None and not is_recording_of(name, task):
            self.warnings.append(f"{recording.path} was recorded in {name}, and the experiment's task is {task}.")
        if recording.env_args_problem is not None:
            self.warnings.append(
                f"{recording.path} does not tell its task and step rate: {recording.env_args_problem}."
            )
        for episode in recording.episode_names:
            try:
                self.episodes.append(self._fitting(recording.describe(episode)))
            except EpisodeError as error:
                self.omissions.append(Omission(recording.path, episode, str(error), error.fix))
            except UserError as error:
                problem = f"{error.problem} ({recording.path}, {episode})"
                self.mistake = self.mistake or UserError(**{**error.fields(), "problem": problem})
                self.omissions.append(Omission(recording.path, episode, _reason(error)))

    def _fitting(self, episode: RecordedEpisode) -> RecordedEpisode:
        """The episode itself, if it can be converted beside those before it."""
        if episode.num_steps < MIN_STEPS:
            raise EpisodeError(f"too short: {episode.num_steps} actions")
        if not episode.success and not self._keep_failed:
            raise EpisodeError("not recorded as successful" if episode.success is None else "not successful", _KEEP)
        layout = EpisodeConverter(self._config, episode).layout
        self._layout = self._layout or layout
        if layout != self._layout:
            raise EpisodeError(f"it has {layout}, and the first episode {self._layout}")
        return episode


def _check_instruction(env: EnvConfig) -> None:
    if env.mapping.task_description is None and env.mapping.instruction_choice()[0] is None:
        if not isinstance(env, IsaacLabEnvConfig):
            raise UserError(
                "The recordings are of Isaac Lab, and this experiment's task is not",
                key="env.train.env_type",
                value=env.env_type,
                expected="isaaclab, or a mapping with an instruction (task_description)",
                fix="name the experiment of the recordings with --config_name",
            )
        raise UserError(
            "The demonstrations have no instruction: recordings of Isaac Lab carry none",
            key=f"{LOCATION}.task_description",
            expected="a sentence, as the policy will be given in the task",
            fix="write it, or choose among several by instruction_key and instructions",
        )


def _step_rate(rates: dict[Path, float | None], given: int | None, env: EnvConfig) -> tuple[int, list[str]]:
    """Environment steps per second, and what is odd about it."""
    known = {path: rate for path, rate in rates.items() if rate is not None}
    if given is not None:
        others = {path: rate for path, rate in known.items() if not _one_rate(rate, given)}
        return given, [f"{path} says {rate:g} steps per second, not {given}." for path, rate in others.items()]
    told = next(iter(known.values()), None)
    if told is not None and not all(_one_rate(rate, told) for rate in known.values()):
        raise UserError(
            "The recordings have different step rates, and a dataset has one",
            value=", ".join(f"{path}: {rate}" for rate, path in {f"{r:g} Hz": p for p, r in known.items()}.items()),
            expected="one rate",
            fix="convert them one by one with --output, or give the rate that holds with --fps",
        )
    spec = env_type_of(env, "train").describe(env, "train") if told is None else None
    exact = told if spec is None else 1 / spec.step_seconds
    if exact is None:
        raise UserError(
            "The step rate of the recordings is not known: they do not tell it",
            key="--fps",
            value=", ".join(map(str, rates)),
            expected="environment steps per second of simulated time, 1 / (sim.dt * decimation)",
            fix="pass --fps",
        )
    rate = max(1, round(exact))
    silent = [path for path in rates if path not in known] if known else []
    warnings = [f"{path} does not tell its step rate; it is taken for {rate} Hz like the others." for path in silent]
    if not _one_rate(exact, rate):
        warnings.append(f"{exact:g} steps per second are written as {rate}: a dataset has a whole number.")
    return rate, warnings


def _one_rate(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=_RATE_TOLERANCE)


def omission_lines(omissions: Sequence[Omission]) -> list[str]:
    """What was left out, a line for each file and reason."""
    grouped: dict[tuple[Path, str], list[str]] = {}
    for omission in omissions:
        grouped.setdefault((omission.file, omission.reason), []).append(omission.episode or "the file")
    return [f"{file}: {_names(episodes)}: {reason}" for (file, reason), episodes in grouped.items()]


def _reason(error: UserError) -> str:
    """A misfit of one episode in a line, with what was found and expected."""
    found = "" if error.value is None or str(error.value) in error.problem else f": {error.value}"
    return f"{error.problem}{found}, expected {error.expected}"


def _nothing_left(omissions: Sequence[Omission]) -> UserError:
    fixes = dict.fromkeys(omission.fix for omission in omissions if omission.fix is not None)
    return UserError(
        "None of the recorded episodes can be converted",
        value="; ".join(omission_lines(omissions)[:_NAMES]),
        expected="at least one episode that fits the experiment",
        fix="; or ".join(fixes) or "record demonstrations again",
    )


def _names(episodes: Sequence[str]) -> str:
    more = f" and {len(episodes) - _NAMES} more" if len(episodes) > _NAMES else ""
    return ", ".join(episodes[:_NAMES]) + more
