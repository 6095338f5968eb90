"""Group-relative policy optimization (arXiv:2402.03300): the clipped surrogate without a critic.

Environments of a group play episodes of one seed and instruction; an episode is judged by how its score compares with
the others of its group.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from regrasp.algorithms.policy_gradient import PolicyGradient, PolicyGradientConfig
from regrasp.config.types import BLOCK, NonNegativeInt
from regrasp.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from regrasp.envs.config import TrainEnvConfig
    from regrasp.rollout.decisions import Decisions

EPS = 1e-6


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class GrpoConfig(PolicyGradientConfig):
    """GRPO: advantages of an episode over its group, and no value function."""

    adv_type: Literal["grpo"] = "grpo"
    """Advantage estimator: (score - mean) / (standard deviation + 1e-6) over a group."""
    loss_type: Literal["actor"] = "actor"
    """Loss: the clipped surrogate alone."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """Environments that share an episode's seed and instruction; `env.train.total_num_envs` is a multiple."""
    filter_rewards: bool = False
    """Drop the groups whose mean score lies outside of the two bounds."""
    rewards_lower_bound: float = 0.1
    """Lowest mean score of a group that is kept by `filter_rewards`."""
    rewards_upper_bound: float = 0.9
    """Highest mean score of a group that is kept by `filter_rewards`."""
    dynamic_sampling: NonNegativeInt = 0
    """Further rollout epochs of an update at most, as long as fewer groups are kept than `rollout_epoch` asks for."""

    def problems(self, env: TrainEnvConfig) -> Iterator[UserError]:
        """Environments that do not divide into groups or go on after an episode, and bounds in the wrong order."""
        yield from self.group_problems(env)
        if self.filter_rewards and self.rewards_lower_bound >= self.rewards_upper_bound:
            yield UserError(
                "Bounds that no group lies between",
                key="algorithm.rewards_lower_bound",
                value=self.rewards_lower_bound,
                expected=f"less than algorithm.rewards_upper_bound ({self.rewards_upper_bound})",
                fix="correct the bounds",
            )

    def build(self) -> Grpo:
        """The algorithm of this configuration."""
        return Grpo(self)


class Grpo(PolicyGradient):
    """The clipped surrogate with advantages over groups; groups that say nothing are dropped."""

    config: GrpoConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def wants_more(self, decisions: Decisions, num_epochs: int) -> bool:
        """Whether too few groups are kept, and `dynamic_sampling` allows another epoch."""
        config = self.config
        if num_epochs >= config.rollout_epoch + config.dynamic_sampling:
            return False
        _, kept = self._judged(decisions)
        wanted = len(kept) // num_epochs * config.rollout_epoch
        return int(kept.sum()) < wanted

    def prepare(self, decisions: Decisions) -> Decisions:
        """Advantages (B,) of the decisions of groups that are kept."""
        advantages, kept = self._judged(decisions)
        column = decisions["column"]
        prepared = decisions.with_columns(advantages=advantages[column].to(decisions["rewards"].dtype))
        rows = kept[column // self.config.group_size].nonzero().flatten()
        return self.weighed(prepared if len(rows) == len(decisions) else prepared.rows(rows))

    def why_nothing(self, decisions: Decisions) -> str:
        """How many groups have equal scores, and how many lie outside of the bounds."""
        config, groups = self.config, self._groups(decisions)
        alike = int((groups.std(1) == 0).sum())
        reasons = [f"in {alike} all episodes have the same score (all fail, or all succeed)"] if alike else []
        if alike < len(groups):
            bounds = f"{config.rewards_lower_bound} to {config.rewards_upper_bound}"
            reasons.append(f"of {len(groups) - alike} the mean score is outside of {bounds} (algorithm.filter_rewards)")
        return (
            f"Every one of the {len(groups)} groups was dropped: {', '.join(reasons)}. Where it goes on, make the task"
            " easier or harder for this policy, or the groups more or larger (algorithm.rollout_epoch, group_size,"
            " dynamic_sampling)."
        )

    def _groups(self, decisions: Decisions) -> Tensor:
        """The scores of episodes, (groups, group_size)."""
        scores = episode_scores(decisions["rewards"], decisions["num_executed"], decisions["column"])
        return scores.unflatten(0, (-1, self.config.group_size))

    def _judged(self, decisions: Decisions) -> tuple[Tensor, Tensor]:
        """The advantage of each column, which holds one episode, and whether each group is kept."""
        config, groups = self.config, self._groups(decisions)
        means, deviations = groups.mean(1), groups.std(1)
        kept = deviations > 0
        if config.filter_rewards:
            kept &= (config.rewards_lower_bound <= means) & (means <= config.rewards_upper_bound)
        advantages = (groups - means[:, None]) / (deviations[:, None] + EPS)
        return advantages.flatten(), kept


def episode_scores(rewards: Tensor, num_executed: Tensor, column: Tensor) -> Tensor:
    """The undiscounted reward of each column (C,) float64.

    Args:
        rewards: (B, T), by environment step.
        num_executed: (B,) int64; later steps are ignored.
        column: (B,) int64 in [0, C), the episode that a decision belongs to.
    """
    import torch

    steps = torch.arange(rewards.shape[1])
    sums = torch.where(steps < num_executed[:, None], rewards, 0.0).double().sum(1)
    return sums.new_zeros(int(column.max()) + 1).index_add(0, column, sums)
