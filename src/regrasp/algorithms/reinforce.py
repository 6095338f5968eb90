"""REINFORCE++ (arXiv:2501.03262): the clipped surrogate without a critic, on returns normalized over an update."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass

from regrasp.algorithms.policy_gradient import DiscountedConfig, PolicyGradient
from regrasp.config.types import BLOCK
from regrasp.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from regrasp.envs.config import TrainEnvConfig
    from regrasp.rollout.decisions import Decisions


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class ReinforceConfig(DiscountedConfig):
    """REINFORCE++: returns as advantages, against a group's mean or none, and no value function."""

    adv_type: Literal["reinpp"] = "reinpp"
    """Advantage estimator: the return from each decision on."""
    loss_type: Literal["actor"] = "actor"
    """Loss: the clipped surrogate alone."""
    use_reinpp_baseline: bool = False
    """Subtract from the returns of an episode the mean score of its group."""

    def problems(self, env: TrainEnvConfig) -> Iterator[UserError]:
        """A baseline without groups or with episodes that go on, and groups without a baseline."""
        if self.use_reinpp_baseline != (self.group_size > 1):
            yield UserError(
                "A baseline needs groups, and groups are for a baseline",
                key="algorithm.use_reinpp_baseline",
                value=self.use_reinpp_baseline,
                expected=f"{str(self.group_size > 1).lower()}, with algorithm.group_size {self.group_size}",
                fix="set algorithm.group_size above 1 with the baseline, and to 1 without",
            )
        elif self.use_reinpp_baseline:
            yield from self.group_problems(env)

    def build(self) -> Reinforce:
        """The algorithm of this configuration."""
        return Reinforce(self)


class Reinforce(PolicyGradient):
    """The clipped surrogate with the return from each decision on, which ends where the episode or the rollout does."""

    config: ReinforceConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def prepare(self, decisions: Decisions) -> Decisions:
        """Advantages (B,), and the returns (B,) that they are made of."""
        from regrasp.algorithms.advantages import normalize

        returns = returns_to_go(decisions, self.config)
        advantages = returns - self._baseline(decisions) if self.config.use_reinpp_baseline else returns
        if self.config.normalize_advantages:
            advantages = normalize(advantages)
        return self.weighed(decisions.with_columns(advantages=advantages, returns=returns))

    def _baseline(self, decisions: Decisions) -> Tensor:
        """The mean score of each decision's group, (B,)."""
        from regrasp.algorithms.grpo import episode_scores

        scores = episode_scores(decisions["rewards"], decisions["num_executed"], decisions["column"])
        means = scores.unflatten(0, (-1, self.config.group_size)).mean(1)
        return means[decisions["column"] // self.config.group_size].to(decisions["rewards"].dtype)


def returns_to_go(decisions: Decisions, config: DiscountedConfig) -> Tensor:
    """The discounted reward from each decision to the end of its episode or of the rollout, (B,).

    It is the advantage of GAE with lambda 1 over a value function that is zero.
    """
    import torch

    from regrasp.algorithms.advantages import of_decisions

    columns, nothing = decisions.columns, torch.zeros_like(decisions["rewards"][:, 0])
    columns |= {"values": nothing, "next_values": nothing, "is_bootstrapped": torch.zeros_like(columns["ends"])}
    returns, _ = of_decisions(columns, reward_type=config.reward_type, gamma=config.gamma, lam=1.0)
    return returns
