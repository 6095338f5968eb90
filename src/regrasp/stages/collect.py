"""Stage 1: demonstrations by a scripted expert, a policy or a function, stored as a LeRobotDataset v3."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regrasp.data.lerobot import DatasetWriter
from regrasp.data.lerobot.schema import INFO_PATH
from regrasp.engine.acting import create_chooser
from regrasp.engine.policies import check_folder_fits, warn_of_another_task
from regrasp.envs.config import EnvConfig
from regrasp.envs.contract import STATE, Observation, VecEnv
from regrasp.envs.mapping import ActionMapping
from regrasp.envs.process.simulator import SimulatorSpec
from regrasp.envs.registry import create_env, env_type_of
from regrasp.envs.selection import ObservationSelection
from regrasp.errors import UserError
from regrasp.experiment import CollectConfig, ExperimentConfig
from regrasp.folders import require_output
from regrasp.logging.progress import progress
from regrasp.rollout.choosers import load_script, one_step_at_a_time
from regrasp.rollout.episodes import Choose, EpisodeResult, Episodes, NumberedEpisodes, Recorder, play_episodes
from regrasp.seeding import numpy_generator
from regrasp.stages.demonstrations import demonstration_columns, demonstration_features, modality, sources


@dataclass(frozen=True)
class Demonstrator:
    """What acts in demonstrations."""

    name: str
    """For messages."""
    choose: Choose
    noisy: bool = False
    """What is executed has noise on it (`collect.action_noise`): it is asked anew every step, so it corrects it."""


@dataclass
class Demonstration:
    """What was seen and done in one episode, without the noise on what was executed."""

    noise: np.random.Generator
    """Of the episode."""
    images: list[list[Tensor]] = field(default_factory=list)
    """Of the main camera and then of the extra ones, by step."""
    states: list[Tensor] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)

    def columns(self) -> dict[str, np.ndarray]:
        """The episode as `DatasetWriter.add_episode` takes it."""
        return demonstration_columns(
            torch.stack(self.states).numpy(),
            torch.stack(self.actions).numpy(),
            (torch.stack(images).numpy() for images in zip(*self.images, strict=True)),
        )


class DemonstrationRecorder(Recorder):
    """Keeps what is seen and decided, and has it executed with noise where that is wanted.

    Args:
        mapping: From the policy's actions to the simulator's.
        seed: Noise is drawn from (seed, "data", 1, index of the episode).
        noise_std: (A,) standard deviations of the noise on the simulator's actions, 0 for none.
    """

    def __init__(self, mapping: ActionMapping, seed: int, noise_std: np.ndarray) -> None:
        self._mapping = mapping
        self._seed = seed
        self._noise_std = noise_std
        self._noisy = np.flatnonzero(noise_std)
        self._running: dict[int, Demonstration] = {}

    def acting(self, episodes: Episodes, observation: Observation, actions: Tensor) -> Tensor:
        """Keep the actions of one step, (B, 1, A), and return those to execute."""
        executed = actions.clone()
        for row, env_id in enumerate(episodes.rows.tolist()):
            index = episodes.index(env_id)
            if index not in self._running:
                self._running[index] = Demonstration(numpy_generator(self._seed, "data", 1, index))
            demonstration = self._running[index]
            demonstration.images.append([images[row].clone() for images in observation.images.values()])
            demonstration.states.append(observation.state[STATE][row])
            demonstration.actions.append(self._mapping.inverse(actions[row, 0]))
            noise = demonstration.noise.normal(0, self._noise_std[self._noisy])
            executed[row, 0, self._noisy] += torch.from_numpy(noise).float()
        return executed

    def finished(self, index: int) -> Demonstration:
        """Hand over an episode that has ended."""
        return self._running.pop(index)


def check(config: ExperimentConfig, output: Path | None, policy: str, *, overwrite: bool) -> Path:
    """Find, before a simulator starts, what a recording would be refused for; see `collect`.

    Returns:
        The folder that it writes.
    """
    assert config.collect is not None
    key = "collect.output_dir" if output is None else "--output"
    folder = output or Path(config.collect.output_dir)
    require_output(folder, replaces=INFO_PATH, overwrite=overwrite, key=key)
    if policy == "expert":
        env_type = env_type_of(config.env.train, "train")
        env_type.check_expert(config.env.train, "train")
        spec = env_type.describe(config.env.train, "train")
        if spec is not None:
            noise_scales(config.collect, spec)
    elif policy == "model":
        check_folder_fits(config, "train")
        warn_of_another_task(config, "train")
    else:
        load_script(policy)
    return folder


def collect(
    config: ExperimentConfig, output: Path | None = None, policy: str = "expert", *, overwrite: bool = False
) -> tuple[Path, int]:
    """Record a dataset into `output` (default: `collect.output_dir`).

    Args:
        config: The experiment.
        output: The folder.
        policy: What acts: `expert`, the task's own; `model`, the policy of `actor.model.model_path`; or
            `module:function`, see `script_chooser`.
        overwrite: Replace the dataset that is there.

    Returns:
        The folder and the number of attempts.

    Raises:
        UserError: The folder is taken or cannot be written, the task has no expert, or the function is not found.
            Or the demonstrator fails too often.
        SimulatorError: The simulator failed.
    """
    assert config.collect is not None
    folder = check(config, output, policy, overwrite=overwrite)
    seed = config.seed if config.collect.seed is None else config.collect.seed
    num_envs = min(config.env.train.total_num_envs, config.collect.num_demos)
    train = dataclasses.replace(config.env.train, total_num_envs=num_envs)
    with contextlib.closing(create_env(train, "train", 1, config.seed)) as env:
        mapping = ActionMapping(train.mapping, config.actor.model.action_dim, env.spec.action_dim, "env.train.mapping")
        name = {"expert": "expert", "model": "policy"}.get(policy, f"script {policy}")
        choose = create_chooser(policy, config, env, "train", seed)
        demonstrator = Demonstrator(name, choose, noisy=policy == "expert")
        return folder, record(config.collect, train, env, mapping, seed, folder, demonstrator)


def record(
    config: CollectConfig,
    env_config: EnvConfig,
    env: VecEnv,
    mapping: ActionMapping,
    seed: int,
    output: Path,
    demonstrator: Demonstrator,
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
        demonstrator: What acts.

    Returns:
        The number of episodes attempted.

    Raises:
        UserError: The demonstrator fails too often. Nothing is written, and what was in `output` is as it was.
        SimulatorError: The simulator failed.
    """
    if config.only_successful and not env.spec.tells_success:
        raise UserError(
            f"{env.spec.task_id} has no success signal, so no demonstration would be kept",
            key="collect.only_successful",
            value=True,
            expected="false, for a task without success",
            fix="set collect.only_successful=false, or have the environment tell success",
        )
    limit = int(config.num_demos * config.max_attempts_factor)
    fps = round(1 / env.spec.step_seconds)
    observations = ObservationSelection(env_config.mapping, env.spec.raw_observations, "env.train.mapping")
    features = demonstration_features(env.spec.state_dim, mapping.policy_dim, observations.camera_shapes)
    writer = DatasetWriter(
        output,
        fps=fps,
        robot_type=env.spec.task_id,
        features=features,
        overwrite=True,
        modality=modality(env_config.mapping, observations, mapping.policy_dim),
        sources=sources(observations, env.spec.quaternions),
    )
    noise = noise_scales(config, env.spec) if demonstrator.noisy else np.zeros(env.spec.action_dim)
    attempts = 0
    with progress("Collecting demonstrations", config.num_demos) as bar, writer:
        for demonstration, result in _demonstrations(env, mapping, demonstrator, noise, seed):
            attempts += 1
            if result.success or not config.only_successful:
                writer.add_episode(demonstration.columns(), result.instruction, bool(result.success))
                bar.advance(attempts=str(attempts))
            else:
                bar.advance(0, attempts=str(attempts))
            if writer.num_episodes == config.num_demos:
                return attempts
            if attempts == limit:
                raise _too_rarely(config, demonstrator.name, writer.num_episodes, attempts, output)
    raise AssertionError("the episodes are endless")


