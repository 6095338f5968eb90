"""Is a checkpoint whole? Every file present, of the right size and with the right SHA-256."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from regrasp.checkpoint.layout import EXPORT, MANIFEST, REQUIRED, step_folders
from regrasp.checkpoint.manifest import Entry, Manifest, decode, describe
from regrasp.errors import UserError
from regrasp.folders import WEIGHT_SUFFIXES, check_checksums, file_names, leaves_folder, may_be_loaded


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a checkpoint."""

    file: str
    """Path relative to the checkpoint's folder."""
    what: str

    @property
    def blocks_resuming(self) -> bool:
        """Whether a run needs the file to go on; it does not need the model folder."""
        return not self.file.startswith(f"{EXPORT}/")

    def __str__(self) -> str:
        return f"{self.file} {self.what}"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        ValueError: It is missing or damaged; the message continues the file's name.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise ValueError("is missing: this checkpoint was never finished, or Regrasp did not write it") from error
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    return decode(data)


def verify(folder: Path, *, contents: bool = True, within: str = "") -> list[Problem]:
    """Compare a checkpoint with its manifest.

    Args:
        folder: A `global_step_<N>` folder.
        contents: Also read every file and compare its SHA-256; otherwise names and sizes only, which is fast.
        within: Beginning of the names that are looked at.

    Returns:
        Every missing, damaged or misplaced file, and every foreign file that could be loaded; empty for a sound
        checkpoint. Others (a README, say) are harmless.
    """
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        return [Problem(MANIFEST, str(error))]
    problems = [Problem(name, "is not listed in the manifest") for name in REQUIRED if name not in manifest.files]
    for name, entry in manifest.files.items():
        what = file_problem(folder, name, entry, contents=contents) if name.startswith(within) else None
        if what is not None:
            problems.append(Problem(name, what))
    problems += _foreign_files(folder, manifest)
    return [problem for problem in problems if problem.file.startswith(within)]


def is_complete(folder: Path) -> bool:
    """True where the manifest is sound and every file that a run needs to go on has its size; contents are not read."""
    return not resuming_problems(folder, contents=False)


def resuming_problems(folder: Path, *, contents: bool = True) -> list[Problem]:
    """As `verify`, of what a run needs to go on."""
    return [problem for problem in verify(folder, contents=contents) if problem.blocks_resuming]


def require_sound_model(folder: Path) -> None:
    """Check a model folder, once, against its checksums, or against the manifest of the checkpoint that it lies in.

    Raises:
        UserError: A file is missing, damaged or foreign.
    """
    _require_sound_model(folder, folder.resolve())


@functools.cache
def _require_sound_model(folder: Path, place: Path) -> None:
    check_checksums(folder)
    checkpoint = place.parent
    if place.name != EXPORT or not (checkpoint / MANIFEST).is_file():
        return
    if problems := verify(checkpoint, within=f"{EXPORT}/"):
        raise UserError(
            f"This checkpoint's model is not sound: {problems[0]}",
            file=checkpoint,
            fix="take another checkpoint, or copy this one again from its source",
        )


def newest_complete(checkpoints_dir: Path) -> Path | None:
    """The complete checkpoint with the highest step, None where there is none."""
    return next(filter(is_complete, step_folders(checkpoints_dir)), None)


def file_problem(folder: Path, name: str, entry: Entry, *, contents: bool = True) -> str | None:
    """What is wrong with one file of a checkpoint, None if nothing is."""
    if leaves_folder(name):
        return "lies outside the checkpoint"
    file = folder / name
    if not file.is_file():
        return "is missing"
    try:
        size = file.stat().st_size
        if size != entry.size:
            return f"has {size} bytes instead of {entry.size}"
        if contents and describe(file).sha256 != entry.sha256:
            return "is damaged: its SHA-256 is not the one in the manifest"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def _foreign_files(folder: Path, manifest: Manifest) -> list[Problem]:
    """Weights that are not of the checkpoint, and what loading would read in its model folder."""
    return [
        Problem(name, "is not listed in the manifest, and could be loaded")
        for name in file_names(folder)
        if name not in manifest.files
        and (PurePosixPath(name).suffix in WEIGHT_SUFFIXES or (name.startswith(f"{EXPORT}/") and may_be_loaded(name)))
    ]
