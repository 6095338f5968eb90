"""What the machine offers, and copies to a GPU for which the host does not wait. Imports nothing heavy."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HAS_TRITON = find_spec("triton") is not None
"""torch's builds for GPUs bring it."""


def available_cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; what is asked of a GPU next finds it there."""
    if tensor.is_cuda or device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
