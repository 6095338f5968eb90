"""Processes that start at once: forked from one that has imported what they need, and has no threads yet."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.multiprocessing.spawn import start_processes

_IMPORTED = ["torch", "regrasp.engine.local", "regrasp.experiment.load"]


def in_processes(function: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """Call `function(rank, *arguments)` in `count` processes, and wait for them; an exception of one is raised here."""
    multiprocessing.set_forkserver_preload(_IMPORTED)
    start_processes(function, arguments, nprocs=count, start_method="forkserver")
