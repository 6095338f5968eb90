"""Demonstrations as a dataset: the features that `collect` and `convert` write and `sft` reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from regrasp.data.lerobot import FeatureSpec
from regrasp.envs.mapping_config import MappingConfig
from regrasp.envs.quaternions import QuaternionOrder
from regrasp.envs.selection import (
    ObservationSelection,
    Range,
    StateSource,
    camera_names,
    numbered_cameras,
    state_names,
)
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
        "state": _slices(names.state or observation_ranges(observations.states)),
        "action": _slices(names.action or {"action": (0, action_dim)}),
        "video": {
            view: {"original_key": name} for view, name in zip(views, camera_features(len(cameras)), strict=False)
        },
        "annotation": {names.language.removeprefix("annotation."): {"original_key": "task_index"}},
    }


def check_actions(config: ExperimentConfig, actions: np.ndarray, source: str) -> None:
    """Check that what a model is taught to give, turned back into actions, are the demonstrations' actions.

    Args:
        config: The experiment.
        actions: (N, A) float32, all of them.
        source: What they are of, for errors.

    Raises:
        UserError: The data configuration's normalisation does not give them back.
    """
    mapping = config.env.train.mapping
    input_names(mapping).check_actions(state_names(mapping), torch.from_numpy(actions), source)


def sources(observations: ObservationSelection, quaternions: QuaternionOrder | None) -> dict[str, Any]:
    """Content of `meta/sources.json`.

    Args:
        observations: Cameras in order, what is done to their images, and the slices of the state.
        quaternions: The order of those in the state; None where it is not known.
    """
    return {
        "cameras": list(observations.cameras),
        "image_transforms": list(observations.image_transforms),
        "states": [dataclasses.asdict(part) for part in observations.states],
        "quaternions": quaternions,
    }


def observation_ranges(states: Sequence[StateSource]) -> dict[str, Range]:
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
