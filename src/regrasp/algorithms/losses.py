"""Losses of policy-gradient algorithms and their metrics; the surrogate is that of arXiv:1707.06347.

Metrics are detached scalars under the names that RLinf logs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from regrasp.algorithms.reduce import masked_mean, reduce_log_probs
from regrasp.config.types import Level

KlKind = Literal["kl", "abs", "mse", "low_var_kl"]

MAX_LOG_RATIO = 20.0
"""Log-ratios saturate here: the exponential stays finite, and so does 0 times its gradient in a clipped branch."""


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    clip_c: float | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate, mean over `mask` of max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)).

    With `clip_c` the loss of an element is at most clip_c |A|, which matters for A < 0 (dual clip, arXiv:1912.09729).

    Args:
        log_probs: Present policy, any shape (see `reduce_log_probs`).
        old_log_probs: Policy that acted, same shape.
        advantages: Same shape (see `broadcast_like`).
        mask: Bool, same shape.
        clip_low: Distance of the lower bound of the ratio from 1.
        clip_high: Distance of the upper bound of the ratio from 1.
        clip_c: Bound of the dual clip, above 1; None switches it off.

    Returns:
        The loss, and metrics: `policy_loss`; `policy_loss_abs`, mean |loss|; `ratio`; `ratio_abs`, mean |r - 1|;
        `clipped_ratio`, mean of the ratio after clipping; `dual_cliped_ratio` (RLinf's spelling), mean of the
        ratio where the dual clip is active and 0 elsewhere; `approx_kl`, mean (r - 1) - log r, the low-variance
        estimator of KL(old || new); `clip_fraction`, share of elements whose loss the ratio's clip changed.
    """
    assert log_probs.shape == old_log_probs.shape == advantages.shape == mask.shape
    log_ratio = (log_probs - old_log_probs).clamp(max=MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    clipped_ratio = ratio.clamp(1 - clip_low, 1 + clip_high)
    unclipped, clipped = -advantages * ratio, -advantages * clipped_ratio
    losses = torch.maximum(unclipped, clipped)
    dual_clipped = torch.zeros_like(mask)
    if clip_c is not None:
        bound = clip_c * advantages.abs()
        dual_clipped = losses > bound
        losses = torch.minimum(losses, bound)
    loss = masked_mean(losses, mask)
    elements = {
        "policy_loss_abs": losses.abs(),
        "ratio": ratio,
        "ratio_abs": (ratio - 1).abs(),
        "clipped_ratio": clipped_ratio,
        "dual_cliped_ratio": torch.where(dual_clipped, ratio, 0.0),
        "approx_kl": log_ratio.expm1() - log_ratio,
        "clip_fraction": (clipped > unclipped).to(ratio.dtype),
    }
    means = masked_mean(torch.stack([element.detach() for element in elements.values()]), mask)
    return loss, {"policy_loss": loss.detach(), **dict(zip(elements, means.unbind(), strict=True))}


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    value_clip: float | None,
    huber_delta: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean Huber loss of the values, the larger of the plain one and that of values clipped around the old ones.

    Huber: e^2 / 2 for |e| < delta, else delta (|e| - delta / 2).

    Args:
        values: Present value head, (B,).
        old_values: Value head that acted, (B,).
        returns: Targets, (B,).
        weights: (B,), of the loss; None: 1 each.
        mask: (B,) bool, what counts; None: all.
        value_clip: Bound of |V - V_old|; None switches clipping off.
        huber_delta: Error at which the loss turns from quadratic to linear.

    Returns:
        The loss, and metrics: `value_loss`; `value_clip_ratio`, share of values that clipping moves.
    """
    assert values.shape == old_values.shape == returns.shape
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    losses = functional.huber_loss(values, returns, reduction="none", delta=huber_delta)
    clip_ratio = losses.new_zeros(())
    if value_clip is not None:
        change = values - old_values
        clipped = old_values + change.clamp(-value_clip, value_clip)
        losses = torch.maximum(losses, functional.huber_loss(clipped, returns, reduction="none", delta=huber_delta))
        clip_ratio = masked_mean((change.detach().abs() > value_clip).to(losses.dtype), mask)
    loss = masked_mean(losses if weights is None else losses * weights, mask)
    return loss, {"value_loss": loss.detach(), "value_clip_ratio": clip_ratio}


def kl_penalty(log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor, kind: KlKind) -> Tensor:
    """Estimate KL(policy || reference) from the policy's own samples, a scalar (http://joschu.net/blog/kl-approx.html).

    With l = log policy - log reference: `kl` (k1) l, `abs` |l|, `mse` (k2) l^2 / 2, `low_var_kl` (k3) e^-l - 1 + l.
    k1 and k3 are unbiased; k2 is close while the policies are; `abs` is a distance, not an estimate.

    As a loss, on samples of the present policy: `mse` has the gradient of KL(policy || reference), `low_var_kl` that of
    KL(reference || policy), and the gradient of `kl` averages to 0, so that it measures but does not pull.

    Args:
        log_probs: Any shape.
        reference_log_probs: Same shape.
        mask: Bool, same shape; the mean is over it.
        kind: Estimator.
    """
    difference = log_probs - reference_log_probs
    if kind == "kl":
        return masked_mean(difference, mask)
    if kind == "abs":
        return masked_mean(difference.abs(), mask)
    if kind == "mse":
        return masked_mean(0.5 * difference.square(), mask)
    return masked_mean((-difference).clamp(max=MAX_LOG_RATIO).expm1() + difference, mask)


def entropy_term(entropy: Tensor, num_executed: Tensor, level: Level) -> Tensor:
    """Mean entropy in nats, a scalar; `entropy` (B, T, A) is reduced to `level` as by `reduce_log_probs`."""
    return masked_mean(*reduce_log_probs(entropy, num_executed, level))


def largest_ratio_error(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> Tensor:
    """Largest |ratio - 1| over `mask`, without selecting by it: the number selected would have to be waited for."""
    return ((log_probs - old_log_probs).detach().exp() - 1).abs().where(mask, 0.0).max()
