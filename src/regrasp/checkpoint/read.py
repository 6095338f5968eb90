"""Find, verify and read checkpoints."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, NonNegativeInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from regrasp.checkpoint.layout import (
    EXPORT,
    FULL_WEIGHTS,
    MANIFEST,
    OPTIMIZER,
    STATE,
    TENSORS,
    step_folders,
    step_of,
)
from regrasp.checkpoint.run_record import newest_recorded
from regrasp.checkpoint.verify import (
    Problem,
    file_problem,
    newest_complete,
    read_manifest,
    resuming_problems,
    verify,
)
from regrasp.errors import UserError

_log = logging.getLogger(__name__)

_NUM_PROBLEMS_SHOWN = 3
_NUM_RUNS_SHOWN = 10
_OTHER_TOOL = (
    "Weights that another tool wrote are evaluated with `regrasp play --rl_model_path`; to train on, make a model of"
    " them with `regrasp export --rl_model_path`, and give it as --model_path: a new value head starts."
)
_WRAPPER = "_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
_WRAPPERS = re.compile(rf"^(?:(?:module|{_WRAPPER})\.)+|(?<=\.)(?:{_WRAPPER})\.")
"""What DDP, FSDP, torch.compile and activation checkpointing put into the names of a module's weights."""


@checked_dataclass(frozen=True, config=ConfigDict(strict=True, extra="ignore"))
class _Document:
    """The file `STATE`."""

    step: NonNegativeInt
    frozen_names: list[str]
    state: dict[str, Any]


_DOCUMENT = TypeAdapter(_Document)


@dataclass(frozen=True)
class Checkpoint:
    """What `write_content` was given, bit for bit; tensors are read, to the CPU, where they are asked for."""

    path: Path
    step: int
    frozen_names: frozenset[str]
    state: dict[str, Any]
    export: Path | None
    """The Hugging Face folder, None where none was written."""

    @cached_property
    def model_state(self) -> dict[str, Tensor]:
        """The whole policy."""
        return _load_tensors(self.path / FULL_WEIGHTS)

    @cached_property
    def optimizer_state(self) -> dict[str, Any]:
        """Of the optimizer or optimizers."""
        return _load_plain(self.path / OPTIMIZER)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Everything else that is a tensor, sorted by name."""
        try:
            return dict(sorted(load_file(self.path / TENSORS).items()))
        except SafetensorError as error:
            raise _unreadable(self.path / TENSORS, error) from error


def read_checkpoint(folder: Path) -> Checkpoint:
    """Open a `global_step_<N>` folder after verifying every byte of what a run needs to go on.

    Its model folder is verified too, but damage there is only warned of; see `require_sound_model`.

    Raises:
        UserError: A file is missing, damaged or foreign; names it, and the newest earlier checkpoint that is sound.
    """
    problems = verify(folder)
    if blocking := [problem for problem in problems if problem.blocks_resuming]:
        raise _damaged(folder, blocking)
    if problems:
        _log.warning("%s: %s. The run goes on without it, but this model cannot be used.", folder, _listed(problems))
    try:
        document = _DOCUMENT.validate_json((folder / STATE).read_bytes())
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise UserError(
            f"This checkpoint's state is not what it should be: {detail['msg']}.",
            file=folder / STATE,
            key=".".join(map(str, detail["loc"])) or None,
            fix=_alternative(folder),
        ) from error
    if document.step != (step := read_manifest(folder).step):
        raise UserError(
            "This checkpoint's state is of another step than its manifest.",
            file=folder / STATE,
            key="step",
            value=document.step,
            expected=str(step),
            fix=_alternative(folder),
        )
    export = folder / EXPORT
    return Checkpoint(
        path=folder,
        step=document.step,
        frozen_names=frozenset(document.frozen_names),
        state=document.state,
        export=export if export.is_dir() else None,
    )


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means.

    Args:
        path: A `global_step_<N>` folder, a folder of such folders, or a run's folder, which has them in
            `<experiment_name>/checkpoints/`.

    Returns:
        The folder itself, or the complete checkpoint that the run wrote last by its record; without a record, the one
        with the highest step. Complete means a sound manifest and every file at its size; `read_checkpoint` also
        compares the contents.

    Raises:
        UserError: Nothing complete there, several runs to choose from, or only folders further below; names them.
    """
    if not path.is_dir():
        raise UserError(
            "No such checkpoint folder." if not path.exists() else "A checkpoint is a folder, and this is a file.",
            file=path,
            expected="a global_step_<N> folder, a checkpoints folder or a run folder",
        )
    if (path / FULL_WEIGHTS).is_file() and not (path / MANIFEST).exists() and not (path / "trainer").exists():
        raise UserError(
            "A checkpoint of another tool, such as RLinf: it has weights, and nothing else that a run goes on from",
            file=path,
            expected="a checkpoint of regrasp",
            fix=_OTHER_TOOL,
        )
    if step_of(path) is not None or (path / MANIFEST).is_file():
        if problems := resuming_problems(path, contents=False):
            raise _damaged(path, problems)
        return path
    if recorded := newest_recorded(path):
        return recorded
    parents = _checkpoint_folders(path)
    newest = [found for parent in sorted(parents) if (found := newest_complete(parent)) is not None]
    if not newest:
        raise _none_complete(path, parents)
    if len(newest) > 1:
        raise UserError(
            f"This folder holds the checkpoints of {len(newest)} runs.",
            file=path,
            expected="one run",
            fix="Name one of: " + ", ".join(str(found) for found in newest),
        )
    return newest[0]


