"""Block `lora` of a model. Imports nothing heavy: a configuration is loaded without torch."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from regrasp.config.types import BLOCK, Beta, PositiveInt


@dataclass(frozen=True, config=BLOCK)
class LoraConfig:
    """Sizes of low-rank adapters (`is_lora: true`)."""

    rank: PositiveInt = 16
    """Rank of an adapter."""
    alpha: PositiveInt = 32
    """An adapter's output is scaled by alpha / rank."""
    dropout: Beta = 0.0
    """Dropout on an adapter's input; above 0 the probability ratio is noisy."""
