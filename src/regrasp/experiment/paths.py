"""Checks, before a stage starts, that what it reads from disk is there."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from regrasp.config.types import changed
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import LoadedConfig
from regrasp.experiment.shipped import experiments_for
from regrasp.hub import Kind, download_command, fetch, hub_name
from regrasp.models.config import ModelConfig
from regrasp.models.origin import EXPERIMENT_FILE
from regrasp.models.registry import check_folder

Stage = Literal["train", "play", "sft"]
PUBLISHED_BACKBONE = "the folder of a published GR00T N1.5 (docs/models.md)"
"""What `sft.backbone` has to be where the experiment does not pretrain one."""
DOWNLOAD_BACKBONE = "--backbone nvidia/GR00T-N1.5-3B downloads it from the Hugging Face hub"
"""How to get it."""
DEMONSTRATIONS = "algorithm.demo_buffer.load_path"
"""What `AlgorithmConfig.demonstrations` is called."""
_INPUTS: dict[Stage, dict[str, Kind]] = {
    "train": {"actor.model.model_path": "model", DEMONSTRATIONS: "dataset"},
    "play": {"actor.model.model_path": "model"},
    "sft": {"sft.data": "dataset", "sft.backbone": "model"},
}
"""What a stage reads that may have a name of the Hugging Face hub."""
_KINDS: dict[str, Kind] = {key: kind for inputs in _INPUTS.values() for key, kind in inputs.items()}
_MODEL_FOLDER = "a folder in Hugging Face format, with config.json"


class MissingInputError(UserError):
    """What a stage reads is not there, or not yet: an earlier stage makes it, or a download."""


def fetch_inputs(loaded: LoadedConfig, stage: Stage, *, downloads: bool) -> LoadedConfig:
    """The experiment with folders in place of what a stage reads by a name of the Hugging Face hub.

    Args:
        loaded: The experiment.
        stage: What reads.
        downloads: Whether what is not in the local cache is downloaded; otherwise its name stays.

    Raises:
        UserError: The hub does not have it, does not give it, or cannot be reached.
    """
    for key, kind in _INPUTS[stage].items():
        *blocks, name = key.split(".")
        block = loaded.config
        for step in blocks:
            block = getattr(block, step, None)
        given = None if block is None else getattr(block, name)
        if given is None:
            continue
        try:
            folder = fetch(given, kind, key=key, downloads=downloads)
        except UserError as error:
            raise loaded.located(error) from None
        if folder is not None:
            loaded = changed(loaded, f"config.{key}", str(folder))
    return loaded


def require_paths(config: ExperimentConfig, stage: Stage) -> None:
    """Check that what a stage reads from disk is there.

    Args:
        config: The experiment.
        stage: `train` and `play` read the model, `train` a checkpoint to resume and demonstrations to replay, `sft`
            the demonstrations.

    Raises:
        MissingInputError: A folder is missing, or the stage needs one that is not given.
        UserError: A folder is not what the stage reads.
    """
    if stage == "sft":
        _require_demonstrations(config)
        return
    if stage == "train" and (demonstrations := config.algorithm.demonstrations) is not None:
        fix = "correct the path; or `regrasp collect` records some; or set algorithm.demo_buffer=null"
        _require_dataset(DEMONSTRATIONS, demonstrations, fix)
    resumes = config.runner.resume_dir if stage == "train" and not config.runner.evaluates else None
    if resumes is None or config.actor.model.model_path is not None:
        _require_model(config)
    if resumes is not None:
        expected = "a checkpoint folder (global_step_N) or the folder of a run"
        fix = "correct the path, or leave it out to start anew"
        _require_folder("runner.resume_dir", resumes, expected, fix, UserError)


def _require_model(config: ExperimentConfig) -> None:
    model, key = config.actor.model, "actor.model.model_path"
    if model.model_path is None:
        if model.needs_pretrained:
            fix = f"pass --model_path; {_how_to_get_a_model(config)}"
            raise MissingInputError("No pretrained model is given.", key=key, expected=_MODEL_FOLDER, fix=fix)
        return
    fix = f"correct the path; {_how_to_get_a_model(config)}"
    folder = _require_folder(key, model.model_path, _MODEL_FOLDER, fix)
    check_folder(model, folder, lambda found: _advise(config, found), key)


def _how_to_get_a_model(config: ExperimentConfig) -> str:
    """Where the model that an experiment starts from comes from."""
    published = "a model of the Hugging Face hub is given as org/name"
    if config.sft is None:
        return published
    stages = ["pretrain", *(["collect"] if config.collect else []), "sft"] if config.pretrain else ["sft"]
    if config.pretrain is None and config.actor.model.needs_pretrained:
        return f"{published}, and `regrasp sft` makes a base model of it and demonstrations"
    if config.pretrain is None and config.collect:
        stages = ["collect", "sft"]
    commands = ", then ".join(f"`regrasp {stage}`" for stage in stages)
    return f"{commands} with the same --config_name make a base model, in {config.sft.output_dir}/ by default"


def _advise(config: ExperimentConfig, found: type[ModelConfig]) -> str:
    """What to do about a folder of another model than the experiment's."""
    own = Path(config.actor.model.model_path or "").expanduser() / EXPERIMENT_FILE
    if own.is_file():
        return f"use the experiment that the model was made with, --config_name {own}, or give another --model_path"
    names = experiments_for(found, config.env.train.init_params.id)
    fitting = f"name an experiment with this kind of model, --config_name {' or '.join(names)}" if names else ""
    return ", or ".join(filter(None, [fitting, "give another --model_path"]))


