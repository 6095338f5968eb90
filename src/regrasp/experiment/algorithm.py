"""Block `algorithm`: rollout, advantages and the PPO loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from regrasp.config.types import (
    BLOCK,
    Fraction,
    Level,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)


@dataclass(frozen=True, config=BLOCK)
class AlgorithmConfig:
    """How an update collects its rollout and what it optimises."""

    rollout_epoch: PositiveInt = 1
    """Times every training environment is rolled out before one update."""
    eval_rollout_epoch: PositiveInt = 1
    """Passes over the episodes of an evaluation."""
    group_size: PositiveInt = 1
    """Environments that share an initial state, for group-relative advantages; 1: none."""
    update_epoch: PositiveInt = 1
    """Passes over the rollout in one update."""
    value_epochs: NonNegativeInt = 0
    """Further passes of an update that train the value head only."""
    adv_type: Literal["gae"] = "gae"
    """Advantage estimator: generalised advantage estimation."""
    loss_type: Literal["actor_critic"] = "actor_critic"
    """Loss: PPO with a value function."""
    normalize_advantages: bool = True
    """Give the advantages of an update mean 0 and standard deviation 1, over all its samples."""
    reward_type: Literal["chunk_level", "action_level"] = "chunk_level"
    """`chunk_level`: gamma counts decisions; `action_level`: gamma counts environment steps."""
    bootstrap_type: Literal["standard", "none"] = "standard"
    """`standard`: a return that the step limit cuts continues with the value of the final observation; `none`: it ends
    there, for a task in which running out of time is failing."""
    logprob_type: Level = "chunk_level"
    """Over what the probability ratio is taken: a whole chunk, each action, or each action dimension."""
    entropy_type: Level = "chunk_level"
    """Over what the entropy is summed: a whole chunk, each action, or each action dimension."""
    entropy_bonus: NonNegativeFloat = 0.0
    """Weight of the entropy in the loss."""
    kl_beta: NonNegativeFloat = 0.0
    """Weight of the penalty on the divergence from the policy that the run started from."""
    kl_penalty: Literal["kl", "abs", "mse", "low_var_kl"] = "kl"
    """Estimator of that divergence."""
    target_kl: PositiveFloat | None = None
    """An update stops its epochs when a minibatch's divergence from the rollout policy passes this; null: never."""
    clip_ratio_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The probability ratio is clipped below 1 minus this."""
    clip_ratio_high: PositiveFloat = 0.2
    """The probability ratio is clipped above 1 plus this."""
    clip_ratio_c: Annotated[float, Field(gt=1)] | None = None
    """Dual clip: bound on the ratio where the advantage is negative; null: none."""
    value_clip: PositiveFloat | None = 0.2
    """Largest change of a value from its rollout value that lowers the value loss; null: no clipping."""
    huber_delta: PositiveFloat = 10.0
    """Value error above which the value loss grows linearly."""
    gamma: Fraction = 0.99
    """Discount, per decision or per environment step (see `reward_type`)."""
    gae_lambda: Fraction = 0.95
    """Decay of the advantage estimator, per decision."""
