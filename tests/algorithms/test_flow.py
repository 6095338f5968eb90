from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from regrasp.algorithms import flow
from regrasp.algorithms.flow import NoiseMethod, RowFn, StepRule

METHODS: tuple[NoiseMethod, ...] = ("flow_sde", "flow_cps", "flow_noise")
NUM_STEPS, SHAPE = 4, (3, 2)
SDE = StepRule("flow_sde", 0.5)


def denoise(
    velocity_fn: RowFn,
    initial_noise: Tensor,
    num_steps: int,
    *,
    step_noise: Tensor,
    stochastic_step: Tensor | None = None,
    noise_method: NoiseMethod = "flow_sde",
    noise_level: float = 0.5,
    learned_std_fn: RowFn | None = None,
) -> flow.Denoised:
    rule = StepRule(noise_method, noise_level, None, learned_std_fn)
    return flow.denoise(velocity_fn, initial_noise, num_steps, rule, step_noise, stochastic_step)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def toy(weight: Tensor, features: Tensor) -> tuple[RowFn, RowFn]:
    """A velocity and a standard deviation that depend on x, the step, the row's features, and `weight` (2,)."""

    def inputs(x: Tensor, step_index: Tensor, rows: Tensor | None) -> Tensor:
        context = features if rows is None else features[rows]
        return torch.tanh(weight[0] * x + context[:, None, None] - 0.3 * step_index[:, None, None])

    def velocity_fn(x: Tensor, step_index: Tensor, rows: Tensor | None) -> Tensor:
        return weight[1] + inputs(x, step_index, rows)

    def std_fn(x: Tensor, step_index: Tensor, rows: Tensor | None) -> Tensor:
        return flow.bounded_std(inputs(x, step_index, rows), 0.2, 0.5)

    return velocity_fn, std_fn


def sample(
    weight: Tensor, method: NoiseMethod, batch: int, *, joint: bool, dtype: torch.dtype
) -> tuple[flow.Denoised, Tensor | None, Tensor]:
    features = normal(batch, seed=1, dtype=dtype)
    velocity_fn, std_fn = toy(weight, features)
    steps = None if joint else torch.arange(batch) % (NUM_STEPS - (method == "flow_cps"))
    noise_shape = (batch, NUM_STEPS, *SHAPE) if joint else (batch, *SHAPE)
    with torch.no_grad():
        result = denoise(
            velocity_fn,
            normal(batch, *SHAPE, seed=2, dtype=dtype),
            NUM_STEPS,
            noise_method=method,
            step_noise=normal(*noise_shape, seed=3, dtype=dtype),
            stochastic_step=steps,
            learned_std_fn=std_fn,
        )
    return result, steps, features


def reevaluate(
    weight: Tensor, features: Tensor, chain: Tensor, steps: Tensor | None, method: NoiseMethod
) -> flow.ChainEvaluation:
    velocity_fn, std_fn = toy(weight, features)
    return flow.evaluate_chain(velocity_fn, chain, steps, StepRule(method, 0.5, None, std_fn))


# Moments of one step, from scalar formulas in the reference's weights w0 and w1 of the noise and data estimates.


def sde_moments(x: float, v: float, k: int, num_steps: int, level: float) -> tuple[float, float]:
    t, dt = k / num_steps, 1 / num_steps
    sigma = level * math.sqrt((1 - t) / (t if k else dt))
    w0, w1 = 1 - (t + dt) - sigma**2 * dt / (2 * (1 - t)), t + dt
    return w0 * (x - v * t) + w1 * (x + v * (1 - t)), math.sqrt(dt) * sigma


def cps_moments(x: float, v: float, k: int, num_steps: int, level: float) -> tuple[float, float]:
    t, after = k / num_steps, (k + 1) / num_steps
    mean = (1 - after) * math.cos(math.pi * level / 2) * (x - v * t) + after * (x + v * (1 - t))
    return mean, (1 - after) * math.sin(math.pi * level / 2)


def noise_moments(x: float, v: float, k: int, num_steps: int, level: float) -> tuple[float, float]:
    return x + v / num_steps, LEARNED_STD[k]


