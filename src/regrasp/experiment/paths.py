"""Checks, before a stage starts, that what it reads from disk is there."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.models.registry import check_folder

Stage = Literal["train", "play", "sft"]
PUBLISHED_BACKBONE = "the folder of a published GR00T N1.5 (docs/models.md)"
"""What `sft.backbone` has to be where the experiment does not pretrain one."""
DOWNLOAD_BACKBONE = "`hf download nvidia/GR00T-N1.5-3B --local-dir GR00T-N1.5-3B`, then --backbone GR00T-N1.5-3B"
"""How to get it."""


def require_paths(config: ExperimentConfig, stage: Stage) -> None:
    """Check that what a stage reads from disk is there.

    Args:
        config: The experiment.
        stage: `train` and `play` read the model, `train` a checkpoint to resume, `sft` the demonstrations.

    Raises:
        UserError: A folder is missing, or the stage needs one that is not given.
    """
    if stage == "sft":
        _require_demonstrations(config)
        return
    resumes = config.runner.resume_dir if stage == "train" and not config.runner.evaluates else None
    if resumes is None or config.actor.model.model_path is not None:
        _require_model(config)
    if resumes is not None:
        expected = "a checkpoint folder (global_step_N) or the folder of a run"
        _require_folder("runner.resume_dir", resumes, expected, "correct the path, or leave it out to start anew")


def _require_model(config: ExperimentConfig) -> None:
    model, key = config.actor.model, "actor.model.model_path"
    expected = "a folder in Hugging Face format, with config.json"
    if model.model_path is None:
        if model.needs_pretrained:
            fix = "pass --model_path; `regrasp sft` makes a base model"
            raise UserError("No pretrained model is given.", key=key, expected=expected, fix=fix)
        return
    fix = "correct the path; a model of the Hugging Face hub has to be downloaded first (`hf download`)"
    folder = _require_folder(key, model.model_path, expected, fix)
    if not (folder / "config.json").is_file():
        raise UserError("The folder has no config.json.", key=key, value=str(folder), expected=expected, fix=fix)
    check_folder(model, folder)


def _require_demonstrations(config: ExperimentConfig) -> None:
    if config.sft is None:
        expected, fix = "a block with the settings of the stage", "add `sft: {}` for the defaults"
        raise UserError("This experiment has no supervised stage.", key="sft", expected=expected, fix=fix)
    data = config.sft.data or (config.collect.output_dir if config.collect else None)
    fix = "run `regrasp collect` first, or `regrasp convert` on recordings (.hdf5), or give the folder of a dataset"
    expected = "the folder of a dataset of demonstrations"
    if data is None:
        raise UserError("No demonstrations are given.", key="sft.data", expected=expected, fix=fix)
    _require_folder("sft.data" if config.sft.data else "collect.output_dir", data, expected, fix)
    if config.sft.backbone is not None:
        expected = "the folder of a pretrained backbone"
        fix = "correct the path, or set sft.backbone=null to use the user's cache"
        if config.pretrain is None:
            expected, fix = PUBLISHED_BACKBONE, f"correct the path, or get one: {DOWNLOAD_BACKBONE}"
        _require_folder("sft.backbone", config.sft.backbone, expected, fix)


def _require_folder(key: str, value: str, expected: str, fix: str) -> Path:
    folder = Path(value).expanduser()
    if not folder.is_dir():
        problem = "This is a file, not a folder." if folder.exists() else "The folder does not exist."
        raise UserError(problem, key=key, value=value, expected=expected, fix=fix)
    return folder
