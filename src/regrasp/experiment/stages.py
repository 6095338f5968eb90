"""Blocks `collect` and `sft`: the stages before RL."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from regrasp.config.types import (
    BLOCK,
    Expect,
    Name,
    Names,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
)
from regrasp.envs.mapping_config import States

ActionNoise = Annotated[
    NonNegativeFloat | Annotated[tuple[NonNegativeFloat, ...], Field(strict=False, min_length=1)],
    Expect("a number of at least 0, or a list of such, one for each action"),
]


@dataclass(frozen=True, config=BLOCK)
class CollectConfig:
    """Demonstrations by the task's scripted expert, a policy, or a function of one's own."""

    num_demos: PositiveInt
    """Demonstrations to keep."""
    output_dir: Name = "demos"
    """Folder of the dataset."""
    action_noise: ActionNoise = 0.15
    """Standard deviation of the noise on the expert's executed (not recorded) actions, as a fraction of their range:
    one for all but those that the task names as grippers, or a list with one for each action of the simulator."""
    seed: Seed | None = None
    """Seed of the episodes; null: the run's seed."""
    max_attempts_factor: Annotated[float, Field(ge=1)] = 3.0
    """The stage gives up after this many times `num_demos` attempts."""
    only_successful: bool = True
    """Keep successful demonstrations only."""


@dataclass(frozen=True, config=BLOCK)
class FeaturesConfig:
    """Which features of a dataset the policy sees and does, where their names do not tell it."""

    cameras: Names | None = None
    """Features of the main camera and then of the extra ones; null: those that `collect` writes, or by their names."""
    states: States | None = None
    """Features laid end to end, each a name or `{key, slice}`; null: `observation.state`, or by their names."""
    action: States | None = None
    """The same for the action; null: `action`, or by its names."""
    instruction: Name | None = None
    """Column of texts, or of indices of the dataset's tasks; null: `task_index`."""


@dataclass(frozen=True, config=BLOCK)
class SftConfig:
    """Supervised fine-tuning of the base model on demonstrations."""

    data: Name | None = None
    """Folder of the dataset; null: `collect.output_dir`."""
    features: FeaturesConfig = FeaturesConfig()
    """Features of a dataset that others wrote."""
    output_dir: Name = "base"
    """Folder of the trained model."""
    backbone: Name | None = None
    """Folder of the pretrained backbone; null: the user's cache, where `pretrain` puts it."""
    frame_stride: PositiveInt = 1
    """Train on every n-th frame of an episode."""
    train: Literal["head", "all"] = "head"
    """Train the action head on cached features, or the whole model."""
    batch_size: PositiveInt = 256
    """Frames of one optimizer step."""
    steps: PositiveInt = 250
    """Optimizer steps."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 1e-4
    """Decoupled weight decay."""
    warmup_steps: NonNegativeInt = 50
    """Optimizer steps over which the learning rate rises from 0."""
    clip_grad: PositiveFloat = 1.0
    """Largest gradient norm."""
    noise_repeats: PositiveInt = 2
    """Noise samples per frame and optimizer step."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Part of the episodes that is held out."""
    eval_interval: PositiveInt = 50
    """Optimizer steps between two validation losses."""
    seed: Seed | None = None
    """Seed of weights, batches and noise; null: the run's seed."""


@dataclass(frozen=True, config=BLOCK)
class DistillConfig:
    """Teaching a plain model what one with a residual or an actor of its noise does; the optimizer is that of `sft`."""

    num_episodes: PositiveInt = 256
    """Episodes of a round."""
    rounds: PositiveInt = 3
    """In the first the teacher acts, then the student; after each, the student is trained on all that was seen."""
