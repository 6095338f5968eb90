"""Block `actor.model.selection`. Imports nothing heavy: a configuration is loaded without torch."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from regrasp.config.types import BLOCK, Fraction, NonNegativeInt, PositiveFloat, PositiveInt


@dataclass(frozen=True, config=BLOCK)
class SelectionConfig:
    """Candidates of a chunk, among which critics choose what is done and what the action head imitates."""

    candidates: PositiveInt = 8
    """Chunks with a random offset that are weighed against the head's own."""
    scale: tuple[PositiveFloat, ...] = (0.5,)
    """Largest constant offset, in normalised action units: one for all action dimensions, or one for each."""
    components: PositiveInt = 2
    """Offsets of each action dimension: constant over the chunk, then slow cosines, see `residual.components`."""
    base_updates: NonNegativeInt = 1
    """First updates of a run in which the head's own chunk is executed."""
    random_updates: NonNegativeInt = 1
    """Updates after these in which a candidate is executed that is drawn at random."""
    random_share: Fraction = 0.1
    """Share of the decisions after these in which one is."""
