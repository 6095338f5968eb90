"""Folders that are under construction or on their way out, and what dead processes left of them."""

from __future__ import annotations

import re
import shutil
import socket
import time
from pathlib import Path

import psutil

from regrasp.checkpoint.layout import replaced_folder, step_folder, step_folders, step_of
from regrasp.checkpoint.verify import is_complete

_HIDDEN = re.compile(r"\.global_step_\d+\.(?:draft|removed)@(?P<host>[^@]*)@(?P<pid>\d+)@(?P<started>\d+)")
_CLOCK_SLACK = 60
"""Seconds by which two readings of one process's start time may differ."""
_FOREIGN_AGE = 24 * 3600
"""Seconds after which a folder left by another host, whose processes cannot be seen, counts as abandoned."""


def draft_folder(checkpoints_dir: Path, step: int) -> Path:
    """Where this process builds a checkpoint before it is renamed into place."""
    return _hidden(checkpoints_dir, step, "draft")


def discard(folder: Path) -> None:
    """Delete a checkpoint; from the first instant on it is no longer one, even if deleting is interrupted."""
    hidden = _hidden(folder.parent, step_of(folder) or 0, "removed")
    folder.rename(hidden)
    shutil.rmtree(hidden)


def tidy(checkpoints_dir: Path) -> None:
    """Finish or undo what dead processes left half done; folders of live writers are not touched."""
    for folder in checkpoints_dir.iterdir() if checkpoints_dir.is_dir() else ():
        match = _HIDDEN.fullmatch(folder.name)
        if match and _abandoned(folder, match["host"], int(match["pid"]), int(match["started"])):
            shutil.rmtree(folder)
    for folder in step_folders(checkpoints_dir):
        step = step_of(folder) or 0
        final = step_folder(checkpoints_dir, step)
        if folder != replaced_folder(checkpoints_dir, step):
            continue
        if not final.exists():
            folder.rename(final)
        elif is_complete(final):
            discard(folder)


def _hidden(checkpoints_dir: Path, step: int, purpose: str) -> Path:
    process = psutil.Process()
    writer = f"{socket.gethostname()}@{process.pid}@{int(process.create_time())}"
    return checkpoints_dir / f".global_step_{step}.{purpose}@{writer}"


def _abandoned(folder: Path, host: str, pid: int, started: int) -> bool:
    if host != socket.gethostname():
        return time.time() - folder.stat().st_mtime > _FOREIGN_AGE
    try:
        return abs(psutil.Process(pid).create_time() - started) > _CLOCK_SLACK
    except psutil.NoSuchProcess:
        return True
