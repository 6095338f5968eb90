"""Demonstrations as a dataset: the features that `collect` and `convert` write and `sft` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regrasp.config.schema import MappingConfig, ModelConfig
from regrasp.data.lerobot import FeatureSpec
from regrasp.envs.selection import StateSource
from regrasp.models.groot.data_config import HUMAN_TASK
from regrasp.models.groot.processor_config import given_data_config
from regrasp.models.groot.selection import Range, key_ranges
from regrasp.runners.policies import input_names

STATE = "observation.state"
ACTION = "action"
MAIN_CAMERA = "observation.images.main"
EXTRA_CAMERA = "observation.images.extra_{}"


def camera_features(num_cameras: int) -> tuple[str, ...]:
    """Names of the main camera and then of the extra ones."""
    return (MAIN_CAMERA, *(EXTRA_CAMERA.format(i) for i in range(num_cameras - 1)))[:num_cameras]


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
    states: np.ndarray, actions: np.ndarray, main_images: np.ndarray, extra_view_images: np.ndarray | None
) -> dict[str, np.ndarray]:
    """One episode as `DatasetWriter.add_episode` takes it.

    Args:
        states: (T, D) float32.
        actions: (T, A) float32.
        main_images: (T, H, W, 3) uint8, of size 0 without images.
        extra_view_images: (T, V, H, W, 3) uint8, or None.
    """
    columns = {STATE: states, ACTION: actions}
    if main_images.size:
        columns[MAIN_CAMERA] = main_images
    if extra_view_images is not None:
        columns |= {EXTRA_CAMERA.format(i): extra_view_images[:, i] for i in range(extra_view_images.shape[1])}
    return columns


def modality(
    model: ModelConfig,
    mapping: MappingConfig,
    states: Sequence[StateSource],
    action_dim: int,
    num_cameras: int,
) -> dict[str, Any]:
    """Content of GR00T's `meta/modality.json`: names of cameras, and of slices of state and action.

    The names are those of `gr00t_mapping` and `data_config`. Without them a part of the state is called as its
    observation, the action is one part, and cameras are called as their features.

    Args:
        model: The model.
        mapping: Its inputs.
        states: What the state vector is made of.
        action_dim: Width of the policy's action.
        num_cameras: Cameras in all.

    Raises:
        UserError: The data configuration's parts do not fit the state or the action.
    """
    inputs = input_names(model, mapping)
    data = given_data_config(inputs)
    state_ranges = _observation_ranges(states)
    state_dim = max((stop for _, stop in state_ranges.values()), default=0)
    action_ranges = {"action": (0, action_dim)}
    if data is not None:
        state_ranges, action_ranges = key_ranges(data, inputs, state_dim, action_dim)
    elif inputs.state is not None:
        state_ranges = {key: (start, stop) for key, start, stop in inputs.state}
    features = camera_features(num_cameras)
    views = inputs.views or tuple(name.rpartition(".")[2] for name in features)
    language = HUMAN_TASK if data is None else data.language
    return {
        "state": _slices(state_ranges),
        "action": _slices(action_ranges),
        "video": {view: {"original_key": name} for view, name in zip(views, features, strict=False)},
        "annotation": {language.removeprefix("annotation."): {"original_key": "task_index"}},
    }


def _observation_ranges(states: Sequence[StateSource]) -> dict[str, Range]:
    """Parts of the state by the last name of their observation, in full where that is not unique."""
    short = [source.key.rpartition("/")[2] for source in states]
    ranges: dict[str, Range] = {}
    start = 0
    for name, source in zip(short, states, strict=True):
        stop = start + source.stop - source.start
        key = name if short.count(name) == 1 else f"{source.key}[{source.start}:{source.stop}]"
        ranges[key] = (start, stop)
        start = stop
    return ranges


def _slices(ranges: Mapping[str, Range]) -> dict[str, dict[str, int]]:
    return {key: {"start": start, "end": stop} for key, (start, stop) in ranges.items()}
