"""What the machine offers."""

from __future__ import annotations

import os
from importlib.util import find_spec

HAS_TRITON = find_spec("triton") is not None
"""torch's builds for GPUs bring it."""


def available_cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
