"""The timeline of a run: which of the checkpoints in its folder are its own, and in what order it wrote them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic_core import from_json

from regrasp.checkpoint.layout import step_folders, step_of
from regrasp.checkpoint.verify import is_complete
from regrasp.errors import UserError
from regrasp.folders import CONFIG_FILE, LOCK_FILE, atomic_file, leaves_folder, tidy

RECORD_FILE = "run.json"


class RunRecord:
    """What `<run>/run.json` says; of a run that has none, written by an earlier version, what its folders say.

    A checkpoint is recorded before it is written, so that none is whole without being known. One that was recorded and
    is not there was never finished, or has been deleted.

    Args:
        run_dir: Folder of the run.

    Raises:
        UserError: The record is damaged.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._file = run_dir / RECORD_FILE
        self._tracking_id: str | None = None
        self._names = self._read() if self._file.exists() else self._found()

    def checkpoints(self) -> list[Path]:
        """The checkpoints of the run's present timeline, newest first, complete or not."""
        return [self.run_dir / name for name in reversed(self._names) if (self.run_dir / name).is_dir()]

    def holds(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is one of the present timeline, under whatever path."""
        return any(own.samefile(checkpoint) for own in self.checkpoints())

    def add(self, checkpoint: Path) -> None:
        """Record a checkpoint that is about to be written."""
        name = checkpoint.relative_to(self.run_dir).as_posix()
        self._write([*(known for known in self._names if known != name), name])

    def tracking_id(self, resumed_at: int | None) -> str:
        """Under what id services know the run; a new one where it goes back to a step before its newest checkpoint.

        Args:
            resumed_at: The step from which the run goes on; None for one that begins.
        """
        newest = max((step_of(folder) or 0 for folder in self.checkpoints() if is_complete(folder)), default=0)
        if self._tracking_id is None or resumed_at is None or resumed_at < newest:
            self._tracking_id = secrets.token_hex(10)
            self._write(self._names)
        return self._tracking_id

    def end_at(self, step: int) -> list[Path]:
        """End the timeline at `step`, and return what lies there of later steps, damaged or not, newest first."""
        places = sorted({(self.run_dir / name).parent for name in self._names})
        for place in places:
            tidy(place)
        self._write([name for name in self._names if (step_of(self.run_dir / name) or 0) <= step])
        return [folder for place in places for folder in step_folders(place) if (step_of(folder) or 0) > step]

    def _found(self) -> list[str]:
        """Complete checkpoints below the run's folder, by step."""
        folders = [folder for place in self.run_dir.glob("*/checkpoints") for folder in step_folders(place)]
        folders = sorted(filter(is_complete, folders), key=lambda folder: step_of(folder) or 0)
        return [folder.relative_to(self.run_dir).as_posix() for folder in folders]

    def _read(self) -> list[str]:
        try:
            content = from_json(self._file.read_bytes())
            names, tracking_id = content["checkpoints"], content.get("tracking_id")
            outside = next(filter(leaves_folder, names), None)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(str(error)) from error
        if outside is not None:
            raise self._damaged(f"{outside!r} lies outside the run")
        if not isinstance(tracking_id, str | None) or not re.fullmatch("[0-9a-z]{1,64}", tracking_id or "none"):
            raise self._damaged(f"{tracking_id!r} is no tracking_id")
        self._tracking_id = tracking_id
        return names

    def _damaged(self, reason: str) -> UserError:
        return UserError(
            f"The run's record is damaged: {reason}",
            file=self._file,
            expected='{"checkpoints": [...]}, folders in the order in which they were written',
            fix="delete it; the order is then taken from the steps in the folders' names",
        )

    def _write(self, names: list[str]) -> None:
        self._names = names
        with atomic_file(self._file) as draft:
            content = {"checkpoints": names, "tracking_id": self._tracking_id}
            draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run to whose timeline a checkpoint belongs; None for one that was copied or set aside."""
    for path in (checkpoint.absolute(), checkpoint.resolve()):
        run_dir = path.parents[min(2, len(path.parents) - 1)]
        is_run = (run_dir / RECORD_FILE).exists() or (run_dir / CONFIG_FILE).exists()
        if is_run and RunRecord(run_dir).holds(checkpoint):
            return run_dir
    return None


def newest_recorded(folder: Path) -> Path | None:
    """The newest complete checkpoint below a run's folder, or below one in it, by the run's record if there is one."""
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - a link stays the link that it is
    for run_dir in (folder, *folder.parents[:2]):
        if (run_dir / RECORD_FILE).exists():
            below = (own for own in RunRecord(run_dir).checkpoints() if own.is_relative_to(folder))
            return next(filter(is_complete, below), None)
    return None


@contextmanager
def only_writer(run_dir: Path) -> Iterator[None]:
    """Keep other processes from training in the same folder; the lock of a process that died is no lock.

    Raises:
        UserError: Another process is training there.
    """
    with (run_dir / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                "Another process is training in this run's folder",
                file=run_dir,
                value=file.read().strip(),
                expected="one writer",
                fix="wait until it has ended, or stop it; a run of its own needs no --resume_dir",
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
