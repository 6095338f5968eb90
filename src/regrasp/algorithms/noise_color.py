"""Exploration noise that is correlated over the actions of a chunk.

White noise averages out over the actions of a chunk before a robot has moved; a lasting deviation, which an episode's
outcome can depend on, needs low frequencies. As in colored-noise exploration (Eberhard et al., ICLR 2023, "Pink noise
is all you need"), the spectrum falls with a power of the frequency; frequencies here are those of the discrete cosine
transform over a chunk, the first of which is a constant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class NoiseColor(nn.Module):
    """A covariance C over the H actions of a chunk, the same for every action dimension, and its Cholesky factor L.

    L is lower triangular, so that what stands at an action depends on it and on those before it alone: a sum of
    log-probabilities over the first actions is that of their marginal distribution. The variance of the noise at
    frequency k = 0, 1, ... is proportional to (1 + k)^-exponent, and 1 in the mean.

    Args:
        exponent: 0 is white noise, 1 pink, 2 red.
        horizon: H, actions of a predicted chunk.
    """

    covariance: Tensor
    """(H, H), C."""
    factor: Tensor
    """(H, H), L with L L^T = C."""
    inverse: Tensor
    """(H, H), the inverse of L."""
    log_scale: Tensor
    """(H, 1), logarithm of L's diagonal: of an action's standard deviation, given the actions before it."""

    def __init__(self, exponent: float, horizon: int) -> None:
        super().__init__()
        step = frequency = torch.arange(horizon, dtype=torch.float64, device="cpu")  # also where "meta" is the default
        basis = math.sqrt(2 / horizon) * torch.cos(math.pi / horizon * torch.outer(frequency, step + 0.5))
        basis[0] /= math.sqrt(2)
        variance = (1 + frequency).pow(-exponent)
        covariance = basis.T @ (variance[:, None] * basis) * (horizon / variance.sum())
        factor = torch.linalg.cholesky(covariance)
        self.register_buffer("covariance", covariance.float(), persistent=False)
        self.register_buffer("factor", factor.float(), persistent=False)
        self.register_buffer("inverse", torch.linalg.inv(factor).float(), persistent=False)
        self.register_buffer("log_scale", factor.diagonal().log()[:, None].float(), persistent=False)

    def of(self, noise: Tensor) -> Tensor:
        """Colored noise (B, H, A) of white noise (B, H, A)."""
        return self.factor.to(noise.dtype) @ noise

    def whitened(self, noise: Tensor) -> Tensor:
        """White noise (B, H, A) of colored noise (B, H, A)."""
        return self.inverse.to(noise.dtype) @ noise
