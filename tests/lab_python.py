"""The interpreter that has the real Isaac Lab wheel, for tests of several folders."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

_CHOSEN = os.environ.get("REGRASP_TEST_ISAACLAB_PYTHON")
LAB_PYTHON = Path(_CHOSEN) if _CHOSEN else Path(sys.prefix) / "isaaclab" / "bin" / "python"
"""The interpreter that has Isaac Lab; the variable names one with a real Isaac Sim."""
STAND_IN = Path(__file__).parent / "envs" / "isaaclab_stand_in"
"""Goes onto the path of that interpreter: stubs of what the wheel imports and a machine without Isaac Sim lacks."""

needs_lab = pytest.mark.skipif(
    not LAB_PYTHON.exists(),
    reason="ISAAC LAB IS NOT TESTED: no isaaclab wheel, run scripts/install_isaaclab_tests.sh with a network",
)
