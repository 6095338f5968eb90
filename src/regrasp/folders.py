"""Folders that commands write: refused before the work starts, not after it, and never there half."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import psutil

from regrasp.errors import UserError

CONFIG_FILE = "config.yaml"
"""Every resolved value of a run, in the run's folder."""
COMMAND_FILE = "command.txt"
"""The command lines that began a run and continued it, in the run's folder."""
RECORD_FILE = "run.json"
"""What wrote a run, and its checkpoints, in the run's folder."""
WARNINGS_FILE = "warnings.txt"
"""What a run warned of, in the run's folder."""
LOCK_FILE = "run.lock"
"""Locked by the process that trains in the run's folder."""
CHECKSUMS = "SHA256SUMS"
"""What the files of a model folder or a dataset were when they were written, as `sha256sum` lists and checks it."""
CARD_FILE = "README.md"
"""What a model or a dataset says of itself, as the Hugging Face hub shows it; people edit it, and nothing loads it."""

_HIDDEN = re.compile(
    r"\.(?P<name>.+)\.(?P<purpose>draft|replaced|removed)@(?P<host>[^@]*)@(?P<pid>\d+)@(?P<started>\d+)"
)
_DISK_ERRORS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO),
        *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG),
    }
)
_ERROR_NUMBER = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust, such as safetensors and tokenizers, name the system's error."""
WEIGHT_SUFFIXES = frozenset({".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz"})
_LOADED = WEIGHT_SUFFIXES | {".json", ".jinja", ".model"}
_LOADED_WORDS = frozenset({"merges.txt", "vocab.txt"})
_CHECKSUM = re.compile(r"(?P<sum>[0-9a-f]{64})  (?P<name>.+)")
_CLOCK_SLACK = 60
"""Seconds by which two readings of one process's start time may differ."""
_FOREIGN_AGE = 24 * 3600
"""Seconds after which a folder left by another host, whose processes cannot be seen, counts as abandoned."""


