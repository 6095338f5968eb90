"""Demonstrations as a dataset: the features that `collect` and `convert` write and `sft` reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from regrasp.data.lerobot import DemonstrationDataset, FeatureSpec
from regrasp.data.lerobot.metadata import damaged
from regrasp.data.lerobot.schema import SOURCES_PATH
from regrasp.envs.mapping_config import MappingConfig
from regrasp.envs.selection import (
    ObservationSelection,
    Range,
    StateSource,
    camera_names,
    is_name_of,
    numbered_cameras,
    state_names,
)
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.inputs import input_names

STATE = "observation.state"
ACTION = "action"
CAMERA = "observation.images.{}"


def camera_features(num_cameras: int) -> tuple[str, ...]:
    """Names of the main camera and then of the extra ones."""
    return tuple(map(CAMERA.format, numbered_cameras(num_cameras)))


def demonstration_features(
    state_dim: int, action_dim: int, camera_shapes: Sequence[tuple[int, ...]]
) -> dict[str, FeatureSpec]:
    """The features of a dataset.

    Args:
        state_dim: Width of the policy's state.
        action_dim: Width of the policy's action.
        camera_shapes: (height, width, 3) of the main camera and then of the extra ones; none without images.
    """
    features = {STATE: FeatureSpec("float32", (state_dim,)), ACTION: FeatureSpec("float32", (action_dim,))}
    names = camera_features(len(camera_shapes))
    return features | {name: FeatureSpec("video", shape) for name, shape in zip(names, camera_shapes, strict=True)}


def demonstration_columns(
    states: np.ndarray, actions: np.ndarray, images: Iterable[np.ndarray]
) -> dict[str, np.ndarray]:
    """One episode as `DatasetWriter.add_episode` takes it.

    Args:
        states: (T, D) float32.
        actions: (T, A) float32.
        images: (T, H, W, 3) uint8 of the main camera and then of the extra ones.
    """
    views = list(images)
    return {STATE: states, ACTION: actions} | dict(zip(camera_features(len(views)), views, strict=True))


def modality(mapping: MappingConfig, observations: ObservationSelection, action_dim: int) -> dict[str, Any]:
    """Content of GR00T's `meta/modality.json`: names of cameras, and of slices of state and action.

    The names are those of `gr00t_mapping` and `data_config`. Without them cameras and parts of the state are called as
    their observations, and the action is one part.

    Args:
        mapping: The model's inputs.
        observations: What images and state are made of.
        action_dim: Width of the policy's action.

    Raises:
        UserError: The data configuration's parts do not fit the state or the action.
    """
    names = input_names(mapping).in_dataset(state_names(mapping), observations.state_dim, action_dim)
    cameras = observations.cameras
    views = camera_names(mapping) if mapping.gr00t_mapping else _short_names(cameras)
    return {
        "state": _slices(names.state or _observation_ranges(observations.states)),
        "action": _slices(names.action or {"action": (0, action_dim)}),
        "video": {
            view: {"original_key": name} for view, name in zip(views, camera_features(len(cameras)), strict=False)
        },
        "annotation": {names.language.removeprefix("annotation."): {"original_key": "task_index"}},
    }


def sources(observations: ObservationSelection) -> dict[str, Any]:
    """Content of `meta/sources.json`: the cameras in order, and the slices that make up the state."""
    return {"cameras": list(observations.cameras), "states": [dataclasses.asdict(part) for part in observations.states]}


def check_sources(dataset: DemonstrationDataset, config: ExperimentConfig, *, uses_images: bool) -> list[str]:
    """Check that the experiment maps to a policy what the demonstrations were made of.

    Datasets of other programs do not say what they were made of: of them, widths and numbers are checked.

    Returns:
        Warnings.

    Raises:
        UserError: Cameras, states or the action's width differ.
    """
    mapping, action_dim = config.env.train.mapping, dataset.features[ACTION].shape[0]
    if config.actor.model.action_dim != action_dim:
        raise _other_mapping(dataset, "actor.model.action_dim", config.actor.model.action_dim, str(action_dim))
    asked = [name for name in (mapping.main_images, *mapping.extra_view_images) if name is not None]
    if uses_images and len(asked) != len(dataset.cameras):
        key = "env.train.mapping.extra_view_images" if asked else "env.train.mapping.main_images"
        raise _other_mapping(dataset, key, asked, f"{len(dataset.cameras)} camera(s) in all")
    text, warnings = mapping.task_description, []
    if text is not None and text not in dataset.tasks:
        known = ", ".join(f"'{task}'" for task in dataset.tasks[:3])
        warnings = [
            f"env.train.mapping.task_description is '{text}'; the demonstrations in {dataset.root} say {known}."
        ]
    found = _read_sources(dataset)
    if found is None:
        return warnings
    cameras, states = found
    named = [is_name_of(*pair) for pair in zip(asked, cameras, strict=False)]
    if uses_images and not (all(named) and len(asked) == len(cameras)):
        key = "extra_view_images" if named[:1] == [True] else "main_images"
        raise _other_mapping(dataset, f"env.train.mapping.{key}", asked, ", ".join(cameras))
    same = len(mapping.states) == len(states) and all(
        is_name_of(entry.key, part.key)
        and (part.start == 0 if entry.slice is None else entry.slice == (part.start, part.stop))
        for entry, part in zip(mapping.states, states, strict=True)
    )
    if not same:
        expected = ", ".join(f"{part.key}[{part.start}:{part.stop}]" for part in states)
        asked_states = [
            entry.key if entry.slice is None else f"{entry.key}{list(entry.slice)}" for entry in mapping.states
        ]
        raise _other_mapping(dataset, "env.train.mapping.states", asked_states, expected)
    return warnings


def _read_sources(dataset: DemonstrationDataset) -> tuple[list[str], list[StateSource]] | None:
    path = dataset.root / SOURCES_PATH
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [str(name) for name in content["cameras"]], [StateSource(**part) for part in content["states"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, f"it does not list cameras and states ({error})") from error


def _other_mapping(dataset: DemonstrationDataset, key: str, value: Any, expected: str) -> UserError:
    return UserError(
        f"Another mapping than the demonstrations in {dataset.root} were made with",
        key=key,
        value=value,
        expected=expected,
        fix="correct it, or record or convert the demonstrations again with this mapping",
    )


def _observation_ranges(states: Sequence[StateSource]) -> dict[str, Range]:
    """Parts of the state by the last name of their observation, in full where that is not unique."""
    short = [_last_name(source.key) for source in states]
    ranges: dict[str, Range] = {}
    start = 0
    for name, source in zip(short, states, strict=True):
        stop = start + source.stop - source.start
        key = name if short.count(name) == 1 else f"{source.key}[{source.start}:{source.stop}]"
        ranges[key] = (start, stop)
        start = stop
    return ranges


def _last_name(key: str) -> str:
    """`eef_pos` of `policy/eef_pos`."""
    return key.rpartition("/")[2]


def _short_names(keys: Sequence[str]) -> tuple[str, ...]:
    """Last names of observations, in full where they are not unique."""
    short = [_last_name(key) for key in keys]
    return tuple(name if short.count(name) == 1 else key for name, key in zip(short, keys, strict=True))


def _slices(ranges: Mapping[str, Range]) -> dict[str, dict[str, int]]:
    return {key: {"start": start, "end": stop} for key, (start, stop) in ranges.items()}
