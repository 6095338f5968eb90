"""Names inside a checkpoint, and which folders of a checkpoints folder are checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

FULL_WEIGHTS = "actor/model_state_dict/full_weights.pt"
EXPORT = "model"
OPTIMIZER = "trainer/optimizer.pt"
TENSORS = "trainer/tensors.safetensors"
STATE = "trainer/state.json"
MANIFEST = "manifest.json"
ALGORITHM = "algorithm."
"""Prefix of the algorithm's own tensors in `TENSORS`; the others are the environments'."""
REQUIRED = (FULL_WEIGHTS, OPTIMIZER, TENSORS, STATE)

# A checkpoint that is being replaced stands aside under a hidden name (earlier versions: a plain one).
_STEP_FOLDER = re.compile(r"\.?global_step_(\d+)(\.replaced(@.*)?)?")


def step_folder(checkpoints_dir: Path, step: int) -> Path:
    """The folder of one global step."""
    return checkpoints_dir / f"global_step_{step}"


def step_of(folder: Path) -> int | None:
    """The global step in a folder's name, None where it is not a checkpoint's name."""
    match = _STEP_FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else None


def step_folders(checkpoints_dir: Path) -> list[Path]:
    """Every checkpoint folder, complete or not, highest step first; a replaced one follows its replacement."""
    if not checkpoints_dir.is_dir():
        return []
    found = [folder for folder in checkpoints_dir.iterdir() if step_of(folder) is not None and folder.is_dir()]
    return sorted(found, key=lambda folder: (-(step_of(folder) or 0), len(folder.name)))
