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


def require_paths(config: ExperimentConfig, stage: Stage, file: Path | None = None) -> None:
    """Check that what a stage reads from disk is there.

    Args:
        config: The experiment.
        stage: `train` and `play` read the model, `train` a checkpoint to resume, `sft` the demonstrations.
        file: The configuration file, for messages.

    Raises:
        UserError: A folder is missing, or the stage needs one that is not given.
    """
    if stage == "sft":
        _require_demonstrations(config, file)
        return
    resumes = stage == "train" and config.runner.resume_dir is not None
    if not (resumes and config.actor.model.model_path is None):
        _require_model(config, file)
    if stage == "train" and config.runner.resume_dir is not None:
        _require_folder(
            "runner.resume_dir",
            config.runner.resume_dir,
            "a checkpoint folder (global_step_N) or the folder of a run",
            "correct the path, or leave it out to start anew",
            file,
        )


def _require_model(config: ExperimentConfig, file: Path | None) -> None:
    model = config.actor.model
    expected = "a folder in Hugging Face format, with config.json"
    if model.model_path is None:
        if model.needs_pretrained:
            raise UserError(
                "No pretrained model is given.",
                file=file,
                key="actor.model.model_path",
                expected=expected,
                fix="pass --model_path; `regrasp sft` makes a base model",
            )
        return
    fix = "correct the path; a model of the Hugging Face hub has to be downloaded first (`hf download`)"
    folder = _require_folder("actor.model.model_path", model.model_path, expected, fix, file)
    _require_file(folder / "config.json", "actor.model.model_path", expected, fix, file)
    check_folder(model, folder)


def _require_demonstrations(config: ExperimentConfig, file: Path | None) -> None:
    if config.sft is None:
        raise UserError(
            "This experiment has no supervised stage.",
            file=file,
            key="sft",
            expected="a block with the settings of the stage",
            fix="add `sft: {}` for the defaults",
        )
    data = config.sft.data or (config.collect.output_dir if config.collect else None)
    fix = "run `regrasp collect` first, or `regrasp convert` on recordings (.hdf5), or give the folder of a dataset"
    expected = "the folder of a dataset of demonstrations"
    if data is None:
        raise UserError("No demonstrations are given.", file=file, key="sft.data", expected=expected, fix=fix)
    _require_folder("sft.data" if config.sft.data else "collect.output_dir", data, expected, fix, file)
    if config.sft.backbone is not None:
        _require_backbone(config, config.sft.backbone, file)


def _require_backbone(config: ExperimentConfig, folder: str, file: Path | None) -> None:
    if config.pretrain is None:
        expected, fix = PUBLISHED_BACKBONE, f"correct the path, or get one: {DOWNLOAD_BACKBONE}"
    else:
        expected = "the folder of a pretrained backbone"
        fix = "correct the path, or set sft.backbone=null to use the user's cache"
    _require_folder("sft.backbone", folder, expected, fix, file)


def _require_folder(key: str, value: str, expected: str, fix: str, file: Path | None) -> Path:
    folder = Path(value).expanduser()
    if not folder.is_dir():
        problem = "This is a file, not a folder." if folder.exists() else "The folder does not exist."
        raise UserError(problem, file=file, key=key, value=value, expected=expected, fix=fix)
    return folder


def _require_file(path: Path, key: str, expected: str, fix: str, file: Path | None) -> None:
    if not path.is_file():
        raise UserError(
            f"The folder has no {path.name}.",
            file=file,
            key=key,
            value=str(path.parent),
            expected=expected,
            fix=fix,
        )
