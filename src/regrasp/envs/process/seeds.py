"""Seeds as the simulator's libraries take them: 31 bits."""

from __future__ import annotations

from collections.abc import Sequence


def seed31(seed: int) -> int:
    """A seed below 2**31 that keeps the lowest bit, which tells evaluation's seeds from all others."""
    rest = seed >> 1
    return ((rest ^ rest >> 30 ^ rest >> 60) & 0x3FFFFFFF) << 1 | seed & 1


def joint_seed(seeds: Sequence[int]) -> int:
    """One seed below 2**31 for environments that draw from one generator; the seeds are all odd or all even."""
    joint = 0
    for seed in seeds:
        joint = (joint * 1_000_003 + (seed >> 1)) & 0x7FFFFFFFFFFFFFFF
    return seed31(joint << 1 | seeds[0] & 1)