LEARNED_STD = (0.08, 0.1, 0.13, 0.16)
MOMENTS: dict[NoiseMethod, Callable] = {
    "flow_sde": sde_moments,
    "flow_cps": cps_moments,
    "flow_noise": noise_moments,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", range(NUM_STEPS))
def test_one_step_has_the_published_mean_and_deviation(method: NoiseMethod, k: int):
    count, level, velocity = 50_000, 0.5, 0.7
    result = denoise(
        lambda x, step_index, rows: torch.full_like(x, velocity),
        torch.full((count, 1, 1), -0.4, dtype=torch.float64),
        NUM_STEPS,
        noise_method=method,
        noise_level=level,
        step_noise=normal(count, 1, 1, dtype=torch.float64),
        stochastic_step=torch.full((count,), k),
        learned_std_fn=lambda x, step_index, rows: torch.tensor(LEARNED_STD)[step_index, None, None],
    )
    before = -0.4 + velocity * k / NUM_STEPS
    mean, std = MOMENTS[method](before, velocity, k, NUM_STEPS, level)
    after = result.chain[:, k + 1].flatten()
    assert result.chain[:, k].flatten()[0] == pytest.approx(before)
    standard_error = std / count**0.5
    assert float(after.mean()) == pytest.approx(mean, abs=4 * standard_error + 1e-12)
    assert float(after.std()) == pytest.approx(std, abs=4 * standard_error / 2**0.5 + 1e-8)
    if k + 1 < NUM_STEPS:  # the later steps are those of the ODE
        torch.testing.assert_close(result.chain[:, k + 2], result.chain[:, k + 1] + velocity / NUM_STEPS)


@pytest.mark.parametrize("step_fn", [flow.flow_sde_step, flow.flow_cps_step])
def test_rows_may_stand_at_different_steps(step_fn: Callable):
    x, velocity, index = normal(4, *SHAPE), normal(4, *SHAPE, seed=1), torch.tensor([3, 0, 2, 1])
    together = step_fn(x, velocity, index, NUM_STEPS, 0.5)
    for row, k in enumerate(index.tolist()):
        alone = step_fn(x[row : row + 1], velocity[row : row + 1], k, NUM_STEPS, 0.5)
        assert torch.equal(together.mean[row], alone.mean[0])
        assert torch.equal(together.std[row].flatten(), alone.std.flatten())


def test_zero_noise_level_is_the_ode():
    x, velocity = normal(4, *SHAPE), normal(4, *SHAPE, seed=1)
    index = torch.arange(4)
    for step_fn in (flow.flow_sde_step, flow.flow_cps_step):
        mean, std = step_fn(x, velocity, index, NUM_STEPS, 0.0)
        torch.testing.assert_close(mean, flow.ode_step(x, velocity, 1 / NUM_STEPS))
        assert not std.any()


def gaussian_velocity(num_steps: int, center: float, std: float) -> RowFn:
    """Exact velocity of the flow from N(0, 1) to N(center, std^2)."""

    def velocity_fn(x: Tensor, step_index: Tensor, rows: Tensor | None) -> Tensor:
        t = (step_index / num_steps).to(x.dtype)[:, None, None]
        variance = (1 - t) ** 2 + (t * std) ** 2
        return center + (t * std**2 - (1 - t)) / variance * (x - t * center)

    return velocity_fn


@pytest.mark.parametrize("noise_level", [0.5, 1.0])
def test_flow_sde_keeps_the_marginals(noise_level: float):
    count, num_steps = 8_000, 100
    result = denoise(
        gaussian_velocity(num_steps, 1.0, 0.3),
        normal(count, 1, 1),
        num_steps,
        noise_level=noise_level,
        step_noise=normal(count, num_steps, 1, 1, seed=1),
    )
    for k, tolerance in ((50, 0.02), (num_steps, 0.012)):
        t = k / num_steps
        marginal = result.chain[:, k]
        assert float(marginal.mean()) == pytest.approx(t, abs=0.02)
        assert float(marginal.std()) == pytest.approx(math.hypot(1 - t, 0.3 * t), abs=tolerance)


@pytest.mark.parametrize("noise_level", [0.2, 0.5, 1.0])
def test_flow_cps_preserves_the_variance_of_the_noise(noise_level: float):
    for k in range(NUM_STEPS):
        # A noise estimate of 1 and a data estimate of 0: x = 1 - t, v = -1. The mean is then the weight of the noise.
        x = torch.full((1, 1, 1), 1 - k / NUM_STEPS, dtype=torch.float64)
        mean, std = flow.flow_cps_step(x, -torch.ones_like(x), k, NUM_STEPS, noise_level)
        assert float(mean**2 + std**2) == pytest.approx((1 - (k + 1) / NUM_STEPS) ** 2)


def test_deterministic_run_is_euler_and_needs_no_noise():
    velocity_fn, _ = toy(torch.tensor([0.5, 0.2]), normal(4, seed=1))
    x = normal(4, *SHAPE)
    result = flow.denoise_ode(velocity_fn, x, NUM_STEPS)
    for k in range(NUM_STEPS):
        x = x + velocity_fn(x, torch.full((4,), k), None) / NUM_STEPS
        torch.testing.assert_close(result.chain[:, k + 1], x)
    assert torch.equal(result.actions, result.chain[:, -1])
    assert not result.log_probs.any()


def test_deterministic_run_is_differentiable_in_the_initial_noise():
    velocity_fn, _ = toy(torch.tensor([0.5, 0.2], dtype=torch.float64), normal(2, seed=1, dtype=torch.float64))
    noise = normal(2, *SHAPE, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: flow.denoise_ode(velocity_fn, x, NUM_STEPS).actions, noise)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("joint", [False, True])
def test_evaluation_repeats_the_log_probs_of_acting(method: NoiseMethod, joint: bool):
    weight = torch.tensor([0.5, 0.2])
    result, steps, features = sample(weight, method, 9, joint=joint, dtype=torch.float32)
    again = reevaluate(weight, features, result.chain, steps, method)
    ratio = (again.log_probs - result.log_probs).exp()
    if joint:
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-5)
    else:
        assert torch.equal(ratio, torch.ones_like(ratio))


