"""What the machine offers, and copies to a GPU for which the host does not wait. Imports nothing heavy."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_CONTAINER_MEMORY = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Files with a container's limit and what it uses, of both versions of control groups."""
HAS_TRITON = find_spec("triton") is not None
"""torch's builds for GPUs bring it."""


def available_cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int:
    """Bytes of host memory that this process may still take: of the machine, and of the container it runs in."""
    import psutil

    limits = [psutil.virtual_memory().available]
    for limit, used in _CONTAINER_MEMORY:
        try:
            limits.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such control group, or no limit ("max")
            continue
    return max(0, min(limits))


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; what is asked of a GPU next finds it there."""
    if tensor.is_cuda or device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
