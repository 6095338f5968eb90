"""Block `actor`: the policy, its optimizer and its batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic.dataclasses import dataclass

from regrasp.config.problems import not_a_multiple
from regrasp.config.types import (
    BLOCK,
    Beta,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
)
from regrasp.errors import UserError
from regrasp.experiment.fsdp import FsdpConfig
from regrasp.models.registry import AnyModelConfig


@dataclass(frozen=True, config=BLOCK)
class OptimConfig:
    """AdamW and its learning rates."""

    lr: PositiveFloat = 5e-6
    """Learning rate of the policy."""
    value_lr: PositiveFloat = 1e-4
    """Learning rate of the value head."""
    adam_beta1: Beta = 0.9
    """Decay of the gradient's mean."""
    adam_beta2: Beta = 0.95
    """Decay of the gradient's square."""
    adam_eps: PositiveFloat = 1e-8
    """Added to the denominator of an update."""
    clip_grad: PositiveFloat = 1.0
    """Largest gradient norm."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay."""
    critic_warmup_steps: NonNegativeInt = 0
    """First optimizer steps of a run that train the value head only."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rates over the updates of a run."""
    lr_warmup_steps: NonNegativeInt = 0
    """Updates over which the learning rates rise from 0."""
    min_lr_ratio: Fraction = 0.0
    """Learning rate at the end of a decaying schedule, as a fraction of the full one."""


@dataclass(frozen=True, config=BLOCK)
class ActorConfig:
    """The worker that updates the policy."""

    model: AnyModelConfig
    """The policy."""
    micro_batch_size: PositiveInt
    """Samples of one forward and backward pass."""
    global_batch_size: PositiveInt
    """Samples of one optimizer step, over all devices."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""
    fsdp_config: FsdpConfig = FsdpConfig()
    """How several ranks divide the policy's weights."""
    seed: Seed = 1234
    """Seed of the run's random streams where `runner.seed` is null."""

    def problems(self) -> Iterator[UserError]:
        """What keys that are right one by one say against each other."""
        yield from not_a_multiple(
            "actor.global_batch_size", self.global_batch_size, "actor.micro_batch_size", self.micro_batch_size
        )
        yield from self.model.problems()
        yield from self.fsdp_config.problems(self.model.precision, bool(self.model.compile))
