"""Training pairs of supervised training, read from a dataset episode by episode."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.data.lerobot import action_chunks
from regrasp.envs.contract import Observation
from regrasp.envs.mapping import named_state
from regrasp.envs.mapping_config import MappingConfig
from regrasp.envs.selection import state_names
from regrasp.experiment import SftConfig
from regrasp.logging.progress import progress
from regrasp.models.contract import Policy
from regrasp.stages.camera_checks import CameraChecks
from regrasp.stages.dataset_features import DatasetFeatures

_log = logging.getLogger(__name__)

_PART = 256
"""Frames prepared at once."""


@dataclass
class Frames:
    """Training pairs of N frames."""

    inputs: TensorDict
    """Prepared observations, or features where the backbone is frozen."""
    actions: Tensor
    """(N, H, A) physical units."""
    valid: Tensor
    """(N, H) bool."""

    def rows(self, index: Tensor) -> Frames:
        """The frames in `index`."""
        return Frames(self.inputs[index], self.actions[index], self.valid[index])

    def to(self, device: torch.device) -> Frames:
        """The frames on `device`."""
        return Frames(self.inputs.to(device), self.actions.to(device), self.valid.to(device))


def load_frames(
    policy: Policy, features: DatasetFeatures, mapping: MappingConfig, sft: SftConfig
) -> tuple[Frames, Frames | None]:
    """Training and validation frames, split by episode: the last episodes are held out.

    Images are held in memory as the policy prepares them; at the size they were recorded in, for one episode at a time.
    """
    dataset = features.dataset
    columns = dataset.load_columns(["episode_index", "frame_index"])
    kept = np.flatnonzero(columns["frame_index"] % sft.frame_stride == 0)
    actions, valid = action_chunks(features.load_actions(), columns["episode_index"], policy.spec.action_horizon)
    parts = prepared_frames(policy, features, mapping, kept)
    frames = Frames(TensorDict.cat(list(parts)), torch.from_numpy(actions[kept]), torch.from_numpy(valid[kept]))
    num_held_out = int(dataset.num_episodes * sft.validation_fraction)
    held_out = torch.from_numpy(columns["episode_index"][kept] >= dataset.num_episodes - num_held_out)
    train = frames.rows(torch.nonzero(~held_out).flatten())
    return train, frames.rows(torch.nonzero(held_out).flatten()) if num_held_out else None


def prepared_frames(
    policy: Policy, features: DatasetFeatures, mapping: MappingConfig, kept: np.ndarray
) -> Iterator[TensorDict]:
    """Prepared observations of the frames in `kept`, in order, under the names that the mapping gives."""
    dataset, states, instructions = features.dataset, features.load_states(), features.load_instructions()
    checks = CameraChecks()
    with progress("Reading demonstrations", dataset.num_episodes) as bar:
        for index, episode in enumerate(dataset.episodes):
            own = kept[(kept >= episode.start) & (kept < episode.stop)]
            images = {name: dataset.load_images(feature, [index]) for name, feature in features.cameras.items()}
            checks.add(images)
            observation = Observation(
                images={name: torch.from_numpy(view[own - episode.start]) for name, view in images.items()},
                state=named_state(torch.from_numpy(states[own]), state_names(mapping)),
                instruction=[instructions[row] for row in own],
            )
            for part in torch.arange(len(own)).split(_PART):
                yield policy.prepare(observation.rows(part))
            bar.advance()
    for warning in checks.warnings():
        _log.warning(warning)
