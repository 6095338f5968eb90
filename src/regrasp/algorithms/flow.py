"""Flow-matching policies as stochastic policies: sampling, log-probabilities, and the supervised target.

Time is GR00T's: t = 0 is noise, t = 1 is data, and K Euler steps of size d = 1/K visit t_k = k/K. A velocity v at
(x, t) implies a noise estimate x0 = x - t v and a data estimate x1 = x + (1 - t) v.

Shapes: B rows, H action steps of the head's horizon, A action dimensions, K denoising steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from regrasp.algorithms.noise_color import NoiseColor

NoiseMethod = Literal["flow_sde", "flow_cps", "flow_noise"]

RowFn = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`(x (R, H, A), step_index (R,) int64, rows) -> (R, H, A)`, a velocity or a standard deviation.

`rows` is None when row i of `x` belongs to decision i, else (R,) int64: row i of `x` belongs to decision `rows[i]`,
so that the caller can repeat that decision's features.
"""

LOG_TWO_PI = math.log(2 * math.pi)


class StepDistribution(NamedTuple):
    """The Gaussian of one denoising step."""

    mean: Tensor
    """(B, H, A)."""
    std: Tensor
    """Broadcastable to (B, H, A); 0 where the step is deterministic."""


class Denoised(NamedTuple):
    """What `denoise` returns."""

    actions: Tensor
    """(B, H, A), x_K."""
    chain: Tensor
    """(B, K + 1, H, A), x_0 to x_K: what `evaluate_chain` needs."""
    log_probs: Tensor
    """(B, H, A), element by element; 0 in a deterministic run."""


class ChainEvaluation(NamedTuple):
    """What `evaluate_chain` returns."""

    log_probs: Tensor
    """(B, H, A)."""
    entropy: Tensor | None
    """(B, H, A): of the chosen step, or summed over all Gaussians of the chain."""


@dataclass(frozen=True)
class StepRule:
    """How a stochastic denoising step is distributed.

    `flow_sde` and `flow_cps` are the functions below; `flow_noise` is an ODE step with a learned standard deviation
    (Flow-Noise of pi_RL; ReinFlow, arXiv:2505.22094).
    """

    method: NoiseMethod
    level: float | Tensor
    """a of `flow_sde_step` and `flow_cps_step`; as a scalar (), it can change under a recorded computation."""
    color: NoiseColor | None = None
    """Correlation of the noise over action steps, for `flow_sde` and `flow_noise`; None: white noise."""
    std_fn: RowFn | None = None
    """Standard deviation of `flow_noise`."""

    def step(
        self, x: Tensor, velocity: Tensor, step_index: Tensor, num_steps: int, rows: Tensor | None
    ) -> StepDistribution:
        """The distribution of x (R, H, A) at the next step, see `RowFn` for `rows`."""
        match self.method:
            case "flow_sde":
                return flow_sde_step(x, velocity, step_index, num_steps, self.level, self.color)
            case "flow_cps":
                assert self.color is None, "the noise of flow_cps is white"
                return flow_cps_step(x, velocity, step_index, num_steps, self.level)
            case "flow_noise":
                assert self.std_fn is not None, "flow_noise needs a standard deviation"
                std = self.std_fn(x, step_index, rows).to(x.dtype)
                return StepDistribution(ode_step(x, velocity, 1 / num_steps), std)


def ode_step(x: Tensor, velocity: Tensor, dt: float) -> Tensor:
    """One Euler step of the probability-flow ODE, x + v d."""
    return x + velocity * dt


def flow_sde_step(
    x: Tensor,
    velocity: Tensor,
    step_index: Tensor | int,
    num_steps: int,
    noise_level: float | Tensor,
    color: NoiseColor | None = None,
) -> StepDistribution:
    """One Euler-Maruyama step of the SDE that has the marginals of the ODE (Flow-SDE, pi_RL arXiv:2510.25889).

    Drift v + s_t^2/2 * C score with score = -x0 / (1 - t) and s_t = a sqrt((1 - t) / t):
    x' ~ N(x + v d - s_t^2 d / (2 (1 - t)) C x0, d s_t^2 C). At t = 0 the denominator t of s_t^2 is t_1 = d. C is the
    covariance of the noise over action steps, without `color` the identity: marginals are kept with any C that does
    not depend on x.

    Args:
        x: (B, H, A), state at t_k.
        velocity: (B, H, A), velocity at (x, t_k).
        step_index: (B,) int64 or int, k in [0, K).
        num_steps: K.
        noise_level: a, without unit.
        color: C.

    Returns:
        Mean (B, H, A) and standard deviation, broadcastable to it, of the noise before it is colored.
    """
    t, dt = _time(x, step_index, num_steps)
    # s_t^2 / (1 - t), finite everywhere on the grid.
    diffusion = (t.clamp(min=dt).reciprocal() * noise_level**2).to(x.dtype)
    noise_estimate = x - t * velocity
    if color is not None:
        noise_estimate = color.covariance.to(x.dtype) @ noise_estimate
    mean = ode_step(x, velocity, dt) - 0.5 * dt * diffusion * noise_estimate
    return StepDistribution(mean, (dt * diffusion * (1 - t)).sqrt())


