from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from regrasp.algorithms.losses import KlKind, entropy_term, kl_penalty, policy_loss, value_loss

# One element per case of (advantage, ratio): inside, above and below the clip range for both signs, and dual-clipped.
ADVANTAGES = [2.0, 2.0, 2.0, -1.5, -1.5, -1.5, -1.5]
RATIOS = [1.1, 1.6, 0.5, 1.1, 0.5, 2.0, 4.0]
LOW, HIGH, DUAL = 0.2, 0.3, 3.0


def expected_element(advantage: float, ratio: float, dual: float | None) -> tuple[float, float]:
    """Loss of one element and its derivative by the log-probability (d ratio / d log-probability = ratio)."""
    if advantage > 0 and ratio > 1 + HIGH:
        return -advantage * (1 + HIGH), 0.0
    if advantage < 0 and ratio < 1 - LOW:
        return -advantage * (1 - LOW), 0.0
    if advantage < 0 and dual is not None and ratio > dual:
        return -advantage * dual, 0.0
    return -advantage * ratio, -advantage * ratio


def run_policy_loss(
    advantages: list[float], ratios: list[float], mask: Tensor, dual: float | None
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    old = torch.linspace(-3, 2, len(ratios), dtype=torch.float64)
    log_probs = (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    weights = torch.tensor(advantages, dtype=torch.float64)
    loss, metrics = policy_loss(log_probs, old, weights, mask, clip_low=LOW, clip_high=HIGH, clip_c=dual)
    loss.backward()
    assert log_probs.grad is not None
    return loss.detach(), metrics, log_probs.grad


@pytest.mark.parametrize("dual", [None, DUAL])
def test_policy_loss_and_gradient_match_the_closed_form(dual: float | None):
    mask = torch.ones(len(RATIOS), dtype=torch.bool)
    mask[3] = False
    loss, metrics, gradient = run_policy_loss(ADVANTAGES, RATIOS, mask, dual)
    cases = [expected_element(a, r, dual) for a, r in zip(ADVANTAGES, RATIOS, strict=True)]
    kept = [case for case, keep in zip(cases, mask.tolist(), strict=True) if keep]
    assert float(loss) == pytest.approx(sum(value for value, _ in kept) / 6)
    expected = [slope / 6 if keep else 0.0 for (_, slope), keep in zip(cases, mask.tolist(), strict=True)]
    assert gradient.tolist() == pytest.approx(expected)
    assert float(metrics["policy_loss"]) == pytest.approx(float(loss))
    assert float(metrics["policy_loss_abs"]) == pytest.approx(sum(abs(value) for value, _ in kept) / 6)


def test_policy_metrics_by_hand():
    mask = torch.ones(len(RATIOS), dtype=torch.bool)
    _, metrics, _ = run_policy_loss(ADVANTAGES, RATIOS, mask, DUAL)
    count = len(RATIOS)
    assert all(not value.requires_grad and value.ndim == 0 for value in metrics.values())
    assert float(metrics["ratio"]) == pytest.approx(sum(RATIOS) / count)
    assert float(metrics["ratio_abs"]) == pytest.approx(sum(abs(r - 1) for r in RATIOS) / count)
    assert float(metrics["clipped_ratio"]) == pytest.approx((1.1 + 1.3 + 0.8 + 1.1 + 0.8 + 1.3 + 1.3) / count)
    assert float(metrics["dual_cliped_ratio"]) == pytest.approx(4.0 / count)
    assert float(metrics["clip_fraction"]) == pytest.approx(2 / count)
    assert float(metrics["approx_kl"]) == pytest.approx(sum(r - 1 - math.log(r) for r in RATIOS) / count)


def test_first_minibatch_has_ratio_one_and_the_policy_gradient():
    log_probs = torch.randn(16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    advantages = torch.linspace(-1, 1, 16)
    mask = torch.ones(16, dtype=torch.bool)
    loss, metrics = policy_loss(
        log_probs, log_probs.detach(), advantages, mask, clip_low=0.2, clip_high=0.2, clip_c=3.0
    )
    loss.backward()
    assert log_probs.grad is not None
    assert metrics["ratio"] == 1
    assert metrics["ratio_abs"] == metrics["approx_kl"] == metrics["clip_fraction"] == 0
    torch.testing.assert_close(log_probs.grad, -advantages / 16)


def test_huge_ratios_leave_loss_and_gradient_finite():
    log_probs = torch.tensor([500.0, 500.0, -500.0], requires_grad=True)
    advantages = torch.tensor([-1.0, 1.0, -1.0])
    loss, metrics = policy_loss(
        log_probs, torch.zeros(3), advantages, advantages < 2, clip_low=0.2, clip_high=0.2, clip_c=3.0
    )
    loss.backward()
    assert log_probs.grad is not None
    assert float(loss.detach()) == pytest.approx((3.0 - 1.2 + 0.8) / 3)
    assert log_probs.grad.tolist() == [0, 0, 0]
    assert all(value.isfinite() for value in metrics.values())


def huber(error: float, delta: float) -> float:
    return 0.5 * error**2 if abs(error) < delta else delta * (abs(error) - 0.5 * delta)


def test_value_loss_is_the_larger_huber_and_its_metrics_see_the_unclipped_change():
    values = torch.tensor([0.1, 1.0, 1.0, 20.0], dtype=torch.float64)
    old = torch.tensor([0.0, 0.0, 0.0, 19.9], dtype=torch.float64)
    returns = torch.tensor([0.5, 2.0, -3.0, 0.0], dtype=torch.float64)
    loss, metrics = value_loss(values, old, returns, value_clip=0.2, huber_delta=2.0)
    clipped = [0.1, 0.2, 0.2, 20.0]
    expected = [
        max(huber(float(r - v), 2.0), huber(float(r) - c, 2.0))
        for v, c, r in zip(values, clipped, returns, strict=True)
    ]
    assert float(loss) == pytest.approx(sum(expected) / 4)
    assert float(metrics["value_loss"]) == pytest.approx(float(loss))
    assert float(metrics["value_clip_ratio"]) == 0.5


def test_value_gradient_vanishes_where_clipping_decides():
    values = torch.tensor([1.0, 1.0], requires_grad=True)
    # The first value moved towards its return further than allowed, the second away from it.
    loss, _ = value_loss(values, torch.zeros(2), torch.tensor([2.0, -3.0]), value_clip=0.2, huber_delta=10.0)
    loss.backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 2.0]


def test_value_loss_without_clipping():
    values, returns = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])
    loss, metrics = value_loss(values, torch.zeros(2), returns, value_clip=None, huber_delta=10.0)
    assert loss == 0.5
    assert metrics["value_clip_ratio"] == 0


