"""Proximal policy optimisation with a value function (arXiv:1707.06347)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic.dataclasses import dataclass

from regrasp.algorithms import losses
from regrasp.algorithms.advantages import chunk_rewards, gae, normalize
from regrasp.algorithms.base import ACTOR, Minibatch
from regrasp.algorithms.policy_gradient import PolicyGradient, PolicyGradientConfig
from regrasp.config.types import BLOCK, Fraction, NonNegativeInt, PositiveFloat

if TYPE_CHECKING:
    from torch import Tensor, nn

    from regrasp.models.contract import Evaluation, Policy
    from regrasp.rollout.decisions import Decisions

CRITIC = "critic"


@dataclass(frozen=True, config=BLOCK)
class PpoConfig(PolicyGradientConfig):
    """PPO: generalised advantage estimation, and a value function beside the policy."""

    adv_type: Literal["gae"] = "gae"
    """Advantage estimator: generalised advantage estimation."""
    loss_type: Literal["actor_critic"] = "actor_critic"
    """Loss: PPO with a value function."""
    value_epochs: NonNegativeInt = 0
    """Further passes of an update that train the value head only."""
    bootstrap_type: Literal["standard", "none"] = "standard"
    """`standard`: a return that the step limit cuts continues with the value of the final observation; `none`: it ends
    there, for a task in which running out of time is failing."""
    value_clip: PositiveFloat | None = 0.2
    """Largest change of a value from its rollout value that lowers the value loss; null: no clipping."""
    huber_delta: PositiveFloat = 10.0
    """Value error above which the value loss grows linearly."""
    gae_lambda: Fraction = 0.95
    """Decay of the advantage estimator, per decision."""

    def build(self) -> Ppo:
        """The algorithm of this configuration."""
        return Ppo(self)


class Ppo(PolicyGradient):
    """The clipped surrogate with advantages of a value head, which is trained beside the policy."""

    Config = PpoConfig
    config: PpoConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Values too."""
        return super().needs | {"value"}

    @property
    def bootstraps_truncated(self) -> bool:
        """As `bootstrap_type` says."""
        return self.config.bootstrap_type == "standard"

    def parameters(self, policy: Policy, trainable: str) -> dict[str, list[nn.Parameter]]:
        """The policy's and the value head's."""
        groups = super().parameters(policy, trainable)
        values = [parameter for _, parameter in policy.trainable("value_head")]
        for parameter in values:
            parameter.requires_grad_(True)
        return groups | {CRITIC: values}

    def prepare(self, decisions: Decisions) -> Decisions:
        """Advantages and returns, (B,) each, see `gae`."""
        config, record = self.config, decisions.record
        time, column = record["time"], record["column"]
        shape = (int(time.max()) + 1, int(column.max()) + 1)

        def grid(values: Tensor) -> Tensor:
            return values.new_zeros(shape).index_put((time, column), values)

        rewards, discounts = chunk_rewards(
            record["rewards"], record["num_executed"], reward_type=config.reward_type, gamma=config.gamma
        )
        valid, values = grid(torch.ones_like(time, dtype=torch.bool)), grid(record["values"])
        follows = torch.zeros_like(valid)
        follows[:-1] = valid[1:]
        ends = grid(record["ends"]) | (valid & ~follows)
        following = torch.zeros_like(values)
        following[:-1] = values[1:]
        next_values = torch.where(ends, 0.0, following)
        next_values = torch.where(grid(record["is_bootstrapped"]), grid(record["next_values"]), next_values)
        advantages, returns = gae(
            grid(rewards), values, next_values, ends, valid=valid, discounts=grid(discounts), lam=config.gae_lambda
        )
        if config.normalize_advantages:
            advantages = normalize(advantages, valid)
        return decisions.with_columns(advantages=advantages[time, column], returns=returns[time, column])

    def minibatches(self, decisions: Decisions, size: int, generator: torch.Generator) -> Iterator[Minibatch]:
        """`value_epochs` passes for the value head alone, then `update_epoch` for both."""
        for _ in range(self.config.value_epochs):
            for batch in decisions.minibatches(size, generator):
                yield Minibatch(batch, (CRITIC,))
        for minibatch in super().minibatches(decisions, size, generator):
            yield Minibatch(minibatch.decisions, (ACTOR, CRITIC))

    def loss(
        self, policy: Policy, micro: Decisions, shares: Tensor, groups: tuple[str, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The value's loss alone, without metrics, or that of policy and value."""
        if groups == (CRITIC,):
            loss, _ = self.value_loss(policy.value(micro.features(policy)), micro.columns)
            return shares[1] * loss, {}
        return super().loss(policy, micro, shares, groups)

    def add_critic(
        self,
        loss: Tensor,
        metrics: dict[str, Tensor],
        evaluation: Evaluation,
        columns: Mapping[str, Tensor],
        shares: Tensor,
    ) -> Tensor:
        """Adds the value's loss."""
        critic_loss, found = self.value_loss(evaluation.values, columns)
        metrics |= {f"critic/{name}": shares[1] * value for name, value in found.items()}
        return loss + shares[1] * critic_loss

    def value_loss(self, values: Tensor, columns: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The value term of values (B,), and its metrics."""
        return losses.value_loss(
            values,
            columns["values"],
            columns["returns"],
            value_clip=self.config.value_clip,
            huber_delta=self.config.huber_delta,
        )

    def summary(self, decisions: Decisions, history: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Further: the explained variance of the values that acted."""
        variance = explained_variance(decisions["values"], decisions["returns"])
        return super().summary(decisions, history) | {"critic/explained_variance": variance}


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(R - V) / Var(R), over all decisions (B,); 0 where the returns do not vary."""
    variance = float(returns.var(correction=0))
    if variance == 0:
        return 0.0
    return 1 - float((returns - values).var(correction=0)) / variance