def flow_cps_step(
    x: Tensor, velocity: Tensor, step_index: Tensor | int, num_steps: int, noise_level: float | Tensor
) -> StepDistribution:
    """One coefficient-preserving step (Flow-CPS, arXiv:2509.05952): noise keeps the weight 1 - t' it has in the ODE.

    With t' = t + d: mean (1 - t') cos(a pi/2) x0 + t' x1, standard deviation (1 - t') sin(a pi/2). The last step is
    deterministic. Arguments and result as in `flow_sde_step`, with `noise_level` a in [0, 1].
    """
    t, dt = _time(x, step_index, num_steps)
    remaining = (num_steps - 1 - _rows(x, step_index)).to(x.dtype) * dt
    noise_estimate = x - t * velocity
    data_estimate = x + (1 - t) * velocity
    angle = torch.as_tensor(noise_level, dtype=torch.float64) * (math.pi / 2)
    mean = (remaining * angle.cos()).to(x.dtype) * noise_estimate + (1 - remaining) * data_estimate
    return StepDistribution(mean, (remaining * angle.sin()).to(x.dtype))


def bounded_std(raw: Tensor, low: float, high: float) -> Tensor:
    """Map a network's output to a standard deviation in (low, high), by tanh on the logarithmic scale."""
    log_low, log_high = math.log(low), math.log(high)
    return torch.exp(log_low + (log_high - log_low) * 0.5 * (torch.tanh(raw) + 1))


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor, color: NoiseColor | None = None) -> Tensor:
    """Logarithm of N(x; mean, std^2) element by element; 0, with zero gradient, where `std` is 0.

    With `color`, of mean + std * (colored noise): an action's density given the actions before it.
    """
    stochastic = std > 0
    safe_std = torch.where(stochastic, std, 1.0)
    noise, log_scale = (x - mean) / safe_std, safe_std.log()
    if color is not None:
        noise, log_scale = color.whitened(noise), log_scale + color.log_scale
    log_prob = -0.5 * noise.square() - log_scale - 0.5 * LOG_TWO_PI
    return torch.where(stochastic, log_prob, 0.0)


def gaussian_entropy(std: Tensor, color: NoiseColor | None = None) -> Tensor:
    """Differential entropy 1/2 log(2 pi e std^2) in nats, element by element; 0 where `std` is 0."""
    stochastic = std > 0
    log_scale = torch.where(stochastic, std, 1.0).log()
    if color is not None:
        log_scale = log_scale + color.log_scale
    return torch.where(stochastic, log_scale + 0.5 * (1 + LOG_TWO_PI), 0.0)


def denoise(
    velocity_fn: RowFn,
    initial_noise: Tensor,
    num_steps: int,
    rule: StepRule,
    step_noise: Tensor,
    stochastic_step: Tensor | None,
) -> Denoised:
    """Sample actions by K denoising steps and give the log-probabilities of what was sampled.

    Args:
        velocity_fn: Called K times with `rows` None; its result is cast to the dtype of `initial_noise`.
        initial_noise: (B, H, A), x_0.
        num_steps: K.
        rule: How a stochastic step is distributed.
        step_noise: Standard normal numbers: (B, H, A) with `stochastic_step`, (B, K, H, A) without.
        stochastic_step: (B,) int64, the one step of each row that is stochastic, the others being ODE steps
            (two-layer MDP of pi_RL); None makes all steps stochastic. Then the log-probability is joint: summed over
            the steps by the chain rule, plus log N(x_0; 0, I).
    """
    joint = stochastic_step is None
    shape = (len(initial_noise), *([num_steps] if joint else []), *initial_noise.shape[1:])
    assert step_noise.shape == shape, f"step_noise must have shape {shape}, found {tuple(step_noise.shape)}"
    noise = step_noise if rule.color is None else rule.color.of(step_noise)
    x = initial_noise
    chain, log_probs = [x], []
    for k in range(num_steps):
        index = torch.full((len(x),), k, dtype=torch.long, device=x.device)
        velocity = velocity_fn(x, index, None).to(x.dtype)
        step = rule.step(x, velocity, index, num_steps, None)
        if not joint:
            chosen = _rows(x, stochastic_step) == k
            mean = torch.where(chosen, step.mean, ode_step(x, velocity, 1 / num_steps))
            step = StepDistribution(mean, torch.where(chosen, step.std, 0.0))
        x = step.mean + step.std * (noise[:, k] if joint else noise)
        chain.append(x)
        log_probs.append(gaussian_log_prob(x, *step, rule.color))
    total = torch.stack(log_probs, dim=1).sum(dim=1)
    if joint:
        total = total + _standard_normal_log_prob(initial_noise)
    return Denoised(x, torch.stack(chain, dim=1), total)