def gaussian_sample(count: int) -> tuple[Tensor, Tensor, float]:
    policy = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    reference = torch.distributions.Normal(torch.tensor(0.15, dtype=torch.float64), 1.1)
    x = torch.randn(count, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return policy.log_prob(x), reference.log_prob(x), float(torch.distributions.kl_divergence(policy, reference))


@pytest.mark.parametrize(("kind", "tolerance"), [("kl", 1e-3), ("low_var_kl", 2e-4), ("mse", 3e-3)])
def test_kl_estimators_find_the_divergence_of_two_gaussians(kind: KlKind, tolerance: float):
    log_probs, reference, divergence = gaussian_sample(400_000)
    mask = torch.ones_like(log_probs, dtype=torch.bool)
    assert divergence == pytest.approx(0.0179, abs=2e-3)
    assert float(kl_penalty(log_probs, reference, mask, kind)) == pytest.approx(divergence, abs=tolerance)


@pytest.mark.parametrize(("kind", "expected"), [("kl", 0.0), ("mse", 0.4), ("low_var_kl", 0.4)])
def test_kl_penalty_as_a_loss_pulls_towards_the_reference(kind: KlKind, expected: float):
    # Unit Gaussians at `mean` and 0: the divergence is mean^2 / 2 in both directions, its gradient is mean.
    mean = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    x = 0.4 + torch.randn(200_000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    log_probs, reference = -0.5 * (x - mean).square(), -0.5 * x.square()
    kl_penalty(log_probs, reference, torch.ones_like(x, dtype=torch.bool), kind).backward()
    assert mean.grad is not None
    assert float(mean.grad) == pytest.approx(expected, abs=0.01)


def test_kl_penalty_by_hand_and_masked():
    log_probs, reference = torch.tensor([0.0, -1.0, 7.0]), torch.tensor([0.5, -2.0, 0.0])
    mask = torch.tensor([True, True, False])
    expected: dict[KlKind, float] = {
        "kl": 0.25,
        "abs": 0.75,
        "mse": (0.125 + 0.5) / 2,
        "low_var_kl": (math.exp(0.5) - 1.5 + math.exp(-1)) / 2,
    }
    for kind, value in expected.items():
        assert float(kl_penalty(log_probs, reference, mask, kind)) == pytest.approx(value)


def test_entropy_term_averages_over_what_was_executed():
    entropy = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [70.0, 80.0]]])
    executed = torch.tensor([2, 1])
    assert float(entropy_term(entropy, executed, "token_level")) == pytest.approx(21 / 6)
    assert float(entropy_term(entropy, executed, "action_level")) == pytest.approx(21 / 3)
    assert float(entropy_term(entropy, executed, "chunk_level")) == pytest.approx(21 / 2)