@contextlib.contextmanager
def atomic_folder(target: Path, *, overwrite: bool = False, checksums: bool = False) -> Iterator[Path]:
    """Give an empty hidden folder beside `target`, which becomes `target` when the block ends without an error.

    Its files are synced first, so that a crash at any instant leaves all of `target` or nothing of it. A folder that is
    replaced stays beside under a hidden name until the new one is in its place. Of a block that fails nothing remains;
    what a killed process left is cleaned up by the next one that writes the same `target`.

    Args:
        target: Its parents are made.
        overwrite: Replace what is at `target`; otherwise only an empty folder may be there.
        checksums: Add `CHECKSUMS`, by which `check_checksums` finds what changes later.

    Raises:
        UserError: The disk is full or refuses, or something is at `target`.
    """
    target = target.resolve()
    draft, replaced = _hidden(target, "draft"), _hidden(target, "replaced")
    with writing(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            tidy(target.parent, target.name)
            draft.mkdir()
            yield draft
            if checksums:
                _write_checksums(draft)
            for path in sorted(draft.rglob("*"), key=lambda path: (-len(path.parts), path)):
                sync(path)
            sync(draft)
            if overwrite and target.exists():
                target.rename(replaced)
            draft.rename(target)
            sync(target.parent)
        finally:
            if replaced.exists():
                _settle(replaced, target)
            shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Give a hidden path beside `target`; the file written there is synced and replaces `target` when the block ends.

    Of a block that fails nothing remains, and `target` stays as it was. The folder has to exist.

    Raises:
        UserError: The disk is full or refuses.
    """
    draft = target.with_name(f".{target.name}.draft")
    with writing(target):
        try:
            yield draft
            sync(draft)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Around what writes `target`: a disk that is full or refuses is the user's to mend, whoever noticed it.

    Raises:
        UserError: It is.
    """
    try:
        yield
    except Exception as error:
        reason = _disk_complaint(error, target.absolute().parent)
        if reason is None:
            raise
        existing = next(folder for folder in (target, *target.absolute().parents) if folder.exists())
        free = shutil.disk_usage(existing).free / 1e9
        raise UserError(
            f"It could not be written: {reason}",
            file=target,
            expected=f"a folder that may be written, on a disk with room ({free:.2f} GB are free)",
            fix="free space or correct the permissions, then run the command again; what was there before is whole",
        ) from error


def _disk_complaint(error: Exception, place: Path) -> str | None:
    """What a disk said that is full or refuses, behind an error of whatever library; None for any other error.

    Args:
        error: What was raised.
        place: The folder written in; an error that names a file elsewhere is about something that was read.
    """
    link: BaseException | None = error
    while link is not None and not isinstance(link, UserError):
        number, file = getattr(link, "errno", None), getattr(link, "filename", None)
        if number is None and (found := _ERROR_NUMBER.search(str(link))):
            number = int(found[1])
        if number in _DISK_ERRORS and (file is None or Path(str(file)).absolute().is_relative_to(place)):
            return getattr(link, "strerror", None) or os.strerror(number)
        link = link.__cause__ or link.__context__
    return None


def discard(folder: Path, name: str | None = None) -> None:
    """Delete a folder; from the first instant on it is gone from its name, even if deleting is interrupted.

    Args:
        folder: The folder.
        name: Under whose name `tidy` finds what an interruption leaves; its own by default.
    """
    hidden = _hidden(folder.with_name(name or folder.name), "removed")
    folder.rename(hidden)
    shutil.rmtree(hidden)


def tidy(parent: Path, name: str | None = None) -> None:
    """Finish or undo what dead processes left half done of the folder `name` in `parent`, or of every one.

    Folders of live processes are not touched.
    """
    pattern = "*" if name is None else glob.escape(name)
    for folder in parent.glob(f".{pattern}.*@*@*@*"):
        match = _HIDDEN.fullmatch(folder.name)
        if match and _abandoned(folder, match["host"], int(match["pid"]), int(match["started"])):
            if match["purpose"] == "replaced":
                _settle(folder, parent / match["name"])
            else:
                shutil.rmtree(folder)


def append(file: BinaryIO, data: bytes) -> None:
    """Write all of `data` to a file opened with "ab" and without buffer, and sync it, or leave the file as it was.

    Raises:
        OSError: The disk is full or refuses.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file.fileno(), rest) :]
        os.fsync(file.fileno())
    except OSError:
        os.ftruncate(file.fileno(), size)
        raise


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _settle(replaced: Path, target: Path) -> None:
    """Put a replaced folder back where its replacement did not arrive, or delete it."""
    if target.exists():
        discard(replaced, target.name)
    else:
        replaced.rename(target)


def _hidden(folder: Path, purpose: str) -> Path:
    process = psutil.Process()
    writer = f"{socket.gethostname()}@{process.pid}@{int(process.create_time())}"
    return folder.with_name(f".{folder.name}.{purpose}@{writer}")


def _abandoned(folder: Path, host: str, pid: int, started: int) -> bool:
    if host != socket.gethostname():
        return time.time() - folder.stat().st_mtime > _FOREIGN_AGE
    try:
        return abs(psutil.Process(pid).create_time() - started) > _CLOCK_SLACK
    except psutil.NoSuchProcess:
        return True


def require_writable(folder: Path, *, key: str | None) -> None:
    """Check that a folder can be made and written into, by doing so; nothing of the attempt stays.

    Args:
        folder: It and its parents need not exist.
        key: The flag or configuration key that names it.

    Raises:
        UserError: It cannot.
    """
    missing: list[Path] = []
    try:
        missing += [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"This folder cannot be written: {error.strerror or error}",
            key=key,
            value=str(folder),
            expected="a folder that exists, or can be made, on a disk with room and with permission to write",
            fix="name another folder, or correct the permissions of this one",
        ) from error
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


def require_output(
    folder: Path, *, replaces: str | None = None, overwrite: bool = False, key: str | None = None
) -> None:
    """Check that `atomic_folder` can write a folder, and that nothing is replaced unasked.

    Args:
        folder: The folder that is to be written.
        replaces: A file inside every folder that may be replaced; others hold something else of the user's.
        overwrite: Whether the user wants it replaced.
        key: The flag or configuration key that names it.

    Raises:
        UserError: The folder holds something and may not be replaced, or its place cannot be written.
    """
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    is_ours = replaces is not None and (folder / replaces).is_file()
    if not is_free and not (is_ours and overwrite):
        raise UserError(
            "The output folder is not empty" if folder.is_dir() else "The output folder is a file",
            key=key,
            value=str(folder),
            expected="a folder that is new or empty" + (f", or one with {replaces}" if overwrite else ""),
            fix=("pass --overwrite to replace it, or " if is_ours else "") + "name another folder with --output",
        )
    if folder.is_mount():
        raise UserError(
            "The output folder is where a disk is mounted, so it cannot be replaced as a whole",
            key=key,
            value=str(folder),
            fix="name a folder inside it",
        )
    require_writable(folder, key=key)
    if folder.exists():
        require_writable(folder.resolve().parent, key=key)


def check_checksums(folder: Path) -> None:
    """Compare the files of a folder with its `CHECKSUMS`; a folder without has nothing to compare with.

    Raises:
        UserError: A file has changed, is gone, or was added that loading may read, since the folder was written.
    """
    list_file = folder / CHECKSUMS
    if not list_file.exists():
        return
    try:
        lines = list_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _changed(list_file, f"it cannot be read ({error})") from error
    listed = set[str]()
    for line in lines:
        entry = _CHECKSUM.fullmatch(line)
        if entry is None or leaves_folder(entry["name"]):
            raise _changed(list_file, f"it is no list of checksums, as in {line[:80]!r}")
        file = folder / entry["name"]
        try:
            found = sha256(file)
        except FileNotFoundError as error:
            raise _changed(file, f"it is gone, and {CHECKSUMS} beside it lists it") from error
        except OSError as error:
            raise _changed(file, f"it cannot be read ({error.strerror})") from error
        if found != entry["sum"]:
            raise _changed(file, f"{CHECKSUMS} beside it has another checksum")
        listed.add(entry["name"])
    for name in file_names(folder):
        if name not in listed and may_be_loaded(name):
            raise _changed(folder / name, f"{CHECKSUMS} in {folder} does not list it")


def file_names(folder: Path) -> list[str]:
    """The files below a folder, relative to it."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def may_be_loaded(name: str) -> bool:
    """Whether a file of a model folder, by its name, is one that loading reads: weights, settings, words."""
    path = PurePosixPath(name)
    return path.suffix in _LOADED or path.name in _LOADED_WORDS


def _write_checksums(folder: Path) -> None:
    lines = [f"{sha256(folder / name)}  {name}\n" for name in file_names(folder) if name != CARD_FILE]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _changed(file: Path, how: str) -> UserError:
    return UserError(
        f"A file is not as it was written: {how}",
        file=file,
        fix=f"remove what was added, or copy or make the folder again; where the change is meant, delete {CHECKSUMS}"
        " there",
    )


def leaves_folder(name: str) -> bool:
    """Whether a path that a file gives, relative to its folder, leads out of it, or is none at all."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\0" in name


def new_folder(wanted: Path) -> Path:
    """Create `wanted`, or where that is taken the first free one of `wanted.2`, `wanted.3`, ..."""
    number, folder = 1, wanted
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}.{number}")
        else:
            return folder


def discard_unused(run_dir: Path, made: Sequence[Path] = ()) -> None:
    """Remove the folder of a run that was refused before it wrote anything of its own.

    Args:
        run_dir: The folder.
        made: Folders that were made for it, the innermost first; those that are empty go too.
    """
    known = {CONFIG_FILE, COMMAND_FILE, LOCK_FILE, RECORD_FILE, WARNINGS_FILE}
    files = list(run_dir.iterdir())
    if all(file.name in known or (file.is_file() and not file.stat().st_size) for file in files):
        for file in files:
            file.unlink()
        run_dir.rmdir()
        with contextlib.suppress(OSError):
            for place in made:
                place.rmdir()