@pytest.mark.parametrize("method", METHODS)
def test_log_probs_are_those_of_the_library_gaussians(method: NoiseMethod):
    weight = torch.tensor([0.5, 0.2], dtype=torch.float64)
    result, _, features = sample(weight, method, 5, joint=True, dtype=torch.float64)
    velocity_fn, std_fn = toy(weight, features)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(result.chain[:, 0])
    entropy = torch.full_like(expected, float(torch.distributions.Normal(0.0, 1.0).entropy()))
    for k in range(NUM_STEPS):
        x, index = result.chain[:, k], torch.full((5,), k)
        velocity = velocity_fn(x, index, None)
        if method == "flow_noise":
            mean, std = x + velocity / NUM_STEPS, std_fn(x, index, None)
        else:
            moments = sde_moments if method == "flow_sde" else cps_moments
            points = zip(x.flatten().tolist(), velocity.flatten().tolist(), strict=True)
            pairs = torch.tensor([moments(*point, k, NUM_STEPS, 0.5) for point in points], dtype=torch.float64)
            mean, std = pairs[:, 0].reshape(x.shape), pairs[0, 1]
        if method == "flow_cps" and k == NUM_STEPS - 1:
            torch.testing.assert_close(result.actions, mean)
            continue
        step = torch.distributions.Normal(mean, std)
        expected = expected + step.log_prob(result.chain[:, k + 1])
        entropy = entropy + step.entropy()
    torch.testing.assert_close(result.log_probs, expected)
    torch.testing.assert_close(reevaluate(weight, features, result.chain, None, method).entropy, entropy)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("joint", [False, True])
def test_gradient_agrees_with_finite_differences(method: NoiseMethod, joint: bool):
    weight = torch.tensor([0.5, 0.2], dtype=torch.float64)
    result, steps, features = sample(weight, method, 4, joint=joint, dtype=torch.float64)
    moved = (weight + 0.05).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: reevaluate(w, features, result.chain, steps, method).log_probs, moved)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("joint", [False, True])
def test_likelihood_ratio_has_mean_one_under_the_policy_that_acted(method: NoiseMethod, joint: bool):
    weight = torch.tensor([0.5, 0.2], dtype=torch.float64)
    result, steps, features = sample(weight, method, 20_000, joint=joint, dtype=torch.float64)
    changed = reevaluate(weight + 0.1, features, result.chain, steps, method)
    ratio = (changed.log_probs - result.log_probs).sum((1, 2)).exp()
    assert float(ratio.std()) > 0.05
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * float(ratio.std()) / len(ratio) ** 0.5)


def test_chosen_step_is_evaluated_in_one_call_with_a_step_per_row():
    weight, steps = torch.tensor([0.5, 0.2]), torch.tensor([2, 0, 1])
    velocity_fn, _ = toy(weight, torch.zeros(3))
    calls: list[tuple[list[int], Tensor | None]] = []

    def counting(x: Tensor, step_index: Tensor, rows: Tensor | None) -> Tensor:
        calls.append((step_index.tolist(), rows))
        return velocity_fn(x, step_index, rows)

    chain = normal(3, NUM_STEPS + 1, *SHAPE)
    assert flow.evaluate_chain(counting, chain, steps, SDE).log_probs.shape == (3, *SHAPE)
    assert calls == [([2, 0, 1], None)]
    assert flow.evaluate_chain(counting, chain, None, SDE).log_probs.shape == (3, *SHAPE)
    index, rows = calls[1]
    assert index == [0, 1, 2, 3] * 3
    assert rows is not None
    assert rows.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_rows_do_not_depend_on_each_other():
    weight = torch.tensor([0.5, 0.2])
    result, steps, features = sample(weight, "flow_sde", 6, joint=False, dtype=torch.float32)
    assert steps is not None
    part = reevaluate(weight, features[2:4], result.chain[2:4], steps[2:4], "flow_sde")
    torch.testing.assert_close(part.log_probs, result.log_probs[2:4])