def denoise_ode(velocity_fn: RowFn, initial_noise: Tensor, num_steps: int) -> Denoised:
    """The same without noise on the way."""
    x = initial_noise
    chain = [x]
    for k in range(num_steps):
        index = torch.full((len(x),), k, dtype=torch.long, device=x.device)
        x = ode_step(x, velocity_fn(x, index, None).to(x.dtype), 1 / num_steps)
        chain.append(x)
    return Denoised(x, torch.stack(chain, dim=1), torch.zeros_like(x))


def evaluate_chain(
    velocity_fn: RowFn, chain: Tensor, stochastic_step: Tensor | None, rule: StepRule, *, with_entropy: bool = True
) -> ChainEvaluation:
    """Recompute the log-probabilities of a stored chain, and its entropy, in one call of `velocity_fn`.

    With `stochastic_step` the call has B rows, each at its own step, and `rows` None. Without, it has B K rows, and
    `rows` says which decision each belongs to (the K steps of a decision are adjacent).

    The entropy of a joint chain sums the entropies of its conditional Gaussians and of N(0, I). That is exact while
    the standard deviation does not depend on x, else a one-sample estimate.

    Args:
        velocity_fn: As in `denoise`.
        chain: (B, K + 1, H, A).
        stochastic_step: As it was in `denoise`.
        rule: As it was in `denoise`.
        with_entropy: Compute it; else it is None.
    """
    batch, num_steps = len(chain), chain.shape[1] - 1
    if stochastic_step is None:
        rows = torch.arange(batch, device=chain.device).repeat_interleave(num_steps)
        index = torch.arange(num_steps, device=chain.device).repeat(batch)
        x, x_next = chain[:, :-1].flatten(0, 1), chain[:, 1:].flatten(0, 1)
    else:
        rows, index = None, stochastic_step
        every = torch.arange(batch, device=chain.device)
        x, x_next = chain[every, index], chain[every, index + 1]
    velocity = velocity_fn(x, index, rows).to(x.dtype)
    step = rule.step(x, velocity, index, num_steps, rows)
    log_probs = gaussian_log_prob(x_next, *step, rule.color)
    entropy = gaussian_entropy(step.std, rule.color).expand_as(x) if with_entropy else None
    if stochastic_step is not None:
        return ChainEvaluation(log_probs, entropy)
    joint_log_probs = log_probs.unflatten(0, (batch, num_steps)).sum(dim=1) + _standard_normal_log_prob(chain[:, 0])
    if entropy is not None:
        initial_entropy = gaussian_entropy(torch.ones_like(chain[:, 0]))
        entropy = entropy.unflatten(0, (batch, num_steps)).sum(dim=1) + initial_entropy
    return ChainEvaluation(joint_log_probs, entropy)


def flow_matching_time(uniform: Tensor, s: float = 0.999) -> Tensor:
    """Training times t = (s - b) / s with b ~ Beta(1.5, 1), by the inverse CDF b = u^(1/1.5) (GR00T, arXiv:2503.14734).

    Clamped to [0, 1]: the formula falls below 0 for the 0.15 % of draws with b > s.

    Args:
        uniform: Uniform numbers in [0, 1), any shape.
        s: Largest b that keeps t non-negative.
    """
    return ((s - uniform.pow(1 / 1.5)) / s).clamp(0, 1)


def flow_matching_target(actions: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Interpolate x_t = (1 - t) noise + t actions and give the velocity target, actions - noise.

    Args:
        actions: (B, H, A).
        noise: (B, H, A), standard normal.
        t: (B,), in [0, 1].

    Returns:
        x_t and the target, both (B, H, A).
    """
    time = _rows(actions, t)
    return (1 - time) * noise + time * actions, actions - noise


def noise_anneal(start: float, end: float, steps: int, step: int) -> float:
    """Noise level after `step` updates: linear from `start` to `end` over `steps` updates, constant from there."""
    fraction = min(step, steps) / steps
    return (1 - fraction) * start + fraction * end


def time_bucket(t: Tensor, num_buckets: int = 1000) -> Tensor:
    """Discrete time of GR00T's encoders, int(num_buckets * t), as int64 of the shape of `t`."""
    return (t * num_buckets).long()


def _standard_normal_log_prob(x: Tensor) -> Tensor:
    return -0.5 * x.square() - 0.5 * LOG_TWO_PI


def _rows(x: Tensor, value: Tensor | int) -> Tensor:
    """Shape a number per row, (B,), or one for all rows, so that it broadcasts against `x`."""
    tensor = torch.as_tensor(value, device=x.device)
    return tensor.reshape(-1, *(1 for _ in x.shape[1:])) if tensor.ndim else tensor


def _time(x: Tensor, step_index: Tensor | int, num_steps: int) -> tuple[Tensor, float]:
    """t_k, broadcastable to `x` and of its dtype, and the step d."""
    return _rows(x, step_index).to(x.dtype) / num_steps, 1 / num_steps
