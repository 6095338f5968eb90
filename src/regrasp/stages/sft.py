"""Stage 2: supervised training of the base model on demonstrations, by flow matching."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from regrasp.algorithms.schedule import cosine
from regrasp.data.lerobot import DemonstrationDataset
from regrasp.engine.policies import check_inputs, choose_device
from regrasp.envs.selection import camera_names, state_names
from regrasp.errors import TrainingHaltedError, UserError
from regrasp.experiment import ExperimentConfig, SftConfig
from regrasp.experiment.inputs import input_names
from regrasp.experiment.load import made_with
from regrasp.experiment.paths import DOWNLOAD_BACKBONE, PUBLISHED_BACKBONE, MissingInputError
from regrasp.folders import atomic_folder, require_output
from regrasp.logging.progress import progress
from regrasp.models.config import CONFIG_FILE as MODEL_FILE
from regrasp.models.config import DatasetFacts
from regrasp.models.contract import Policy
from regrasp.models.normalization import Statistics
from regrasp.models.origin import Origin
from regrasp.models.registry import model_in
from regrasp.seeding import KeyedNoise, torch_generator
from regrasp.stages.dataset_features import DatasetFeatures, check_sources, find_features, quaternion_order
from regrasp.stages.demonstrations import check_actions
from regrasp.stages.pretrain import find_backbone
from regrasp.stages.training_frames import Frames, load_frames

_log = logging.getLogger(__name__)

_PART = {"cpu": 256, "cuda": 16}
"""Frames prepared and encoded at once: on a GPU the model may be large."""


@dataclass(frozen=True)
class SftResult:
    """How the stage ended."""

    num_episodes: int
    num_frames: int
    train_loss: float
    validation_loss: float | None


def check(
    config: ExperimentConfig,
    data: Path | None = None,
    backbone: Path | None = None,
    output: Path | None = None,
    *,
    overwrite: bool = False,
) -> tuple[Path, DatasetFeatures, Path | None]:
    """Find, before anything is read in full, what the stage would be refused for; see `train_base`.

    Returns:
        The folder that it writes, the dataset, and the backbone.
    """
    sft = config.sft
    assert sft is not None
    key = "sft.output_dir" if output is None else "--output"
    folder = output or Path(sft.output_dir)
    require_output(folder, replaces=MODEL_FILE, overwrite=overwrite, key=key)
    if data is None:
        data = Path(sft.data or (config.collect.output_dir if config.collect else "demos"))
    dataset = DemonstrationDataset(data)
    for warning in check_sources(dataset, config):
        _log.warning(warning)
    features = find_features(dataset, config)
    if config.actor.model.starts_from_backbone():
        backbone = backbone or _backbone(config)
    return folder, features, backbone


def train_base(
    config: ExperimentConfig,
    data: Path | None = None,
    backbone: Path | None = None,
    output: Path | None = None,
    *,
    overwrite: bool = False,
) -> tuple[Path, SftResult]:
    """Train a base model on demonstrations.

    Args:
        config: The experiment.
        data: Folder of the dataset; default: `sft.data`, else where `collect` writes.
        backbone: Folder that a model with pretrained features starts from; default: `sft.backbone`, else as
            `pretrain.find_backbone` has it.
        output: Folder of the model; default: `sft.output_dir`.
        overwrite: Replace the model that is there.

    Returns:
        The folder written, and how the training ended.

    Raises:
        UserError: The folder is taken or cannot be written, the dataset or the backbone is not there or damaged, or the
            dataset was made with another mapping than the experiment's.
        TrainingHaltedError: The loss is not finite.
    """
    sft = config.sft
    assert sft is not None
    folder, features, backbone = check(config, data, backbone, output, overwrite=overwrite)
    dataset = features.dataset
    seed = config.seed if sft.seed is None else sft.seed
    device = choose_device()
    policy = _base_policy(config, features, backbone, sft.train == "all", seed).to(device)
    policy.origin = Origin((config.env.train.init_params.id,), dataset.tasks).made_with(*made_with(config))
    train, validation = load_frames(policy, features, config.env.train.mapping, sft)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.actor.model.precision == "bf16"):
        if sft.train == "head":
            train.inputs = _encode(policy, train.inputs, device)
            if validation is not None:
                validation.inputs = _encode(policy, validation.inputs, device)
        losses = train_on(policy, train, validation, sft, seed, device)
    with atomic_folder(folder, overwrite=overwrite, checksums=True) as draft:
        policy.write_folder(draft)
    return folder, SftResult(dataset.num_episodes, len(train.actions), *losses)


def _backbone(config: ExperimentConfig) -> Path:
    """The pretrained backbone that the configuration names, the package's, or the cached one.

    Raises:
        MissingInputError: It is not there.
    """
    assert config.sft is not None
    expected = "a folder written by `regrasp pretrain`"
    fix = (
        "run `regrasp pretrain` with the same --config_name and the same pretrain.* overrides first (minutes),"
        " or use another backbone with sft.backbone=<folder>"
    )
    if config.pretrain is None:
        expected, fix = PUBLISHED_BACKBONE, DOWNLOAD_BACKBONE
    if config.sft.backbone:
        folder = Path(config.sft.backbone)
        problem = "The pretrained backbone that sft.backbone names is not there"
    elif config.pretrain is not None:
        folder = find_backbone(config.pretrain)
        problem = f"No backbone was pretrained with these values of pretrain.*; it would be {folder}"
    else:
        raise MissingInputError("No pretrained backbone is given", key="sft.backbone", expected=expected, fix=fix)
    if not (folder / MODEL_FILE).is_file():
        raise MissingInputError(problem, key="sft.backbone", value=str(folder), expected=expected, fix=fix)
    found, model = model_in(folder, "sft.backbone"), config.actor.model
    if not isinstance(model, found):
        raise UserError(
            "The backbone is of another model than the experiment's",
            key="sft.backbone",
            value=str(folder),
            expected=f"one of {model.model_type}; its {MODEL_FILE} is of {found.names()[0]}",
            fix="name another one, or with --config_name an experiment with this kind of model",
        )
    return folder


def _base_policy(
    config: ExperimentConfig, features: DatasetFeatures, backbone: Path | None, whole: bool, seed: int
) -> Policy:
    """An untrained policy with the dataset's statistics."""
    states, actions = features.load_states(), features.load_actions()
    check_actions(config, actions, f"The demonstrations in {features.dataset.root}")
    state, action = (Statistics.of(torch.from_numpy(values)) for values in (states, actions))
    mapping = config.env.train.mapping
    facts = DatasetFacts(
        state,
        action,
        input_names(mapping),
        camera_names(mapping),
        state_names(mapping),
        float(features.dataset.fps),
        quaternion_order(features.dataset, mapping),
    )
    policy = config.actor.model.from_dataset(facts, backbone=backbone, whole=whole, seed=seed)
    check_inputs(policy, mapping)
    return policy


