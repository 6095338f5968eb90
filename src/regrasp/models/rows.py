"""Positions of sequences, chosen by their numbers."""

from __future__ import annotations

from torch import Tensor


def rows_at(x: Tensor, positions: Tensor) -> Tensor:
    """Rows (B, K, D) of (B, S, D) at positions (B, K)."""
    return x.gather(1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
