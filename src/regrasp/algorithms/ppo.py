"""Proximal policy optimisation with a value function (arXiv:1707.06347)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass

from regrasp.algorithms.base import ACTOR, Bootstrap, Minibatch
from regrasp.algorithms.policy_gradient import DiscountedConfig, PolicyGradient
from regrasp.config.types import BLOCK, Fraction, NonNegativeInt, PositiveFloat
from regrasp.errors import UserError
from regrasp.logging.columns import Column

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from regrasp.envs.config import TrainEnvConfig
    from regrasp.models.contract import Policy
    from regrasp.rollout.decisions import Decisions

CRITIC = "critic"


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class PpoConfig(DiscountedConfig):
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

    @property
    def needs(self) -> frozenset[str]:
        """Values too."""
        return super().needs | {"value"}

    @property
    def shown(self) -> tuple[Column, ...]:
        """Also: how well values are learned."""
        return (
            *super().shown,
            Column("value", "critic/value_loss", "loss of the values", 5),
            Column("EV", "critic/explained_variance", "share of the returns' variance that values explain", 5),
        )

    def problems(self, env: TrainEnvConfig) -> Iterator[UserError]:
        """Groups, which a value function has no use for."""
        if self.group_size != 1:
            yield UserError(
                "Groups of environments have no effect with a value function",
                key="algorithm.group_size",
                value=self.group_size,
                expected="1: advantages come from the value function (gae), not from groups of environments",
                fix="set algorithm.group_size=1, or choose a group-relative algorithm, such as adv_type grpo",
            )

    def unlike_rlinf(self, env: TrainEnvConfig) -> Iterator[str]:
        """Also: returns that the step limit cuts."""
        yield from super().unlike_rlinf(env)
        if self.bootstrap_type == "standard" and not env.auto_reset:
            yield (
                "algorithm.bootstrap_type: a return that the step limit cuts goes on with a value; in RLinf only with"
                " auto_reset (none)"
            )

    def build(self) -> Ppo:
        """The algorithm of this configuration."""
        return Ppo(self)


class Ppo(PolicyGradient):
    """The clipped surrogate with advantages of a value head, which is trained beside the policy."""

    config: PpoConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def bootstrap(self) -> Bootstrap:
        """As `bootstrap_type` says."""
        return "truncated" if self.config.bootstrap_type == "standard" else "cut"

    def parameters(self, policy: Policy, trainable: str) -> dict[str, list[nn.Parameter]]:
        """The policy's and the value head's."""
        groups = super().parameters(policy, trainable)
        values = [parameter for _, parameter in policy.trainable("value_head")]
        for parameter in values:
            parameter.requires_grad_(True)
        return groups | {CRITIC: values}

    def prepare(self, decisions: Decisions) -> Decisions:
        """Advantages and returns, (B,) each, see `gae`."""
        from regrasp.algorithms.advantages import normalize, of_decisions

        config = self.config
        advantages, returns = of_decisions(
            decisions.columns, reward_type=config.reward_type, gamma=config.gamma, lam=config.gae_lambda
        )
        if config.normalize_advantages:
            advantages = normalize(advantages)
        return self.weighed(decisions.with_columns(advantages=advantages, returns=returns))

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
            loss, _ = self.critic_loss(policy.value(micro.features(policy)), micro.columns)
            return shares[1] * loss, {}
        return super().loss(policy, micro, shares, groups)

    def critic_loss(self, values: Tensor | None, columns: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The value term of values (B,), and its metrics."""
        from regrasp.algorithms.losses import value_loss

        assert values is not None
        return value_loss(
            values,
            columns["values"],
            columns["returns"],
            columns.get("weights"),
            columns["num_executed"] > 0,
            value_clip=self.config.value_clip,
            huber_delta=self.config.huber_delta,
        )

    def summary(self, decisions: Decisions, history: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Further: the explained variance of the values that acted."""
        from regrasp.algorithms.advantages import explained_variance

        variance = explained_variance(decisions["values"], decisions["returns"])
        return super().summary(decisions, history) | {"critic/explained_variance": variance}
