"""Demonstrations as a dataset: the features that `collect` and `convert` write and `sft` reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from regrasp.data.lerobot import DemonstrationDataset, FeatureSpec
from regrasp.data.lerobot.metadata import damaged
from regrasp.data.lerobot.schema import SOURCES_PATH
from regrasp.envs.selection import ObservationSelection, StateSource, numbered_cameras

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


def sources(observations: ObservationSelection) -> dict[str, Any]:
    """Content of `meta/sources.json`: the cameras in order, and the slices that make up the state."""
    return {"cameras": list(observations.cameras), "states": [dataclasses.asdict(part) for part in observations.states]}


def read_sources(dataset: DemonstrationDataset) -> tuple[list[str], list[StateSource]] | None:
    """The cameras and the slices of the state that a dataset was made of; None where it does not say.

    Raises:
        UserError: The file that says it is damaged.
    """
    path = dataset.root / SOURCES_PATH
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [str(name) for name in content["cameras"]], [StateSource(**part) for part in content["states"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, f"it does not list cameras and states ({error})") from error
