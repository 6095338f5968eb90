"""A Ray cluster that the tests of a file share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from regrasp.engine.ray.cluster import Machines, connected


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", paths)
        with connected(None) as found:
            yield found
