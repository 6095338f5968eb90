"""Blocks `pretrain`, `collect` and `sft`: the stages before RL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from regrasp.config.problems import not_a_multiple
from regrasp.config.types import (
    BLOCK,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from regrasp.errors import UserError


@dataclass(frozen=True, config=BLOCK)
class ArchitectureConfig:
    """Sizes of a tiny GR00T that is trained from scratch."""

    image_size: PositiveInt = 84
    """Height and width of a camera image, pixels."""
    patch_size: PositiveInt = 14
    """Height and width of a vision patch, pixels."""
    vision_width: PositiveInt = 96
    """Width of the vision transformer."""
    vision_layers: PositiveInt = 2
    """Layers of the vision transformer."""
    vision_heads: PositiveInt = 3
    """Attention heads of the vision transformer."""
    vision_mlp: PositiveInt = 192
    """Hidden width of the vision transformer's feed-forward layers."""
    language_width: PositiveInt = 96
    """Width of the language model."""
    language_layers: PositiveInt = 2
    """Layers of the language model."""
    language_heads: PositiveInt = 3
    """Query heads of the language model."""
    language_kv_heads: PositiveInt = 1
    """Key and value heads of the language model."""
    language_head_dim: PositiveInt = 32
    """Width of a language attention head."""
    language_mlp: PositiveInt = 192
    """Hidden width of the language model's feed-forward layers."""
    vocab_size: PositiveInt = 512
    """Tokens of the tokenizer."""
    text_length: PositiveInt = 10
    """Fixed length of an instruction, tokens."""
    text_first: bool = True
    """Put the instruction before the image tokens."""
    head_width: PositiveInt = 96
    """Width of the action head."""
    head_layers: PositiveInt = 4
    """Layers of the action head's diffusion transformer."""
    head_heads: PositiveInt = 3
    """Attention heads of the diffusion transformer."""
    vl_self_attention_layers: NonNegativeInt = 1
    """Self-attention layers of the action head over the backbone's features."""
    num_future_tokens: NonNegativeInt = 1
    """Learned tokens between state and actions."""
    action_horizon: PositiveInt = 4
    """Actions that the head predicts per decision."""
    max_state_dim: PositiveInt = 4
    """Width to which states are padded."""
    max_action_dim: PositiveInt = 4
    """Width to which actions are padded."""
    num_embodiments: PositiveInt = 2
    """Slots of embodiment-specific projectors."""

    def problems(self, key: str) -> Iterator[UserError]:
        """Widths that their parts do not divide."""
        for name, divisor in (
            ("image_size", "patch_size"),
            ("vision_width", "vision_heads"),
            ("head_width", "head_heads"),
            ("language_heads", "language_kv_heads"),
        ):
            yield from not_a_multiple(f"{key}.{name}", getattr(self, name), f"{key}.{divisor}", getattr(self, divisor))


@dataclass(frozen=True, config=BLOCK)
class PretrainConfig:
    """Grounding of a tiny vision-language backbone on rendered scenes."""

    tasks: Annotated[tuple[Name, ...], Field(strict=False, min_length=1)]
    """Tasks whose scenes are rendered."""
    num_scenes: PositiveInt = 24_000
    """Random scenes."""
    batch_size: PositiveInt = 256
    """Scenes of one optimizer step."""
    steps: PositiveInt = 550
    """Optimizer steps."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    seed: NonNegativeInt = 0
    """Seed of scenes, weights and batches; not the run's, so that runs of other seeds share the backbone."""
    max_median_error_cm: PositiveFloat = 0.7
    """The stage fails when the named object is located worse than this on held-out scenes."""
    architecture: ArchitectureConfig = ArchitectureConfig()
    """Sizes of the model."""


@dataclass(frozen=True, config=BLOCK)
class CollectConfig:
    """Demonstrations by the task's scripted expert, a policy, or a function of one's own."""

    num_demos: PositiveInt
    """Demonstrations to keep."""
    output_dir: Name = "demos"
    """Folder of the dataset."""
    action_noise: NonNegativeFloat = 0.15
    """Standard deviation of the noise on the expert's executed (not recorded) actions, as a fraction of their range."""
    seed: NonNegativeInt | None = None
    """Seed of the episodes; null: the run's seed."""
    max_attempts_factor: Annotated[float, Field(ge=1)] = 3.0
    """The stage gives up after this many times `num_demos` attempts."""
    only_successful: bool = True
    """Keep successful demonstrations only."""


@dataclass(frozen=True, config=BLOCK)
class SftConfig:
    """Supervised fine-tuning of the base model on demonstrations."""

    data: Name | None = None
    """Folder of the dataset; null: `collect.output_dir`."""
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
    seed: NonNegativeInt | None = None
    """Seed of weights, batches and noise; null: the run's seed."""
