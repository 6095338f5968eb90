"""The timeline of a run: which commands wrote it, and which of the checkpoints in its folder are its own."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import from_json

import regrasp
from regrasp.checkpoint.layout import step_folders, step_of
from regrasp.checkpoint.verify import is_complete
from regrasp.errors import UserError
from regrasp.folders import COMMAND_FILE, CONFIG_FILE, LOCK_FILE, RECORD_FILE, atomic_file, leaves_folder, tidy

_PACKAGES = ("torch", "transformers", "mujoco-core", "tensordict", "numpy")


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    named = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"regrasp": regrasp.__version__, "python": platform.python_version(), **named}


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="ignore"))
class Start:
    """A command that began the run or continued it."""

    update: Annotated[int, Field(ge=0)]
    """Updates that were finished before."""
    command: str
    """As the user gave it; empty for a call from Python."""
    config: str
    """Its settings, a file in the run's folder."""
    versions: dict[str, str] = field(default_factory=dict)


_STARTS = TypeAdapter(list[Start])


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
        self.starts: list[Start] = []
        """The commands in their order; of an earlier version's run, the first one."""
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

    def begin(self, update: int, command: str, settings: str) -> None:
        """Record the command that writes the run from now on, and its settings; earlier ones stay, under other names.

        Args:
            update: Finished before; 0 for a run that begins.
            command: The command line; empty for a call from Python.
            settings: The resolved configuration, as YAML.
        """
        config = self.run_dir / CONFIG_FILE
        earlier = self.starts if self._names else []
        if earlier and config.is_file() and config.read_text(encoding="utf-8", errors="replace") != settings:
            kept = config.with_stem(f"{config.stem}_of_start_{len(earlier)}")
            config.replace(kept)
            earlier = [replace(start, config=kept.name) if start.config == CONFIG_FILE else start for start in earlier]
        self.starts = [*earlier, Start(update, command, CONFIG_FILE, versions())]
        with atomic_file(config) as draft:
            draft.write_text(settings, encoding="utf-8")
        with atomic_file(self.run_dir / COMMAND_FILE) as draft:
            draft.write_text("".join(f"{start.command}\n" for start in self.starts), encoding="utf-8")
        self._write(self._names)

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
        self.starts = self._unrecorded_starts()
        return [folder.relative_to(self.run_dir).as_posix() for folder in folders]

    def _read(self) -> list[str]:
        try:
            content = from_json(self._file.read_bytes())
            names, tracking_id = content["checkpoints"], content.get("tracking_id")
            starts = content.get("starts")
            self.starts = self._unrecorded_starts() if starts is None else _STARTS.validate_json(json.dumps(starts))
            outside = next(filter(leaves_folder, [*names, *(start.config for start in self.starts)]), None)
        except (OSError, ValueError, KeyError, TypeError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else {"msg": error}
            raise self._damaged(str(first["msg"])) from error
        if outside is not None:
            raise self._damaged(f"{outside!r} lies outside the run")
        if not isinstance(tracking_id, str | None) or not re.fullmatch("[0-9a-z]{1,64}", tracking_id or "none"):
            raise self._damaged(f"{tracking_id!r} is no tracking_id")
        self._tracking_id = tracking_id
        return names

    def _unrecorded_starts(self) -> list[Start]:
        """What a run of a version that recorded none was begun with."""
        command = self.run_dir / COMMAND_FILE
        if not command.is_file():
            return []
        return [Start(0, command.read_text(encoding="utf-8", errors="replace").rstrip(), CONFIG_FILE)]

    def _damaged(self, reason: str) -> UserError:
        return UserError(
            f"The run's record is damaged: {reason}",
            file=self._file,
            expected='{"checkpoints": [...], ...}, folders in the order in which they were written',
            fix="delete it; the order is then taken from the steps in the folders' names",
        )

    def _write(self, names: list[str]) -> None:
        self._names = names
        with atomic_file(self._file) as draft:
            starts = [asdict(start) for start in self.starts]
            content = {"checkpoints": names, "tracking_id": self._tracking_id, "starts": starts}
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
