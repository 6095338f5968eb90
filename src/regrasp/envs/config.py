"""Blocks `env.train` and `env.eval`: what every simulator has. A simulator's own block adds its own keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from regrasp.config.problems import not_a_multiple
from regrasp.config.types import BLOCK, Name, PositiveFloat, PositiveInt, Seed
from regrasp.envs.mapping_config import MappingConfig
from regrasp.errors import UserError

EnvName = Literal["train", "eval"]


@dataclass(frozen=True, config=BLOCK)
class VideoConfig:
    """Videos of episodes."""

    save_video: bool = False
    """Record episodes as MP4."""
    info_on_video: bool = True
    """Write instruction, step, reward and outcome onto the frames."""
    video_base_dir: Name | None = None
    """Folder in which every run has a folder of videos; null: `videos` in the run's log folder."""


@dataclass(frozen=True, config=BLOCK)
class InitParams:
    """What the simulator is started with."""

    id: Name
    """Task, by its registered name."""
    num_envs: PositiveInt | None = None
    """RLinf's second name of `total_num_envs`, which it must equal; null: not given."""
    max_episode_steps: PositiveInt | None = None
    """RLinf's second name of the environment's `max_episode_steps`, which it must equal; null: not given."""


@dataclass(frozen=True, config=BLOCK)
class TimeoutsConfig:
    """Seconds after which a silent simulator is an error."""

    startup_s: PositiveFloat = 300.0
    """Start of the simulator's process."""
    reset_s: PositiveFloat = 120.0
    """One reset."""
    step_s: PositiveFloat = 120.0
    """One action chunk."""


@dataclass(frozen=True, config=BLOCK)
class EnvConfig:
    """One set of parallel environments."""

    seeds_each: ClassVar[bool] = True
    """Whether the simulator takes a seed for every single environment."""
    env_type: Name
    """Simulator, by its registered name."""
    total_num_envs: PositiveInt
    """Environments stepped together."""
    max_episode_steps: PositiveInt
    """An episode is truncated after this many environment steps."""
    init_params: InitParams
    """What the simulator is started with."""
    mapping: MappingConfig
    """Observations and actions; `isaaclab` is another name of this block."""
    ignore_terminations: bool = False
    """Let episodes run to the step limit, whatever the task says."""
    seed: Seed = 0
    """Seed of the episodes; training and evaluation draw from different streams even where it is equal."""
    video_cfg: VideoConfig = VideoConfig()
    """Videos of episodes."""
    num_workers: PositiveInt | None = None
    """Simulator processes; null: one per free core."""
    timeouts: TimeoutsConfig = TimeoutsConfig()
    """Deadlines of the simulator's processes."""
    python: Name | None = None
    """Interpreter of the simulator's processes; null: the one that runs Regrasp."""

    def problems(self, key: str) -> Iterator[UserError]:
        """What keys that are right one by one say against each other.

        Args:
            key: Where this block stands.
        """
        for copy, original in (("num_envs", "total_num_envs"), ("max_episode_steps", "max_episode_steps")):
            value, counts = getattr(self.init_params, copy), getattr(self, original)
            if value not in (None, counts):
                yield UserError(
                    "Contradiction",
                    key=f"{key}.init_params.{copy}",
                    value=value,
                    expected=f"null, or the same as {key}.{original} ({counts})",
                    fix=f"remove {key}.init_params.{copy}; {key}.{original} is the number that counts",
                )
        yield from self.mapping.problems(f"{key}.mapping")


@dataclass(frozen=True, config=BLOCK, kw_only=True)
class TrainEnvConfig(EnvConfig):
    """The environments of training."""

    max_steps_per_rollout_epoch: PositiveInt
    """Environment steps per environment and rollout epoch; a multiple of `actor.model.num_action_chunks`."""
    auto_reset: bool = False
    """Begin a new episode where one ends; otherwise a rollout epoch holds one episode per environment."""

    def problems(self, key: str) -> Iterator[UserError]:
        """See `EnvConfig.problems`; training episodes cannot be recorded either."""
        yield from super().problems(key)
        if self.video_cfg.save_video:
            yield UserError(
                "Training episodes are not recorded",
                key=f"{key}.video_cfg.save_video",
                value=True,
                expected="false",
                fix="set env.eval.video_cfg.save_video=true and runner.val_check_interval, which records evaluations",
            )

    def rollout_problems(self, key: str, chunk: int) -> Iterator[UserError]:
        """What the length of a rollout has against action chunks of this length, and against an episode's."""
        steps, key = self.max_steps_per_rollout_epoch, f"{key}.max_steps_per_rollout_epoch"
        yield from not_a_multiple(key, steps, "actor.model.num_action_chunks", chunk)
        if steps % chunk == 0 and not self.auto_reset and steps - chunk >= self.max_episode_steps:
            yield UserError(
                "Longer than an episode",
                key=key,
                value=steps,
                expected=f"at most {-(-self.max_episode_steps // chunk) * chunk}: without auto_reset an environment"
                f" does nothing after its episode of {self.max_episode_steps} steps",
                fix=f"lower {key}, or set env.train.auto_reset=true",
            )


@dataclass(frozen=True, config=BLOCK)
class EvalEnvConfig(EnvConfig):
    """The environments of an evaluation."""

    num_episodes: PositiveInt = 500
    """Episodes of one evaluation pass, each with its own fixed seed."""
    inference_block: PositiveInt = 32
    """Rows of one padded inference call, so that an outcome does not depend on the number of environments."""
