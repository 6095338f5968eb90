"""Block `actor.model.dsrl`. Imports nothing heavy: a configuration is loaded without torch."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from regrasp.config.types import BLOCK, NonNegativeInt, PositiveFloat, Sizes


@dataclass(frozen=True, config=BLOCK)
class DsrlConfig:
    """A small actor that chooses the noise from which the frozen policy denoises a chunk."""

    bound: PositiveFloat = 1.5
    """Largest element of the noise; the policy learned from standard normal noise."""
    is_shared: bool = True
    """One vector is the noise of every action step, instead of one for each."""
    hidden: Sizes = (128, 128, 128)
    """Widths of the hidden layers."""
    noise_aliasing: bool = True
    """Critics judge executed chunks, and further critics of the noise learn from them; false: critics judge the noise
    alone."""
    pairs: NonNegativeInt = 3
    """Further noises of every decision that are denoised too, for the critics of the noise to learn from."""
    base_updates: NonNegativeInt = 1
    """First updates of a run in which the noise is standard normal, clipped to `bound`."""
