"""Which ranges of the state the policy's inputs cover: which values twice, and which not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regrasp.envs.mapping_config import StateEntry


@dataclass(frozen=True)
class NamedRange:
    """A part of the state."""

    name: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.name} [{self.start}, {self.stop}]"

    def moved_to(self, start: int) -> NamedRange:
        """As wide, from `start` on."""
        return NamedRange(self.name, start, start + self.stop - self.start)


def overlaps(parts: Sequence[NamedRange]) -> list[tuple[NamedRange, NamedRange]]:
    """Every two parts that have values in common, of parts sorted by their start."""
    return [(first, second) for first, second in combinations(parts, 2) if second.start < first.stop]


def gaps(parts: Sequence[NamedRange]) -> list[tuple[NamedRange | None, NamedRange]]:
    """Every two parts between which values are left over, of sorted parts without overlap; None: the state's start."""
    neighbours = [(None, part) for part in parts[:1]] + list(pairwise(parts))
    return [(first, second) for first, second in neighbours if second.start > (first.stop if first else 0)]


def repeated_values(states: Sequence[StateEntry]) -> Iterator[tuple[str, str]]:
    """Every two entries of a mapping's `states` that give the policy the same values, as they are written."""
    for first, second in combinations(states, 2):
        (start, stop), (other_start, other_stop) = (entry.slice or (0, inf) for entry in (first, second))
        if first.key == second.key and start < other_stop and other_start < stop:
            yield _written(first), _written(second)


def _written(entry: StateEntry) -> str:
    return f"{entry.key} {list(entry.slice)}" if entry.slice else entry.key