def test_low_precision_velocity_leaves_the_chain_in_float32():
    result = denoise(
        lambda x, step_index, rows: x.bfloat16(),
        normal(2, *SHAPE),
        NUM_STEPS,
        step_noise=normal(2, *SHAPE, seed=1),
        stochastic_step=torch.tensor([0, 1]),
    )
    assert result.chain.dtype == result.log_probs.dtype == torch.float32


def test_misuse_is_named():
    x = normal(2, *SHAPE)
    velocity_fn, _ = toy(torch.tensor([0.5, 0.2]), torch.zeros(2))
    with pytest.raises(AssertionError, match=r"step_noise must have shape \(2, 3, 2\), found \(2, 4, 3, 2\)"):
        denoise(velocity_fn, x, NUM_STEPS, step_noise=normal(2, 4, *SHAPE), stochastic_step=torch.tensor([0, 1]))
    with pytest.raises(AssertionError, match="standard deviation"):
        denoise(velocity_fn, x, NUM_STEPS, noise_method="flow_noise", step_noise=normal(2, 4, *SHAPE))


def test_gaussian_helpers_are_zero_without_deviation_and_keep_gradients_finite():
    std = torch.tensor([0.0, 0.3], requires_grad=True)
    x = torch.tensor([2.0, 2.0])
    log_prob = flow.gaussian_log_prob(x, torch.zeros(2), std)
    entropy = flow.gaussian_entropy(std)
    library = torch.distributions.Normal(0.0, 0.3)
    assert log_prob.tolist() == pytest.approx([0.0, float(library.log_prob(torch.tensor(2.0)))])
    assert entropy.tolist() == pytest.approx([0.0, float(library.entropy())])
    (log_prob.sum() + entropy.sum()).backward()
    assert std.grad is not None
    assert std.grad[0] == 0
    assert std.grad.isfinite().all()


def test_bounded_std_spans_its_range_on_the_logarithmic_scale():
    std = flow.bounded_std(torch.tensor([-50.0, 0.0, 50.0]), 0.08, 0.16)
    assert std.tolist() == pytest.approx([0.08, math.sqrt(0.08 * 0.16), 0.16])


def test_flow_matching_time_has_the_moments_of_the_beta_distribution():
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    t = flow.flow_matching_time(uniform)
    beta = torch.distributions.Beta(torch.tensor(1.5), torch.tensor(1.0))
    assert float(t.mean()) == pytest.approx(1 - float(beta.mean) / 0.999, abs=1e-4)
    assert float(t.var()) == pytest.approx(float(beta.variance) / 0.999**2, abs=1e-4)
    assert t.min() == 0
    assert t.max() < 1


def test_flow_matching_target_is_the_slope_of_the_path():
    actions, noise = normal(3, *SHAPE), normal(3, *SHAPE, seed=1)
    t = torch.tensor([0.0, 0.25, 1.0])
    x, velocity = flow.flow_matching_target(actions, noise, t)
    torch.testing.assert_close(x[0], noise[0])
    torch.testing.assert_close(x[2], actions[2])
    torch.testing.assert_close(x[1] + 0.75 * velocity[1], actions[1])
    torch.testing.assert_close(x[1] - 0.25 * velocity[1], noise[1])


@pytest.mark.parametrize("num_steps", range(1, 33))
def test_time_bucket_of_the_inference_grid_is_that_of_python_floats(num_steps: int):
    grid = torch.arange(num_steps) / num_steps
    assert flow.time_bucket(grid).tolist() == [int(k / num_steps * 1000) for k in range(num_steps)]


def test_noise_anneal_is_linear_then_constant():
    levels = [flow.noise_anneal(0.7, 0.3, 400, step) for step in (0, 200, 400, 401, 10_000)]
    assert levels == [0.7, 0.5, 0.3, 0.3, 0.3]
    assert flow.noise_anneal(0.7, 0.3, 400, 100) == pytest.approx(0.6)


@pytest.mark.parametrize("step", [flow.flow_sde_step, flow.flow_cps_step])
def test_a_noise_level_in_a_tensor_is_that_of_a_number(step: Callable[..., flow.StepDistribution]) -> None:
    x, velocity = torch.randn(2, 4, 3, 2, generator=torch.Generator().manual_seed(0)).unbind()
    index = torch.tensor([0, 1, 2, 3])
    for level in (0.3, 0.7123):
        number = step(x, velocity, index, 4, level)
        tensor = step(x, velocity, index, 4, torch.tensor(level, dtype=torch.float64))
        assert torch.equal(number.mean, tensor.mean)
        assert torch.equal(number.std, tensor.std)
        assert tensor.mean.dtype == torch.float32
