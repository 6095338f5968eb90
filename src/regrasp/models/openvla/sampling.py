"""Action tokens drawn from logits, and their log-probabilities: the same arithmetic in rollout and update."""

from __future__ import annotations

import torch
from torch import Tensor


def support_of(logits: Tensor, top_k: int | None) -> Tensor | None:
    """(..., N) bool, the `top_k` largest logits (and what equals the smallest of them); None: all.

    A rollout stores it: under other weights a drawn token may have left the largest, and would have no probability.
    """
    if top_k is None or top_k >= logits.shape[-1]:
        return None
    smallest = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits >= smallest


def log_distribution(logits: Tensor, temperature: float | Tensor, support: Tensor | None) -> Tensor:
    """Log-probabilities (..., N) float32 of logits divided by a temperature, -inf outside the support."""
    scaled = logits.float() / temperature
    if support is not None:
        scaled = scaled.masked_fill(~support, float("-inf"))
    return scaled.log_softmax(dim=-1)


def draw(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """Indices (...) drawn from log-probabilities (..., N) by the inverse of their distribution function.

    Args:
        log_probs: See `log_distribution`.
        uniform: (...) in [0, 1).
    """
    below = log_probs.exp().cumsum(dim=-1)
    threshold = uniform.unsqueeze(-1) * below[..., -1:]
    index = (below <= threshold).sum(dim=-1)
    last = log_probs.shape[-1] - 1
    # Rounding may lift a threshold to the whole sum: then the last index that has a probability is meant.
    return torch.where(index > last, last - log_probs.flip(-1).isfinite().int().argmax(dim=-1), index)


def entropy_of(log_probs: Tensor) -> Tensor:
    """Entropy (...) of log-probabilities (..., N), in closed form."""
    finite = log_probs.masked_fill(log_probs.isneginf(), 0.0)
    return -(log_probs.exp() * finite).sum(dim=-1)
