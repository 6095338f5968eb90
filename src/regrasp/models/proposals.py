"""Actors of learning from stored experience: bounded actions whose density is known and that critics improve."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

_LOG_STD = (-5.0, 2.0)
"""Bounds of a learned logarithm of a standard deviation, as RLinf has them."""


@dataclass
class Proposal:
    """What an actor would do on B rows, differentiable."""

    actions: Tensor
    """(B, D) as critics read them."""
    log_probs: Tensor
    """(B,), of a whole action."""
    size: Tensor
    """(B,), mean square of what was added to another policy's action; 0 where nothing is."""


def squashed(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Tanh of a Gaussian sample and the logarithm of its density (arXiv:1801.01290, appendix C).

    Args:
        mean: (B, D).
        log_std: (B, D).
        noise: (B, D), standard normal.

    Returns:
        (B, D) in (-1, 1), and (B,).
    """
    before = mean + log_std.exp() * noise
    density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    slope = 2 * (math.log(2) - before - F.softplus(-2 * before))  # log(1 - tanh^2), exact where tanh is 1 in float32
    return before.tanh(), (density - slope).sum(-1)


def bounded_log_std(output: Tensor) -> Tensor:
    """The logarithm of a standard deviation, from a network's output of any size."""
    low, high = _LOG_STD
    return low + 0.5 * (high - low) * (output.tanh() + 1)
