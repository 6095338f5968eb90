"""Write a checkpoint so that a crash at any instant leaves the earlier ones, and prune old ones."""

from __future__ import annotations

import filecmp
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import regrasp
from regrasp.checkpoint.hub_folder import save_tensors
from regrasp.checkpoint.layout import (
    EXPORT,
    FULL_WEIGHTS,
    MANIFEST,
    OPTIMIZER,
    STATE,
    TENSORS,
    step_folder,
)
from regrasp.checkpoint.manifest import Entry, Manifest, describe, encode
from regrasp.checkpoint.plain import JSON, check_json, plain, separate
from regrasp.checkpoint.verify import is_complete, newest_complete, read_manifest
from regrasp.folders import atomic_folder, discard, sync, tidy, writing


@dataclass(frozen=True)
class CheckpointContent:
    """Everything a run needs to go on as if it had never stopped."""

    model_state: Mapping[str, Tensor]
    """The whole policy, whole tensors (sharded ones gathered), any device."""
    frozen_names: frozenset[str]
    """Names of `model_state` that this run does not train."""
    optimizer_state: dict[str, Any]
    """Nested dicts, lists and tuples of tensors, numbers and strings; several optimizers under names of their own."""
    tensors: Mapping[str, Tensor]
    """Generator states, environment states, and whatever else is a tensor."""
    state: Mapping[str, JSON]
    """Counters, seeds, the configuration."""
    export: Callable[[Path], None] | None
    """Writes the self-contained Hugging Face folder into the empty folder given; None writes none."""


def write_checkpoint(checkpoints_dir: Path, step: int, content: CheckpointContent) -> Path:
    """Write `global_step_<step>/` with everything that is in this process, see `new_checkpoint`."""
    return new_checkpoint(checkpoints_dir, step, lambda draft: write_content(draft, step, content))


def new_checkpoint(checkpoints_dir: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Write `global_step_<step>/`; one process calls this, whatever the number of those that write into it.

    A crash at any instant leaves every earlier checkpoint as it was. An existing checkpoint of the step is replaced,
    and stays findable until the new one is in place.

    Files of `model/` whose bytes equal those of the newest complete checkpoint become hard links to them where the
    filesystem allows.

    Args:
        checkpoints_dir: `<run>/checkpoints`, created if missing.
        step: Global step, the number of updates done.
        write: Fills the folder given, see `write_content`.

    Returns:
        The folder written.

    Raises:
        UserError: The disk is full or refuses; nothing of the attempt remains.
        ValueError: Negative step.
    """
    if step < 0:
        raise ValueError(f"step must not be negative: {step}")
    target = step_folder(checkpoints_dir, step)
    with writing(target):
        checkpoints_dir.mkdir(parents=True, exist_ok=True)
        tidy(checkpoints_dir)
    with atomic_folder(target, overwrite=True) as draft:
        write(draft)
        files = {name: describe(draft / name) for name in _file_names(draft)}
        _link_unchanged(checkpoints_dir, draft, files)
        (draft / MANIFEST).write_bytes(encode(Manifest(step, files)))
    sync(checkpoints_dir.parent)
    return target


def prune(checkpoints: Sequence[Path], keep: int | None) -> list[Path]:
    """Delete all complete checkpoints of a run's timeline but the newest `keep`.

    Incomplete folders are left alone: someone may still want what is in them. Of a checkpoint that is a link to another
    place the link is deleted.

    Args:
        checkpoints: Newest first, see `RunRecord.checkpoints`.
        keep: At least 1; None keeps all.

    Returns:
        The folders deleted, newest first.
    """
    if keep is None:
        return []
    if keep < 1:
        raise ValueError(f"keep must be at least 1 or None: {keep}")
    surplus = [folder for folder in checkpoints if is_complete(folder)][keep:]
    for folder in surplus:
        if folder.is_symlink():
            folder.unlink()
        else:
            discard(folder)
    return surplus


def write_content(draft: Path, step: int, content: CheckpointContent) -> None:
    """Write weights, optimizer, environments, counters and model folder into an empty folder.

    An `export` that calls `save_safetensors` with `frozen_names` puts the frozen weights in a file of their own, so
    that all checkpoints of a run hold them once. `full_weights.pt` is always complete, because readers of this layout
    load it strictly; it therefore costs the size of the model in each checkpoint.

    Raises:
        TypeError: Something in `content` would not load without pickle.
        ValueError: A frozen name that the model does not have.
    """
    if unknown := sorted(content.frozen_names - content.model_state.keys()):
        raise ValueError(f"frozen names without a tensor in model_state: {unknown[:3]}")
    state = dict(content.state)
    check_json(state, "state")
    for name in (FULL_WEIGHTS, OPTIMIZER):
        (draft / name).parent.mkdir(parents=True)
    _save(plain(content.model_state, "model_state"), draft / FULL_WEIGHTS)
    _save(plain(content.optimizer_state, "optimizer_state"), draft / OPTIMIZER)
    save_tensors(separate(plain(content.tensors, "tensors")), draft / TENSORS)
    document = {
        "step": step,
        "regrasp_version": regrasp.__version__,
        "frozen_names": sorted(content.frozen_names),
        "state": state,
    }
    (draft / STATE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if content.export is not None:
        (draft / EXPORT).mkdir()
        content.export(draft / EXPORT)


def _save(content: Any, file: Path) -> None:
    # A stream of ours, not a path: a full disk then arrives as an OSError instead of an opaque RuntimeError.
    with file.open("wb") as stream:
        torch.save(content, stream)


def _file_names(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _link_unchanged(checkpoints_dir: Path, draft: Path, files: Mapping[str, Entry]) -> None:
    previous = newest_complete(checkpoints_dir)
    if previous is None:
        return
    known = read_manifest(previous).files
    for name in (name for name in files if name.startswith(f"{EXPORT}/") and known.get(name) == files[name]):
        # Compared byte by byte as well, so that a file that decayed since it was written is not passed on.
        if filecmp.cmp(previous / name, draft / name, shallow=False):
            _replace_by_link(draft / name, previous / name)


def _replace_by_link(file: Path, target: Path) -> None:
    link = file.with_name(f"{file.name}.link")
    try:
        os.link(target, link)
    except OSError:
        # No hard links here, or too many of this file: the copy just written stays.
        return
    link.replace(file)
