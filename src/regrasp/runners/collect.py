"""Stage 1: demonstrations by a scripted expert, stored as a LeRobotDataset v3."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regrasp.config.schema import CollectConfig, EnvConfig
from regrasp.data.lerobot import DatasetWriter, FeatureSpec
from regrasp.envs.contract import Observation, VecEnv
from regrasp.envs.mapping import ActionMapping
from regrasp.errors import SimulatorError, UserError
from regrasp.observe.progress import progress
from regrasp.streams import episode_seed, numpy_generator

STATE = "observation.state"
ACTION = "action"
MAIN_CAMERA = "observation.images.main"
EXTRA_CAMERA = "observation.images.extra_{}"


@dataclass
class Demonstration:
    """One episode as the expert meant it."""

    instruction: str
    success: bool
    images: list[np.ndarray] = field(default_factory=list)
    extra_images: list[np.ndarray] = field(default_factory=list)
    states: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)


def collect(
    config: CollectConfig, env_config: EnvConfig, env: VecEnv, mapping: ActionMapping, seed: int, output: Path
) -> int:
    """Record `num_demos` demonstrations into the dataset folder `output`.

    The recorded action is the expert's; what is executed has noise on it (DART, arXiv:1703.09327), so that the data
    also shows how to return to the path.

    Returns:
        The number of episodes attempted.

    Raises:
        UserError: The task has no scripted expert.
        SimulatorError: The expert fails too often.
    """
    if not env.capabilities.has_expert:
        raise UserError(
            f"Task {env.spec.task_id} has no scripted expert",
            key="env.train.init_params.id",
            value=env.spec.task_id,
            mend="bring demonstrations of your own as a LeRobotDataset v3 and set sft.data",
        )
    limit = int(config.num_demos * config.max_attempts_factor)
    fps = round(1 / env.spec.step_seconds)
    features = _features(env, env_config, mapping)
    attempts = 0
    with (
        progress("Collecting demonstrations", config.num_demos) as bar,
        DatasetWriter(output, fps=fps, robot_type=env.spec.task_id, features=features, overwrite=True) as writer,
    ):
        for demonstration in _demonstrations(env, mapping, config.action_noise, seed):
            attempts += 1
            if demonstration.success or not config.only_successful:
                writer.add_episode(_columns(demonstration), demonstration.instruction, demonstration.success)
                bar.advance(attempts=str(attempts))
            if writer.num_episodes == config.num_demos:
                return attempts
            if attempts == limit:
                raise SimulatorError(
                    f"The expert succeeded in {writer.num_episodes} of {attempts} attempts, too rarely for"
                    f" {config.num_demos} demonstrations (collect.max_attempts_factor = {config.max_attempts_factor})."
                )
    raise AssertionError("the episodes are endless")


def _demonstrations(env: VecEnv, mapping: ActionMapping, action_noise: float, seed: int) -> Iterator[Demonstration]:
    """Episodes in the order of their index, an endless supply, in waves of all environments at once."""
    count = env.spec.num_envs
    wave = 0
    while True:
        indices = range(wave * count, (wave + 1) * count)
        yield from _wave(env, mapping, action_noise, seed, indices)
        wave += 1


def _wave(env: VecEnv, mapping: ActionMapping, action_noise: float, seed: int, indices: range) -> list[Demonstration]:
    rows = range(len(indices))
    noise = [numpy_generator(seed, "data", 1, index) for index in indices]
    observation = env.reset(rows, [episode_seed(seed, "data", index) for index in indices])
    demonstrations = [Demonstration(text, False) for text in observation.task_descriptions]
    running = torch.ones(len(rows), dtype=torch.bool)
    while running.any():
        actions = env.expert_actions()
        executed = actions.clone()
        for row in torch.nonzero(running).flatten().tolist():
            _append(demonstrations[row], observation, row, mapping.inverse(actions[row]))
            executed[row, :-1] += torch.from_numpy(noise[row].normal(0, action_noise, actions.shape[1] - 1)).float()
        step = env.step(executed[:, None])
        for row in torch.nonzero(step.success).flatten().tolist():
            demonstrations[row].success = True
        running &= ~step.done
        observation = step.observation
    return demonstrations


def _append(demonstration: Demonstration, observation: Observation, row: int, action: Tensor) -> None:
    demonstration.images.append(observation.main_images[row].numpy())
    if observation.extra_view_images is not None:
        demonstration.extra_images.append(observation.extra_view_images[row].numpy())
    demonstration.states.append(observation.states[row].numpy())
    demonstration.actions.append(action.numpy())


def _features(env: VecEnv, config: EnvConfig, mapping: ActionMapping) -> dict[str, FeatureSpec]:
    features = {
        STATE: FeatureSpec("float32", (env.spec.state_dim,)),
        ACTION: FeatureSpec("float32", (mapping.policy_dim,)),
    }
    cameras = (config.mapping.main_images, *config.mapping.extra_view_images)
    names = (MAIN_CAMERA, *(EXTRA_CAMERA.format(i) for i in range(len(config.mapping.extra_view_images))))
    for name, camera in zip(names, cameras, strict=True):
        if camera is not None:
            features[name] = FeatureSpec("video", _camera_shape(env, camera))
    return features


def _camera_shape(env: VecEnv, camera: str) -> tuple[int, ...]:
    return next(spec.shape for key, spec in env.spec.raw_observations.items() if camera in (key, key.split("/")[1]))


def _columns(demonstration: Demonstration) -> dict[str, np.ndarray]:
    columns = {STATE: np.stack(demonstration.states), ACTION: np.stack(demonstration.actions)}
    if demonstration.images[0].size:
        columns[MAIN_CAMERA] = np.stack(demonstration.images)
    if demonstration.extra_images:
        extra = np.stack(demonstration.extra_images)
        columns |= {EXTRA_CAMERA.format(i): extra[:, i] for i in range(extra.shape[1])}
    return columns
