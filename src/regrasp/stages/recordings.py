"""A recorded episode of Isaac Lab through the experiment's mapping."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from regrasp.data.isaaclab_hdf5 import EpisodeError, RecordedArray, RecordedEpisode, RecorderFile
from regrasp.envs.contract import STATE, ArraySpec
from regrasp.envs.mapping import ActionMapping, ObservationMapping
from regrasp.experiment import ExperimentConfig
from regrasp.stages.demonstrations import demonstration_columns

LOCATION = "env.train.mapping"
"""Where the mapping stands, for errors."""


@dataclass(frozen=True)
class Layout:
    """What all episodes of a dataset have in common."""

    state_dim: int
    camera_shapes: tuple[tuple[int, ...], ...]
    """(height, width, 3) of the main camera and then of the extra ones."""

    def __str__(self) -> str:
        cameras = ", ".join(f"{height} x {width}" for height, width, _ in self.camera_shapes)
        return f"a state of {self.state_dim} and cameras of {cameras or 'no size'}"


@dataclass(frozen=True)
class ConvertedEpisode:
    """An episode as it goes into the dataset."""

    columns: dict[str, np.ndarray]
    instruction: str
    lost_action: float
    """Largest difference of an entry of the action that the policy does not drive from the mapping's constant."""


class EpisodeConverter:
    """The mapping, checked against what an episode holds.

    Raises:
        EpisodeError: An observation does not have a row per action, or a camera has an odd size.
        UserError: The mapping asks for what the recording does not hold, or the action has another width.
    """

    def __init__(self, config: ExperimentConfig, episode: RecordedEpisode) -> None:
        mapping = config.env.train.mapping
        raw = {key: ArraySpec(array.shape, array.dtype) for key, array in episode.observations.items()}
        self.observations = ObservationMapping(mapping, raw, LOCATION, "The recording", _advice(episode))
        self._actions = ActionMapping(mapping, config.actor.model.action_dim, episode.action_dim, LOCATION)
        self._episode = episode
        self._mapping = mapping
        self._instruction_key, (key, self._instructions) = None, mapping.instruction_choice()
        if key is not None:
            self._instruction_key = self.observations.find(key, "instruction_key")
            if "int" not in raw[self._instruction_key].dtype:
                raise EpisodeError(f"{key}, which chooses the instruction, is no whole number")
        for key in (*self.observations.keys, self._instruction_key):
            if key is not None:
                episode.check_rows(key)
        for key in self.observations.cameras:
            _check_even(episode.observations[key])

    @property
    def layout(self) -> Layout:
        """Sizes that have to be those of the other episodes."""
        return Layout(self.observations.state_dim, self.observations.camera_shapes)

    def read(self, recording: RecorderFile) -> ConvertedEpisode:
        """Read the episode and arrange it as the environment would.

        Raises:
            EpisodeError: An array is damaged, or the instruction's index is none.
        """
        instruction = self._instruction(recording)
        simulator_actions = torch.from_numpy(recording.read_actions(self._episode))
        actions = self._actions.inverse(simulator_actions)
        raw = {key: recording.read_observation(self._episode, key) for key in self.observations.keys}
        observation = self.observations(raw, [instruction] * self._episode.num_steps)
        images = (images.numpy() for images in observation.images.values())
        columns = demonstration_columns(observation.state[STATE].numpy(), actions.numpy(), images)
        return ConvertedEpisode(columns, instruction, float((self._actions(actions) - simulator_actions).abs().max()))

    def _instruction(self, recording: RecorderFile) -> str:
        if self._instruction_key is None:
            assert self._mapping.task_description is not None
            return self._mapping.task_description
        index = int(recording.read_observation(self._episode, self._instruction_key).reshape(-1)[0])
        if not 0 <= index < len(self._instructions):
            raise EpisodeError(f"{self._instruction_key} chose instruction {index} of {len(self._instructions)}")
        return self._instructions[index]


def _check_even(camera: RecordedArray) -> None:
    height, width, _ = camera.shape
    if height % 2 or width % 2:
        raise EpisodeError(
            f"{camera.path} is {height} x {width}, and H.264 stores only an even height and width",
            "give the task's camera an even height and width and record again",
        )


def _advice(episode: RecordedEpisode) -> str:
    """What to do about an observation that the episode does not hold."""
    if not episode.observations:
        return (
            "record with a recorder that stores the observations, as Isaac Lab's ActionStateRecorderManagerCfg does:"
            " this recording has none"
        )
    if whole := next((key for key in episode.observations if "/" not in key), None):
        return f"record with concatenate_terms=False in the group '{whole}', which is stored as one vector"
    return (
        "record with a task that has it (a camera: the Visuomotor task, with --enable_cameras), or leave it out of the"
        " mapping"
    )
