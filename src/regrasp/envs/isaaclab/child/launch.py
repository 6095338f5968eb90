# pyright: reportMissingImports=false
"""Starts what the installed Isaac Lab runs on (Omniverse Kit), before anything else of the simulator is imported."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from regrasp.envs.isaaclab.child.options import TaskOptions
from regrasp.envs.quaternions import QuaternionOrder
from regrasp.errors import UserError


@contextlib.contextmanager
def application(**arguments: Any) -> Iterator[None]:
    """The running simulator application, of Isaac Lab 2.x."""
    # The published wheel's module has no attribute of this name: only the import statement finds it.
    from isaaclab.app import AppLauncher

    launcher = AppLauncher(**arguments)
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


def lazy_launcher() -> Callable[[Any, dict[str, Any]], AbstractContextManager[Any]] | None:
    """What starts the simulator from a task's configuration, in Isaac Lab 3.x."""
    try:
        from isaaclab.app import launch_simulation
    except ImportError:
        return None
    return launch_simulation


def quaternion_order() -> QuaternionOrder | None:
    """In which order the installed Isaac Lab writes rotations, read off its own identity; None where it has none."""
    try:
        import torch
        from isaaclab.utils.math import quat_from_euler_xyz
    except ImportError:
        return None
    angle = torch.zeros(1)
    orders: dict[int, QuaternionOrder] = {0: "wxyz", 3: "xyzw"}
    return orders[int(quat_from_euler_xyz(angle, angle, angle)[0].argmax())]