def noise_scales(config: CollectConfig, spec: SimulatorSpec) -> np.ndarray:
    """(A,) standard deviations of the noise on a simulator's actions; a single one is not for its grippers.

    Raises:
        UserError: There are as many as it has no actions.
    """
    if not isinstance(config.action_noise, tuple):
        scales = np.full(spec.action_dim, config.action_noise)
        scales[list(spec.grippers)] = 0.0
        return scales
    if len(config.action_noise) != spec.action_dim:
        raise UserError(
            f"Noise for {len(config.action_noise)} actions; {spec.task_id} has {spec.action_dim}",
            key="collect.action_noise",
            value=list(config.action_noise),
            expected=f"one number, or {spec.action_dim}",
            fix="give one for each of the simulator's actions, in their order; 0 for none",
        )
    return np.asarray(config.action_noise)


def _too_rarely(config: CollectConfig, name: str, num_successes: int, attempts: int, output: Path) -> UserError:
    """What to tell where so few attempts succeed that their number passes its limit."""
    kept = f"nothing was written, and {output} is as it was before"
    fix = "have something act that succeeds more often, or keep failures too (collect.only_successful=false)"
    if num_successes:
        factor = math.ceil(1.5 * attempts / num_successes)
        fix = f"allow more attempts (collect.max_attempts_factor={factor}), ask for fewer (--num_demos), or {fix}"
    return UserError(
        f"The {name} succeeded in {num_successes} of {attempts} attempts, too rarely for {config.num_demos}"
        f" demonstrations; {kept}",
        key="collect.max_attempts_factor",
        value=config.max_attempts_factor,
        expected=f"a demonstrator that succeeds {config.num_demos} times in {attempts} attempts",
        fix=fix,
    )


def _demonstrations(
    env: VecEnv, mapping: ActionMapping, demonstrator: Demonstrator, noise: np.ndarray, seed: int
) -> Iterator[tuple[Demonstration, EpisodeResult]]:
    """Episodes in the order of their index, an endless supply; all environments begin theirs together."""
    episodes = NumberedEpisodes(env, seed, "data", auto_reset=False)
    recorder = DemonstrationRecorder(mapping, seed, noise)
    ended: dict[int, tuple[Demonstration, EpisodeResult]] = {}
    turn = 0
    for index, result in play_episodes(episodes, one_step_at_a_time(demonstrator.choose, env), recorder):
        ended[index] = recorder.finished(index), result
        while turn in ended:
            yield ended.pop(turn)
            turn += 1
