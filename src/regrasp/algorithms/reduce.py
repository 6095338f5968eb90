"""From element-by-element log-probabilities of an action chunk to the level at which a loss works."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regrasp.config.types import Level


def reduce_log_probs(log_probs: Tensor, num_executed: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """Sum log-probabilities (or entropies) of the executed steps up to a level.

    Steps that were not executed contribute 0 and no gradient, whatever they hold.

    Args:
        log_probs: (B, T, A).
        num_executed: (B,) int64, executed steps of each chunk.
        level: `token_level` sums nothing, `action_level` sums over A, `chunk_level` over T and A.

    Returns:
        Sums and a bool mask of what counts, both (B, T, A), (B, T) or (B,). A chunk counts when it executed any step.
    """
    steps = torch.arange(log_probs.shape[1], device=log_probs.device)
    executed = steps < num_executed[:, None]  # (B, T)
    masked = torch.where(executed[..., None], log_probs, 0.0)
    if level == "token_level":
        return masked, executed[..., None].expand_as(log_probs)
    if level == "action_level":
        return masked.sum(-1), executed
    return masked.sum((-2, -1)), num_executed > 0


def broadcast_like(x: Tensor, target: Tensor) -> Tensor:
    """Repeat `x` over the trailing dimensions that `target` has and `x` has not: (B,) to the shape of `target`."""
    return x.reshape(*x.shape, *(1 for _ in range(target.ndim - x.ndim))).expand_as(target)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` where `mask`, over the dimensions of `mask`, the last ones of `x`; 0 where nothing is left."""
    return torch.where(mask, x, 0.0).flatten(-mask.ndim).sum(-1) / mask.sum().clamp(min=1)


def share(part: Tensor, whole: Tensor, levels: Sequence[Level]) -> Tensor:
    """The share (L,) float32 of some chunks in means over all of them, of elements at each level.

    Args:
        part: (b,) int64, executed steps of the chunks.
        whole: (B,) int64, of all chunks.
        levels: L of them; at `chunk_level` every chunk is one element, else every executed step counts.
    """
    chunks = torch.full((), len(part) / len(whole), device=part.device)
    steps = part.sum() / whole.sum()
    return torch.stack([chunks if level == "chunk_level" else steps for level in levels])
