"""Noise that is correlated over the actions of a chunk."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from regrasp.algorithms.flow import NoiseMethod, RowFn, StepRule, denoise, evaluate_chain, flow_sde_step
from regrasp.algorithms.noise_color import NoiseColor

HORIZON, DIM, NUM_STEPS = 6, 2, 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def velocity_fn(x: Tensor, step_index: Tensor, _rows: Tensor | None) -> Tensor:
    return torch.tanh(x) - 0.2 * step_index[:, None, None]


def std_fn(x: Tensor, _step_index: Tensor, _rows: Tensor | None) -> Tensor:
    return 0.3 + 0.1 * torch.sigmoid(x)


def test_without_color_noise_is_white() -> None:
    torch.testing.assert_close(NoiseColor(0.0, HORIZON).covariance, torch.eye(HORIZON))


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_variance_falls_with_the_power_of_the_frequency_and_is_one_in_the_mean(exponent: float) -> None:
    color = NoiseColor(exponent, HORIZON)
    variances = torch.linalg.eigvalsh(color.covariance).flip(0)
    expected = torch.tensor([(1 + k) ** -exponent for k in range(HORIZON)])
    torch.testing.assert_close(variances, expected * HORIZON / expected.sum())
    assert float(color.covariance.trace()) == pytest.approx(HORIZON)
    constant = torch.ones(HORIZON) / math.sqrt(HORIZON)
    torch.testing.assert_close(color.covariance @ constant, variances[0] * constant)


def test_colored_noise_has_its_covariance_and_whitening_undoes_it() -> None:
    color, white = NoiseColor(1.0, HORIZON), normal(100_000, HORIZON, 1)
    colored = color.of(white)
    torch.testing.assert_close(colored[..., 0].T.cov(), color.covariance, rtol=0, atol=0.03)
    torch.testing.assert_close(color.whitened(colored), white)


@pytest.mark.parametrize("method", ["flow_sde", "flow_noise"])
def test_log_probs_are_those_of_the_library_for_any_number_of_first_actions(method: NoiseMethod) -> None:
    color, batch = NoiseColor(1.0, HORIZON), 5
    steps = torch.arange(batch) % NUM_STEPS
    rule = StepRule(method, 0.5, color, std_fn)
    noise = normal(batch, HORIZON, DIM, seed=1)
    result = denoise(velocity_fn, normal(batch, HORIZON, DIM), NUM_STEPS, rule, noise, steps)
    again = evaluate_chain(velocity_fn, result.chain, steps, rule)
    assert torch.equal(again.log_probs, result.log_probs)
    assert again.entropy is not None
    for row, k in enumerate(steps.tolist()):
        x, after = result.chain[row : row + 1, k], result.chain[row, k + 1]
        velocity = velocity_fn(x, torch.tensor([k]), None)
        if method == "flow_sde":
            mean, scale = flow_sde_step(x, velocity, k, NUM_STEPS, 0.5, color)
            std = scale.expand_as(x)
        else:
            mean, std = x + velocity / NUM_STEPS, std_fn(x, torch.tensor([k]), None)
        for dim in range(DIM):
            deviation = std[0, :, dim]
            covariance = color.covariance * deviation[:, None] * deviation
            for count in (1, 3, HORIZON):
                density = MultivariateNormal(mean[0, :count, dim], covariance[:count, :count])
                expected = density.log_prob(after[:count, dim])
                torch.testing.assert_close(result.log_probs[row, :count, dim].sum(), expected, rtol=1e-4, atol=1e-4)
                entropy = again.entropy[row, :count, dim].sum()
                torch.testing.assert_close(entropy, density.entropy(), rtol=1e-4, atol=1e-4)


def test_flow_sde_keeps_the_marginals() -> None:
    """Of the exact flow from N(0, I) to N(1, 0.3^2 I)."""
    count, num_steps, std = 8_000, 100, 0.3

    def exact(x: Tensor, step_index: Tensor, _rows: Tensor | None) -> Tensor:
        t = (step_index / num_steps)[:, None, None]
        return 1 + (t * std**2 - (1 - t)) / ((1 - t) ** 2 + (t * std) ** 2) * (x - t)

    rule = StepRule("flow_sde", 1.0, NoiseColor(2.0, 3))
    noise = normal(count, num_steps, 3, 1, seed=1)
    result = denoise(exact, normal(count, 3, 1), num_steps, rule, noise, None)
    for k, tolerance in ((50, 0.02), (num_steps, 0.01)):
        t = k / num_steps
        marginal = result.chain[:, k, :, 0]
        torch.testing.assert_close(marginal.mean(dim=0), torch.full((3,), t), rtol=0, atol=0.02)
        expected = ((1 - t) ** 2 + (std * t) ** 2) * torch.eye(3)
        torch.testing.assert_close(marginal.T.cov(), expected, rtol=0, atol=tolerance)


def test_gradient_agrees_with_finite_differences() -> None:
    color, steps = NoiseColor(1.0, HORIZON), torch.tensor([0, 3])
    chain = normal(2, NUM_STEPS + 1, HORIZON, DIM).double()

    def log_probs(weight: Tensor) -> Tensor:
        moved: RowFn = lambda x, k, rows: weight * velocity_fn(x, k, rows)  # noqa: E731
        return evaluate_chain(moved, chain, steps, StepRule("flow_sde", 0.5, color)).log_probs

    assert torch.autograd.gradcheck(log_probs, torch.tensor(0.7, dtype=torch.float64, requires_grad=True))
