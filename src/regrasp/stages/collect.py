"""Stage 1: demonstrations by a scripted expert, a policy or a function, stored as a LeRobotDataset v3."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regrasp.data.lerobot import DatasetWriter
from regrasp.envs.contract import Observation, VecEnv
from regrasp.envs.mapping import ActionMapping
from regrasp.envs.selection import ObservationSelection
from regrasp.errors import SimulatorError
from regrasp.experiment import CollectConfig, EnvConfig
from regrasp.logging.progress import progress
from regrasp.seeding import episode_seed, numpy_generator
from regrasp.stages.demonstrations import demonstration_columns, demonstration_features, sources
from regrasp.stages.demonstrators import Demonstrator, expert_demonstrator


@dataclass
class Demonstration:
    """One episode as it was meant, without the noise on what was executed."""

    instruction: str
    success: bool
    images: list[np.ndarray] = field(default_factory=list)
    extra_images: list[np.ndarray] = field(default_factory=list)
    states: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)


def collect(
    config: CollectConfig,
    env_config: EnvConfig,
    env: VecEnv,
    mapping: ActionMapping,
    seed: int,
    output: Path,
    demonstrator: Demonstrator | None = None,
) -> int:
    """Record `num_demos` demonstrations into the dataset folder `output`.

    The recorded action is the demonstrator's; what an expert executes has noise on it (DART, arXiv:1703.09327), so that
    the data also shows how to return to the path.

    Args:
        config: How many, and which are kept.
        env_config: The block `env.train`.
        env: Its environments.
        mapping: From the policy's actions to the simulator's.
        seed: Of the episodes.
        output: Folder of the dataset; one that is there is replaced.
        demonstrator: What acts; None for the task's scripted expert.

    Returns:
        The number of episodes attempted.

    Raises:
        UserError: The task has no scripted expert.
        SimulatorError: The demonstrator fails too often.
    """
    demonstrator = demonstrator or expert_demonstrator(env)
    limit = int(config.num_demos * config.max_attempts_factor)
    fps = round(1 / env.spec.step_seconds)
    observations = ObservationSelection(env_config.mapping, env.spec.raw_observations, "env.train.mapping")
    shapes = [observations.raw[key].shape for key in observations.cameras]
    features = demonstration_features(env.spec.state_dim, mapping.policy_dim, shapes)
    writer = DatasetWriter(
        output,
        fps=fps,
        robot_type=env.spec.task_id,
        features=features,
        overwrite=True,
        sources=sources(observations),
    )
    attempts = 0
    with progress("Collecting demonstrations", config.num_demos) as bar, writer:
        for demonstration in _demonstrations(env, mapping, demonstrator, config.action_noise, seed):
            attempts += 1
            if demonstration.success or not config.only_successful:
                writer.add_episode(_columns(demonstration), demonstration.instruction, demonstration.success)
                bar.advance(attempts=str(attempts))
            if writer.num_episodes == config.num_demos:
                return attempts
            if attempts == limit:
                raise SimulatorError(
                    f"The {demonstrator.name} succeeded in {writer.num_episodes} of {attempts} attempts, too rarely for"
                    f" {config.num_demos} demonstrations (collect.max_attempts_factor = {config.max_attempts_factor})."
                )
    raise AssertionError("the episodes are endless")


def _demonstrations(
    env: VecEnv, mapping: ActionMapping, demonstrator: Demonstrator, action_noise: float, seed: int
) -> Iterator[Demonstration]:
    """Episodes in the order of their index, an endless supply, in waves of all environments at once."""
    count = env.spec.num_envs
    wave = 0
    while True:
        indices = range(wave * count, (wave + 1) * count)
        yield from _wave(env, mapping, demonstrator, action_noise, seed, indices)
        wave += 1


def _wave(
    env: VecEnv, mapping: ActionMapping, demonstrator: Demonstrator, action_noise: float, seed: int, indices: range
) -> list[Demonstration]:
    rows = range(len(indices))
    noise = [numpy_generator(seed, "data", 1, index) for index in indices]
    observation = env.reset(rows, [episode_seed(seed, "data", index) for index in indices])
    demonstrations = [Demonstration(text, False) for text in observation.task_descriptions]
    running = torch.ones(len(rows), dtype=torch.bool)
    for step_index in itertools.count():
        actions = demonstrator.act(observation, indices, step_index, running)
        executed = actions.clone()
        for row in torch.nonzero(running).flatten().tolist():
            _append(demonstrations[row], observation, row, mapping.inverse(actions[row]))
            if demonstrator.noisy:
                executed[row, :-1] += torch.from_numpy(noise[row].normal(0, action_noise, actions.shape[1] - 1)).float()
        step = env.step(executed[:, None])
        for row in torch.nonzero(step.success).flatten().tolist():
            demonstrations[row].success = True
        running &= ~step.done
        observation = step.observation
        if not running.any():
            break
    return demonstrations


def _append(demonstration: Demonstration, observation: Observation, row: int, action: Tensor) -> None:
    demonstration.images.append(observation.main_images[row].numpy())
    if observation.extra_view_images is not None:
        demonstration.extra_images.append(observation.extra_view_images[row].numpy())
    demonstration.states.append(observation.states[row].numpy())
    demonstration.actions.append(action.numpy())


def _columns(demonstration: Demonstration) -> dict[str, np.ndarray]:
    extra = demonstration.extra_images
    return demonstration_columns(
        np.stack(demonstration.states),
        np.stack(demonstration.actions),
        np.stack(demonstration.images),
        np.stack(extra) if extra else None,
    )
