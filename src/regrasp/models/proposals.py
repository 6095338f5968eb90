"""Actors of learning from stored experience: bounded actions whose density is known and that critics improve."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regrasp.models.initialization import init_linear

_LOG_STD = (-5.0, 2.0)
"""Bounds of a learned logarithm of a standard deviation, as RLinf has them."""


@dataclass
class Proposal:
    """What an actor would do on B rows, differentiable."""

    actions: Tensor
    """(B, D) as critics read them."""
    log_probs: Tensor
    """(B,), of a whole action."""
    size: Tensor | None = None
    """(B,), mean square of what was added to another policy's action, or of the noise that it starts from; None where
    the actor acts by itself."""


def actor_mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers of the given widths with LayerNorm and GELU between them; the last one is linear."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(width_in, width_out), nn.LayerNorm(width_out), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def init_actor_mlp(mlp: nn.Sequential, generator: torch.Generator) -> None:
    """Fan-in scaled hidden layers and a zero last layer."""
    for layer in mlp:
        if isinstance(layer, nn.Linear):
            init_linear(layer, generator, gain=0.0 if layer is mlp[-1] else 1.0)
        elif isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()


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


def raw_log_std(std: float) -> float:
    """The network's output for which `bounded_log_std` gives the logarithm of `std`."""
    low, high = _LOG_STD
    return math.atanh(2 * (math.log(std) - low) / (high - low) - 1)
