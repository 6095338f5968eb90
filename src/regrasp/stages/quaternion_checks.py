"""Quaternions of two conventions in one dataset: recordings do not say which is theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from regrasp.envs.selection import Range

_DOMINANT = 2.0
"""Times that one end of a quaternion is larger than the other where the convention shows."""


class QuaternionChecks:
    """Compares which end of a quaternion is the large one, by recording.

    Args:
        parts: Where the parts of the state are, by name; those with `quat` in it, of 4 values, are looked at.
    """

    def __init__(self, parts: Mapping[str, Range]) -> None:
        self._parts = {name: bounds for name, bounds in parts.items() if "quat" in name and bounds[1] - bounds[0] == 4}
        self._sums: dict[tuple[str, Path], np.ndarray] = {}

    def add(self, file: Path, states: np.ndarray) -> None:
        """Look at an episode's states (T, D)."""
        for name, bounds in self._parts.items():
            total = np.abs(states[:, slice(*bounds)]).sum(axis=0)
            self._sums[name, file] = self._sums.get((name, file), np.zeros(4)) + total

    def warnings(self) -> list[str]:
        """A line for each quaternion that is of both kinds."""
        lines = []
        for name in self._parts:
            sums = {file: total for (part, file), total in self._sums.items() if part == name}
            first = [str(file) for file, total in sums.items() if total[0] > _DOMINANT * total[3]]
            last = [str(file) for file, total in sums.items() if total[3] > _DOMINANT * total[0]]
            if first and last:
                lines.append(
                    f"{name} seems to have two conventions: its first value is the large one in {', '.join(first)}, its"
                    f" last one in {', '.join(last)}. Isaac Lab 2 records (w, x, y, z), Isaac Lab 3 (x, y, z, w): do"
                    " not mix their recordings."
                )
        return lines
