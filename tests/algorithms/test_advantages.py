from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regrasp.algorithms.advantages import chunk_rewards, gae, is_flat, normalize

GAMMA, LAM = 0.9, 0.5


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def flags(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)[:, None]


def run(rewards: Tensor, values: Tensor, next_values: Tensor, ends: Tensor, valid: Tensor) -> tuple[list, list]:
    discounts = torch.full_like(rewards, GAMMA)
    advantages, returns = gae(rewards, values, next_values, ends, valid=valid, discounts=discounts, lam=LAM)
    return advantages.squeeze(1).tolist(), returns.squeeze(1).tolist()


def test_gae_termination_by_hand():
    advantages, returns = run(column(0, 0, 1), column(2, 3, 4), column(3, 4, 0), flags(0, 0, 1), flags(1, 1, 1))
    # deltas: 0.7, 0.6, -3; decay 0.45
    last, middle = -3.0, 0.6 + 0.45 * -3.0
    assert advantages == pytest.approx([0.7 + 0.45 * middle, middle, last])
    assert returns == pytest.approx([2 + 0.7 + 0.45 * middle, 3 + middle, 1.0])


@pytest.mark.parametrize("last_value", [5.0, 7.0])
def test_gae_bootstraps_truncation_and_cut_from_the_final_observation(last_value: float):
    advantages, returns = run(column(1, 1), column(2, 3), column(3, last_value), flags(0, 1), flags(1, 1))
    last = 1 + 0.9 * last_value - 3
    assert advantages == pytest.approx([1 + 2.7 - 2 + 0.45 * last, last])
    assert returns[1] == pytest.approx(1 + 0.9 * last_value)


def test_gae_does_not_leak_between_episodes_of_one_environment():
    first, _ = run(column(1, 0), column(2, 2), column(0, 2), flags(1, 0), flags(1, 1))
    second, _ = run(column(1, 99), column(2, -50), column(0, 40), flags(1, 0), flags(1, 1))
    assert first[0] == second[0] == pytest.approx(-1.0)


def test_gae_invalid_cells_give_zero_and_cut_the_trace():
    nan = float("nan")
    advantages, returns = run(
        column(1, nan, 1, nan), column(2, nan, 3, nan), column(4, nan, 5, nan), flags(0, 0, 0, 0), flags(1, 0, 1, 0)
    )
    assert advantages == pytest.approx([1 + 3.6 - 2, 0, 1 + 4.5 - 3, 0])
    assert returns == pytest.approx([1 + 3.6, 0, 1 + 4.5, 0])


def brute_force(rewards: list, values: list, last_value: float, discounts: list) -> list[float]:
    """Exponentially weighted average of all n-step advantages of one episode (Schulman et al., equation 16)."""
    length = len(rewards)
    bootstraps = [*values[1:], last_value]
    result = []
    for t in range(length):
        n_step, total, weight = [], 0.0, 1.0
        for n in range(t, length):
            total += weight * rewards[n]
            weight *= discounts[n]
            n_step.append(total + weight * bootstraps[n] - values[t])
        mixed = sum((1 - LAM) * LAM**n * a for n, a in enumerate(n_step[:-1])) + LAM ** (len(n_step) - 1) * n_step[-1]
        result.append(mixed)
    return result


def test_gae_agrees_with_the_average_of_n_step_advantages():
    generator = torch.Generator().manual_seed(0)
    depth, num_envs = 12, 7
    shape = (depth, num_envs)
    rewards, values, discounts = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    next_values, expected = torch.zeros_like(rewards), torch.zeros_like(rewards)
    ends, valid = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for env in range(num_envs):
        start = 0
        while start < depth:
            length = int(torch.randint(1, 6, (), generator=generator))
            stop = min(start + length, depth)
            terminated = bool(torch.rand((), generator=generator) < 0.5)
            last_value = 0.0 if terminated else float(torch.rand((), generator=generator))
            ends[stop - 1, env] = True
            valid[start:stop, env] = True
            episode_values = values[start:stop, env].tolist()
            next_values[start:stop, env] = column(*episode_values[1:], last_value).squeeze(1)
            episode = (
                rewards[start:stop, env].tolist(),
                episode_values,
                last_value,
                discounts[start:stop, env].tolist(),
            )
            expected[start:stop, env] = column(*brute_force(*episode)).squeeze(1)
            start = stop + int(torch.randint(0, 2, (), generator=generator))  # sometimes an idle decision
    advantages, returns = gae(rewards, values, next_values, ends, valid=valid, discounts=discounts, lam=LAM)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, torch.where(valid, expected + values, 0))
    assert not valid.all()


def test_chunk_level_reward_is_the_sum_of_the_executed_steps():
    reward, discount = chunk_rewards(
        torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 9.0]]),
        torch.tensor([3, 2]),
        reward_type="chunk_level",
        gamma=0.9,
    )
    assert reward.tolist() == [7.0, 3.0]
    assert discount.tolist() == pytest.approx([0.9, 0.9])


def test_action_level_counts_environment_steps():
    reward, discount = chunk_rewards(
        torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 9.0], [5.0, 5.0, 5.0]]),
        torch.tensor([3, 2, 0]),
        reward_type="action_level",
        gamma=0.5,
    )
    assert reward.tolist() == [3.0, 2.0, 0.0]
    assert discount.tolist() == [0.125, 0.25, 1.0]


def test_action_level_with_lambda_one_is_the_return_of_the_step_by_step_episode():
    rewards = torch.arange(1.0, 9.0, dtype=torch.float64)
    chunked, executed = torch.zeros(2, 5, dtype=torch.float64), torch.tensor([5, 3])
    chunked[0], chunked[1, :3] = rewards[:5], rewards[5:]
    reward, discount = chunk_rewards(chunked, executed, reward_type="action_level", gamma=GAMMA)
    values = column(0.3, 0.7)
    _, returns = gae(
        reward[:, None],
        values,
        column(0.7, 0.0),
        flags(0, 1),
        valid=flags(1, 1),
        discounts=discount[:, None],
        lam=1.0,
    )
    stepwise = sum(GAMMA**i * float(r) for i, r in enumerate(rewards))
    assert float(returns[0]) == pytest.approx(stepwise)


def test_normalize_uses_the_population_deviation():
    result = normalize(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    std = 3.5**0.5  # variance of 1, 2, 3, 6 around 3
    torch.testing.assert_close(result, torch.tensor([-2.0, -1.0, 0.0, 3.0]) / std)
    assert result.dtype == torch.float32


def test_normalize_survives_large_offsets_constants_and_emptiness():
    shifted = torch.tensor([1.0, 2.0, 3.0, 6.0]) + 4096
    torch.testing.assert_close(normalize(shifted), torch.tensor([-2.0, -1.0, 0.0, 3.0]) / 3.5**0.5)
    assert normalize(torch.full((4,), 0.1)).abs().max() < 1e-6
    assert normalize(shifted[:0]).tolist() == []


@pytest.mark.parametrize(
    ("advantages", "flat"), [([1.0, -1.0, 0.5], False), ([0.7, 0.7, 0.7], True), ([0.7], True), ([0.0] * 3, True)]
)
def test_advantages_that_do_not_vary_are_flat(advantages: list[float], flat: bool) -> None:
    assert is_flat(torch.tensor(advantages)) == flat
