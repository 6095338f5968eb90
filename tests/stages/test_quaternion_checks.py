"""Recordings whose quaternions begin or end with the real part."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from regrasp.stages.quaternion_checks import QuaternionChecks

STATES = np.array([[5.0, 0.99, 0.1, 0.05, 0.02]] * 3)
OLD, NEW = Path("old.hdf5"), Path("new.hdf5")


def test_both_conventions_are_warned_of_by_file() -> None:
    checks = QuaternionChecks({"x": (0, 1), "policy/eef_quat": (1, 5)})
    checks.add(OLD, STATES)
    assert checks.warnings() == []
    checks.add(NEW, np.hstack([STATES[:, :1], np.roll(STATES[:, 1:], -1, axis=1)]))
    (line,) = checks.warnings()
    assert "policy/eef_quat" in line
    assert line.index("old.hdf5") < line.index("its last one in new.hdf5")
