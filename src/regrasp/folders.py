"""Folders that commands write: refused before the work starts, not after it."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from regrasp.errors import UserError

CONFIG_FILE = "config.yaml"
"""Every resolved value of a run, in the run's folder."""
COMMAND_FILE = "command.txt"
"""The command line that a run was started with, in the run's folder."""


def require_writable(folder: Path, *, key: str) -> None:
    """Check that a folder can be made and written into, by doing so; nothing of the attempt stays.

    Args:
        folder: It and its parents need not exist.
        key: The flag or configuration key that names it.

    Raises:
        UserError: It cannot.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"This folder cannot be written: {error.strerror or error}",
            key=key,
            value=str(folder),
            expected="a folder that exists, or can be made, on a disk with room and with permission to write",
            mend="name another folder, or correct the permissions of this one",
        ) from error
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


def require_new(folder: Path, *, overwrite: bool, key: str) -> None:
    """Check that nothing is replaced unasked.

    Raises:
        UserError: The folder holds something, and `overwrite` is not given.
    """
    if overwrite or not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    raise UserError(
        "There is something already",
        key=key,
        value=str(folder),
        expected="a folder that is new or empty",
        mend="pass --overwrite to replace it, or name another folder with --output",
    )


def discard_unused(run_dir: Path) -> None:
    """Remove the folder of a run that was refused before it wrote anything of its own."""
    if {path.name for path in run_dir.iterdir()} <= {CONFIG_FILE, COMMAND_FILE}:
        for file in run_dir.iterdir():
            file.unlink()
        run_dir.rmdir()
