"""Block `actor.model.residual`. Imports nothing heavy: a configuration is loaded without torch."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from regrasp.config.types import BLOCK, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Sizes


@dataclass(frozen=True, config=BLOCK)
class ResidualConfig:
    """A small actor that adds a slow offset to the chunk of the frozen policy."""

    scale: tuple[PositiveFloat, ...] = (0.5,)
    """Largest offset that is constant over a chunk, in normalised action units: one for all action dimensions, or one
    for each."""
    components: PositiveInt = 2
    """Offsets of each action dimension: constant over the chunk, then the next slower cosines, each of these at most
    1/2, 1/3, ... of `scale`."""
    hidden: Sizes = (128, 128)
    """Widths of the hidden layers."""
    std: PositiveFloat = 0.15
    """Standard deviation of the offsets in exploration and in targets, before the tanh that bounds them to 1."""
    drift_std: NonNegativeFloat = 0.15
    """Standard deviation of a further one in exploration that stays over an episode."""
    candidates: NonNegativeInt = 0
    """Explored offsets among which, with none and the actor's own, the critics choose when training acts; 0: no
    choice."""
    base_updates: NonNegativeInt = 1
    """First updates of a run in which the frozen policy acts alone."""
    random_updates: NonNegativeInt = 2
    """Updates after these in which offsets are random."""
    random_range: Fraction = 0.8
    """Largest random offset, as a share of the largest possible."""
