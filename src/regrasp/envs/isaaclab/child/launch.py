# pyright: reportMissingImports=false
"""Starts what the installed Isaac Lab runs on (Omniverse Kit), before anything else of the simulator is imported."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from regrasp.envs.isaaclab.child.options import TaskOptions
from regrasp.errors import UserError


def has_lazy_launch() -> bool:
    """Whether this Isaac Lab (3.x) starts the simulator from a task's configuration."""
    return _lazy_launcher() is not None


@contextlib.contextmanager
def application(options: TaskOptions, config: Any = None) -> Iterator[None]:
    """The running simulator application.

    Args:
        options: Device, headless or not, cameras or not.
        config: The task's configuration, where `has_lazy_launch`.
    """
    lazy = _lazy_launcher()
    if lazy is not None:
        arguments = {"device": options.device, "enable_cameras": options.cameras, "headless": options.headless}
        with lazy(config, arguments):
            yield
        return
    # The published wheel's module has no attribute of this name: only the import statement finds it.
    from isaaclab.app import AppLauncher

    launcher = AppLauncher(headless=options.headless, enable_cameras=options.cameras, device=options.device)
    try:
        yield
    finally:
        launcher.app.close()


def require_isaac_lab(options: TaskOptions) -> None:
    """Check that this Python has Isaac Lab.

    Raises:
        UserError: It has not, or Isaac Sim is missing.
    """
    try:
        import isaaclab.app  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in ("isaaclab", "isaacsim"):
            raise
        raise UserError(
            f"The simulator's Python has no '{error.name}'",
            key=f"{options.location}.python",
            value=sys.executable,
            expected="the Python in which Isaac Lab and Isaac Sim are installed",
            fix=f"set env.isaaclab.python to it, or {options.location}.python for this environment alone",
        ) from None


def _lazy_launcher() -> Callable[[Any, dict[str, Any]], AbstractContextManager[Any]] | None:
    try:
        from isaaclab.app import launch_simulation
    except ImportError:
        return None
    return launch_simulation
