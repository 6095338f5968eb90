"""Learning-rate factors: what to multiply the configured learning rate by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regrasp.experiment import OptimConfig


def factor(optim: OptimConfig, update: int, num_updates: int) -> float:
    """Of the learning rates of update `update`, from 0, as `lr_scheduler` has it."""
    if optim.lr_scheduler == "constant":
        return constant(update, num_warmup_steps=optim.lr_warmup_steps)
    decay = linear if optim.lr_scheduler == "linear" else cosine
    return decay(update, num_steps=num_updates, num_warmup_steps=optim.lr_warmup_steps, min_ratio=optim.min_lr_ratio)


def constant(step: int, *, num_warmup_steps: int = 0) -> float:
    """Linear warm-up, then 1.

    The warm-up starts at 1 / (num_warmup_steps + 1), not at 0, so that the first update is not wasted.

    Args:
        step: Updates made so far, from 0.
        num_warmup_steps: First step with factor 1.
    """
    return min(1.0, (step + 1) / (num_warmup_steps + 1))


def linear(step: int, *, num_steps: int, num_warmup_steps: int = 0, min_ratio: float = 0.0) -> float:
    """Linear warm-up as in `constant`, then a straight line down to `min_ratio` at `num_steps`, constant from there.

    Args:
        step: Updates made so far, from 0.
        num_steps: Step at which `min_ratio` is reached.
        num_warmup_steps: First step with factor 1.
        min_ratio: Last factor.
    """
    if step < num_warmup_steps:
        return constant(step, num_warmup_steps=num_warmup_steps)
    return 1 - (1 - min_ratio) * _progress(step, num_steps, num_warmup_steps)


def cosine(step: int, *, num_steps: int, num_warmup_steps: int = 0, min_ratio: float = 0.0) -> float:
    """As `linear`, but down half a period of a cosine (arXiv:1608.03983 without restarts)."""
    if step < num_warmup_steps:
        return constant(step, num_warmup_steps=num_warmup_steps)
    angle = math.pi * _progress(step, num_steps, num_warmup_steps)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(angle))


def _progress(step: int, num_steps: int, num_warmup_steps: int) -> float:
    return min(1.0, (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps))
