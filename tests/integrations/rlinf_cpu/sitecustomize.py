"""Lets RLinf 0.2 and 0.3 run without an accelerator: a folder for PYTHONPATH, so that Ray's workers read it too.

RLinf knows a worker without an accelerator (`NO_ACCEL`), for which PyTorch's device interface and the device's name are
None; its actor and rollout workers use both without asking. Here they are the CPU's.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PATCHED = "rlinf.scheduler.hardware.accelerators.accelerator"


def patch(module: Any) -> None:
    """Give `NO_ACCEL` a device: PyTorch's CPU, with the calls that only GPUs have doing nothing."""
    import torch

    class Cpu:
        """`torch.cpu`, and what RLinf calls of `torch.cuda` besides."""

        set_device = ipc_collect = empty_cache = staticmethod(lambda *_: None)
        get_rng_state, set_rng_state = staticmethod(torch.get_rng_state), staticmethod(torch.set_rng_state)

        def __getattr__(self, name: str) -> Any:
            return getattr(torch.cpu, name)

    util, none = module.AcceleratorUtil, module.AcceleratorType.NO_ACCEL
    for name, value in (("get_torch_platform", Cpu()), ("get_device_type", "cpu")):
        original = getattr(util, name)
        setattr(util, name, staticmethod(lambda kind, value=value, of=original: value if kind == none else of(kind)))


class Patching(importlib.abc.MetaPathFinder):
    """Runs `patch` when RLinf's module has been imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find that module as Python does, with a loader that patches it."""
        if fullname != PATCHED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        loader = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            patch(module)

        loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Patching())
