"""Between RLinf's observations and actions and those of GR00T N1.5, by the names of `gr00t_mapping`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from regrasp.envs.mapping_config import MappingConfig
from regrasp.envs.selection import camera_names, state_names

_LANGUAGE = "annotation.human.action.task_description"


class ObservationConverter:
    """From an environment's observation to the inputs of GR00T N1.5: a time axis of 1, parts of the state by name.

    Args:
        mapping: The block of the environments; it has a `gr00t_mapping`.
    """

    def __init__(self, mapping: MappingConfig) -> None:
        self._cameras = camera_names(mapping)
        self._parts = state_names(mapping)
        data_config = mapping.data_config
        self._language = _LANGUAGE if data_config is None else data_config.language

    def __call__(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Convert `main_images` (B, H, W, 3), `extra_view_images` (B, V, H, W, 3) and `states` (B, D)."""
        extra = observation.get("extra_view_images")
        views = [observation["main_images"], *([] if extra is None else extra.unbind(1))][: len(self._cameras)]
        states = observation["states"]
        return {
            **{f"video.{name}": view.unsqueeze(1).numpy() for name, view in zip(self._cameras, views, strict=True)},
            **{f"state.{name}": states[:, None, start:stop].numpy() for name, (start, stop) in self._parts.items()},
            self._language: list(observation["task_descriptions"]),
        }


class ActionConverter:
    """From the parts of GR00T's action to the policy's action; the environment places it in the simulator's.

    Args:
        mapping: The block of the environments.
    """

    def __init__(self, mapping: MappingConfig) -> None:
        self._keys = mapping.action_mapping.keys

    def __call__(self, actions: Mapping[str, np.ndarray], chunk_size: int = 1) -> np.ndarray:
        """Join parts (B, H, width) along the last axis, in the order of `action_mapping.keys` or their own.

        Returns:
            The first `chunk_size` steps.
        """
        keys = [f"action.{key.removeprefix('action.')}" for key in self._keys] or list(actions)
        return np.concatenate([actions[key][:, :chunk_size] for key in keys], axis=-1)
