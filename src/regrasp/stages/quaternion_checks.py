"""Quaternions of two conventions in one dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from regrasp.data.isaaclab_hdf5 import RecorderFile
from regrasp.envs.mapping_config import MappingConfig
from regrasp.envs.quaternions import QuaternionOrder, agreed_order, quaternion_keys
from regrasp.envs.selection import ObservationSelection, Range
from regrasp.errors import UserError

_STAMPED: QuaternionOrder = "xyzw"
"""Of recordings with a format version."""
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

    def mixed(self) -> str | None:
        """Which quaternion seems to be of both kinds, and where; None where none does."""
        for name in self._parts:
            sums = {file: total for (part, file), total in self._sums.items() if part == name}
            first = [str(file) for file, total in sums.items() if total[0] > _DOMINANT * total[3]]
            last = [str(file) for file, total in sums.items() if total[3] > _DOMINANT * total[0]]
            if first and last:
                return (
                    f"{name} seems to have two conventions: its first value is the large one in {', '.join(first)}, its"
                    f" last one in {', '.join(last)}"
                )
        return None


def order_of_recordings(
    orders: Mapping[Path, QuaternionOrder], observations: ObservationSelection, mapping: MappingConfig, location: str
) -> QuaternionOrder | None:
    """The order of a dataset's quaternions, by the files that it is made of; None where they differ and none is used.

    The mapping's word stands against files without a format version, which Isaac Lab's recorders before 3 wrote.

    Raises:
        UserError: The files differ, or another order is asked for than that of a file.
    """
    if len(set(orders.values())) == 1:
        order = next(iter(orders.values()))
        return agreed_order(mapping, order if order == _STAMPED else None, location) or order
    if keys := quaternion_keys(observations.states):
        raise two_orders(
            f"Recordings with quaternions in two orders: {', '.join(keys)}",
            "; ".join(f"{file}: {order}" for file, order in orders.items()),
            location,
        )
    return None


def recorded_order(recording: RecorderFile) -> QuaternionOrder:
    """The order of a recording, as Isaac Lab reads it: it has a format version since 3, which changed the order."""
    return _STAMPED if recording.format_version >= 1 else "wxyz"


def two_orders(problem: str, value: str, location: str) -> UserError:
    """The error of recordings that are not to be mixed."""
    return UserError(
        problem,
        key=f"{location}.quaternions",
        value=value,
        expected="recordings of one order: Isaac Lab 2 records (w, x, y, z), Isaac Lab 3 (x, y, z, w)",
        fix="convert the recordings of one version; if they are of one order after all, say which by"
        f" {location}.quaternions=wxyz or xyzw",
    )
