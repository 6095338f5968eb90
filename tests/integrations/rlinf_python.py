"""The interpreters that have RLinf's released wheels."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "src"


def interpreter(version: str) -> str:
    """That of a release; without it the test is skipped."""
    python = os.environ.get(f"REGRASP_TEST_RLINF_{version}_PYTHON") or f"{sys.prefix}/rlinf-{version}/bin/python"
    if not Path(python).exists():
        pytest.skip("RLINF IS NOT TESTED: run scripts/install_rlinf_tests.sh with a network")
    return python