def _checkpoint_folders(path: Path) -> list[Path]:
    """The folders of checkpoints of a run.

    Raises:
        UserError: It is no run's folder; names the runs below it.
    """
    if step_folders(path):
        return [path]
    near = [path / "checkpoints", *path.glob("*/checkpoints")]
    found = [folder for folder in near if step_folders(folder)]
    below = [] if found else sorted(folder for folder in path.rglob("checkpoints") if step_folders(folder))
    if below:
        raise UserError(
            "This folder is no run; there are runs below it.",
            file=path,
            expected="a global_step_<N> folder, a checkpoints folder or a run folder",
            fix="Name one of: " + ", ".join(str(folder.parent.parent) for folder in below[-_NUM_RUNS_SHOWN:]),
        )
    return found


def load_full_weights(folder_or_file: Path) -> dict[str, Tensor]:
    """Read the whole model's weights for an overlay on a base model, also those of a checkpoint without manifest.

    Args:
        folder_or_file: A `global_step_<N>` folder, its `actor/`, or a `full_weights.pt`.

    Raises:
        UserError: No such file, a file that differs from its manifest, or one that is not a plain dict of tensors.
    """
    file = full_weights_file(folder_or_file)
    if not _is_of_manifest(file):
        _check_archive(file)
    return {_WRAPPERS.sub("", name): tensor for name, tensor in _load_tensors(file).items()}


def _load_tensors(file: Path) -> dict[str, Tensor]:
    weights = _load_plain(file)
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items()):
        raise UserError("This file does not hold weights.", file=file, expected="a dict of tensors by name")
    return weights


def _load_plain(file: Path) -> dict[str, Any]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen unrelated types here; all mean the same to the user
        raise _unreadable(file, error) from error
    if not isinstance(content, dict):
        raise UserError("This file does not hold weights.", file=file, expected="a dict of tensors by name")
    return content


def _unreadable(file: Path, error: Exception) -> UserError:
    first_line = str(error).partition("\n")[0]
    return UserError(f"These weights cannot be read: {first_line}", file=file, fix="Copy the file again.")


def full_weights_file(path: Path) -> Path:
    """The file that `load_full_weights` reads.

    Raises:
        UserError: There is none.
    """
    if path.is_file():
        return path
    places = (FULL_WEIGHTS, "model_state_dict/full_weights.pt", "full_weights.pt")
    for place in places:
        if (path / place).is_file():
            return path / place
    raise UserError(
        "No full_weights.pt here.",
        file=path,
        expected=f"a .pt file, or a global_step_<N> folder with {FULL_WEIGHTS}",
        fix="Correct the path; a folder with a config.json is a model of its own and is given as --model_path.",
    )


def checkpoint_of(path: Path) -> Path | None:
    """The `global_step_<N>` folder that a path is, or whose whole weights it leads to; None for other weights."""
    path = path.resolve()
    inner = Path(FULL_WEIGHTS).parts
    for depth, folder in enumerate((path, *path.parents)[: len(inner) + 1]):
        is_checkpoint = (folder / MANIFEST).is_file() or (folder / EXPORT).is_dir()
        if is_checkpoint and path == folder.joinpath(*inner[:depth]):
            return folder
    return None


def _is_of_manifest(file: Path) -> bool:
    """Whether a checkpoint's manifest lists the file, which is then checked against it."""
    folder = checkpoint_of(file)
    if folder is None or not (folder / MANIFEST).exists():
        return False
    try:
        entry = read_manifest(folder).files[FULL_WEIGHTS]
    except (ValueError, KeyError) as error:
        raise _damaged(folder, [Problem(MANIFEST, str(error))]) from error
    if what := file_problem(folder, FULL_WEIGHTS, entry):
        raise _damaged(folder, [Problem(FULL_WEIGHTS, what)])
    return True


def _check_archive(file: Path) -> None:
    """Check the sums that torch writes into its files, and does not look at when it reads them; old ones have none."""
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():
                raise UserError(
                    f"These weights are damaged: {damaged} in the file does not have its CRC-32",
                    file=file,
                    fix="copy the file again; weights saved with torch.serialization.set_crc32_options(False) have no"
                    " such sums: save them again with them",
                )
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise _unreadable(file, error) from error


def _damaged(folder: Path, problems: Sequence[Problem]) -> UserError:
    return UserError(f"This checkpoint is not sound: {_listed(problems)}.", file=folder, fix=_alternative(folder))


def _listed(problems: Sequence[Problem]) -> str:
    shown = "; ".join(str(problem) for problem in problems[:_NUM_PROBLEMS_SHOWN])
    more = f"; and {len(problems) - _NUM_PROBLEMS_SHOWN} more" if len(problems) > _NUM_PROBLEMS_SHOWN else ""
    return shown + more


def _alternative(folder: Path) -> str:
    """Which sound checkpoint to take instead of a damaged one."""
    folder = folder.resolve()
    siblings = step_folders(folder.parent)
    later = siblings.index(folder) + 1 if folder in siblings else len(siblings)
    for earlier in siblings[later:]:
        if not resuming_problems(earlier):
            return f"Take the newest earlier checkpoint that is sound: {earlier}"
    return "No earlier checkpoint beside it is sound; copy this one again from its source, or start anew."


def _none_complete(path: Path, parents: Sequence[Path]) -> UserError:
    incomplete = [folder for parent in parents for folder in step_folders(parent)]
    if not incomplete:
        problem = "No checkpoint here: searched for global_step_<N> in the folder and in every checkpoints/ below it."
    else:
        shown = "; ".join(
            f"{folder.relative_to(path)}: {resuming_problems(folder, contents=False)[0]}"
            for folder in incomplete[:_NUM_PROBLEMS_SHOWN]
        )
        problem = f"No complete checkpoint here, of {len(incomplete)} found: {shown}."
    return UserError(
        problem,
        file=path,
        expected="a global_step_<N> folder, a checkpoints folder or a run folder",
        fix=_OTHER_TOOL,
    )
