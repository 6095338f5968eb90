"""Initial weights from explicit seeds; the global random state is left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run constructors that draw from the global CPU generator (torch, transformers) under a seed of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def fan_in_normal(weight: Tensor, fan_in: int, generator: torch.Generator, gain: float = 1.0) -> None:
    """Fill `weight` with N(0, gain^2 / fan_in)."""
    with torch.no_grad():
        weight.normal_(0.0, gain * fan_in**-0.5, generator=generator)


def init_linear(linear: nn.Linear, generator: torch.Generator, gain: float = 1.0) -> None:
    """Fan-in scaled normal weights, zero bias; gain 0 makes the layer output zeros."""
    fan_in_normal(linear.weight, linear.in_features, generator, gain)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