def _require_demonstrations(config: ExperimentConfig) -> None:
    if config.sft is None:
        expected, fix = "a block with the settings of the stage", "add `sft: {}` for the defaults"
        raise UserError("This experiment has no supervised stage.", key="sft", expected=expected, fix=fix)
    data = config.sft.data or (config.collect.output_dir if config.collect else None)
    fix = "run `regrasp collect` first, or `regrasp convert` on recordings (.hdf5), or give the folder of a dataset"
    expected = "the folder of a dataset of demonstrations"
    if data is None:
        raise MissingInputError("No demonstrations are given.", key="sft.data", expected=expected, fix=fix)
    _require_dataset("sft.data" if config.sft.data else "collect.output_dir", data, fix)
    if config.sft.backbone is not None:
        expected = "the folder of a pretrained backbone"
        fix = "correct the path, or set sft.backbone=null to use the user's cache"
        if config.pretrain is None:
            expected, fix = PUBLISHED_BACKBONE, f"correct the path, or get one: {DOWNLOAD_BACKBONE}"
        _require_folder("sft.backbone", config.sft.backbone, expected, fix)


def _require_dataset(key: str, value: str, fix: str) -> None:
    from regrasp.data.lerobot.schema import INFO_PATH  # not where nothing is read: it imports tables

    expected = "the folder of a dataset of demonstrations"
    folder = _require_folder(key, value, expected, fix)
    if not (folder / INFO_PATH).is_file():
        problem = f"This folder holds no dataset: it has no {INFO_PATH}"
        raise UserError(problem, key=key, value=value, expected=expected, fix=fix)


def _require_folder(
    key: str, value: str, expected: str, fix: str, missing: type[UserError] = MissingInputError
) -> Path:
    folder = Path(value).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError("This is a file, not a folder.", key=key, value=value, expected=expected, fix=fix)
    if not folder.exists():
        name = hub_name(value)
        if name is not None and (kind := _KINDS.get(key)):
            fix = f"`{download_command(name, kind)}` fetches it if the hub has it, as the command itself does; or {fix}"
        raise missing("The folder does not exist.", key=key, value=value, expected=expected, fix=fix)
    return folder