@torch.no_grad()
def _encode(policy: Policy, inputs: TensorDict, device: torch.device) -> TensorDict:
    parts = inputs.split(_PART[device.type])
    return TensorDict.cat([policy.encode(part.to(device)).cpu() for part in parts])


def train_on(
    policy: Policy,
    train: Frames,
    validation: Frames | None,
    sft: SftConfig,
    seed: int,
    device: torch.device,
    title: str = "Training base model",
) -> tuple[float, float | None]:
    """Train on frames, whose inputs are features where `sft.train` is "head".

    Args:
        policy: Trained in place.
        train: What it trains on.
        validation: What losses are told of besides.
        sft: Optimizer, batches and steps.
        seed: Of the batches.
        device: Where the policy lives.
        title: Of the progress bar.

    Returns:
        The last training loss (running mean) and the last validation loss.

    Raises:
        TrainingHaltedError: The loss is not finite.
    """
    frozen = sft.train == "head"
    parameters = [p for _, p in policy.prepare_training("head" if frozen else "all")]
    optimizer = torch.optim.AdamW(parameters, sft.lr, weight_decay=sft.weight_decay, betas=(0.9, 0.95))
    generator = torch_generator(seed, "data", 10)
    running, held_out_loss = None, None
    policy.train()
    with progress(title, sft.steps) as bar:
        for step in range(sft.steps):
            optimizer.param_groups[0]["lr"] = sft.lr * cosine(
                step, num_steps=sft.steps, num_warmup_steps=sft.warmup_steps, min_ratio=0.02
            )
            batch = train.rows(torch.randint(len(train.actions), (sft.batch_size,), generator=generator))
            rows = range(len(batch.actions))
            loss = _loss(policy, batch.to(device), frozen, _noise(seed, rows, step), sft.noise_repeats)
            if not torch.isfinite(loss):
                raise TrainingHaltedError(f"The loss of supervised training is not finite at step {step}.")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, sft.clip_grad)
            optimizer.step()
            running = loss.item() if running is None else 0.95 * running + 0.05 * loss.item()
            if validation is not None and ((step + 1) % sft.eval_interval == 0 or step + 1 == sft.steps):
                held_out_loss = validation_loss(policy, validation, sft, seed, device)
            bar.advance(loss=f"{running:.3f}", validation="-" if held_out_loss is None else f"{held_out_loss:.3f}")
    policy.eval().requires_grad_(True)  # nothing is frozen any more: the folder is one file
    assert running is not None
    return running, held_out_loss


@torch.no_grad()
def validation_loss(policy: Policy, frames: Frames, sft: SftConfig, seed: int, device: torch.device) -> float:
    """The loss of all frames together, computed on as many at once as are trained on: a GPU may hold no more."""
    total, num_valid = 0.0, 0
    for rows in torch.arange(len(frames.actions)).split(sft.batch_size):
        part = frames.rows(rows)
        weight = int(part.valid.sum())
        noise = _noise(seed, rows.tolist(), step=0)
        loss = _loss(policy, part.to(device), sft.train == "head", noise, sft.noise_repeats)
        total += weight * loss.item()
        num_valid += weight
    return total / num_valid


def _loss(policy: Policy, batch: Frames, frozen: bool, noise: KeyedNoise, repeats: int) -> Tensor:
    features = batch.inputs if frozen else policy.encode(batch.inputs)
    return policy.sft_loss(features, batch.actions, batch.valid, noise, repeats)


def _noise(seed: int, rows: Iterable[int], step: int) -> KeyedNoise:
    """Noise of a step, keyed by the row."""
    return KeyedNoise(seed, "data", [(row, 1, step) for row in rows])
