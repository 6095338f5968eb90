"""Returns and advantages over decisions, where one decision executes a chunk of several environment steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

RewardType = Literal["chunk_level", "action_level"]


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    episode_ends: Tensor,
    *,
    valid: Tensor,
    discounts: Tensor,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv:1506.02438) on a time-major grid of D decisions of N environments.

    delta = r + discount * V_next - V and A = delta + discount * lam * A_next, where A_next is 0 after an episode end,
    after the last row, and where the next cell is invalid. Returns are A + V.

    Args:
        rewards: (D, N), reward per decision, from `chunk_rewards`.
        values: (D, N), value of the observation that the decision was made on.
        next_values: (D, N), value of the next observation of the same episode: 0 where it terminated, the value of the
            final observation where it was truncated or the rollout was cut.
        episode_ends: (D, N) bool, nothing after this decision belongs to it: terminated, truncated or cut.
        valid: (D, N) bool, False where no decision was made. Such cells give 0, whatever they hold.
        discounts: (D, N), discount from this decision to the next, from `chunk_rewards`.
        lam: Lambda, counted in decisions.

    Returns:
        Advantages and returns, both (D, N).
    """
    assert rewards.shape == values.shape == next_values.shape == episode_ends.shape == valid.shape == discounts.shape
    deltas = torch.where(valid, rewards + discounts * next_values - values, 0.0)
    decays = torch.where(valid & ~episode_ends, discounts * lam, 0.0)
    advantages = torch.empty_like(deltas)
    trace = torch.zeros_like(deltas[0])
    for d in reversed(range(len(deltas))):
        trace = deltas[d] + decays[d] * trace
        advantages[d] = trace
    return advantages, torch.where(valid, advantages + values, 0.0)


def of_decisions(
    columns: Mapping[str, Tensor], *, reward_type: RewardType, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (B,) of a rollout's decisions, each episode for itself, see `gae`.

    Args:
        columns: Of B decisions, in any order, see `Decisions.record`.
        reward_type: See `chunk_rewards`.
        gamma: See `chunk_rewards`.
        lam: See `gae`.
    """
    time, column = columns["time"], columns["column"]
    shape = (int(time.max()) + 1, int(column.max()) + 1)

    def grid(values: Tensor) -> Tensor:
        return values.new_zeros(shape).index_put((time, column), values)

    rewards, discounts = chunk_rewards(
        columns["rewards"], columns["num_executed"], reward_type=reward_type, gamma=gamma
    )
    valid, values = grid(torch.ones_like(time, dtype=torch.bool)), grid(columns["values"])
    follows = torch.zeros_like(valid)
    follows[:-1] = valid[1:]
    ends = grid(columns["ends"]) | (valid & ~follows)
    following = torch.zeros_like(values)
    following[:-1] = values[1:]
    next_values = torch.where(ends, 0.0, following)
    next_values = torch.where(grid(columns["is_bootstrapped"]), grid(columns["next_values"]), next_values)
    advantages, returns = gae(grid(rewards), values, next_values, ends, valid=valid, discounts=grid(discounts), lam=lam)
    return advantages[time, column], returns[time, column]


def chunk_rewards(
    rewards: Tensor, num_executed: Tensor, *, reward_type: RewardType, gamma: float
) -> tuple[Tensor, Tensor]:
    """Reward of each decision and the discount to the next one.

    `chunk_level`: the plain sum over the executed steps, and gamma counts decisions. `action_level`: gamma counts
    environment steps, so the sum is discounted inside the chunk and the discount is gamma to the `num_executed`.

    Args:
        rewards: (..., T), reward per environment step.
        num_executed: (...) int64, in [0, T]; later steps are ignored.
        reward_type: See above.
        gamma: Discount per decision or per environment step.

    Returns:
        Rewards and discounts, both (...) of the dtype of `rewards`.
    """
    steps = torch.arange(rewards.shape[-1], device=rewards.device)
    executed = torch.where(steps < num_executed[..., None], rewards, 0.0)
    if reward_type == "chunk_level":
        total = executed.sum(-1)
        return total, torch.full_like(total, gamma)
    weights = torch.tensor(gamma, dtype=rewards.dtype, device=rewards.device) ** steps
    return (executed * weights).sum(-1), gamma ** num_executed.to(rewards.dtype)


def is_flat(advantages: Tensor) -> bool:
    """Whether no advantage of an update (B,) differs from another, so that there is nothing to learn."""
    return len(advantages) < 2 or float(advantages.std(correction=0)) < 1e-8


def normalize(advantages: Tensor) -> Tensor:
    """(A - mean) / (std + 1e-8), with the population's standard deviation (divisor n).

    Computed in float64, so that the order of the entries does not matter at the precision of the result. To be called
    on all advantages of an update (B,) at once, never per process.
    """
    exact = advantages.double()
    if not len(exact):
        return advantages
    return ((exact - exact.mean()) / (exact.std(correction=0) + 1e-8)).to(advantages.dtype)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(R - V) / Var(R), over all decisions (B,); 0 where the returns do not vary."""
    variance = float(returns.var(correction=0))
    if variance == 0:
        return 0.0
    return 1 - float((returns - values).var(correction=0)) / variance
