"""Stage 2: supervised training of the base model on demonstrations, by flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from regrasp.algorithms.schedule import cosine
from regrasp.config.schema import ExperimentConfig, SftConfig
from regrasp.data.lerobot import DemonstrationDataset, action_chunks
from regrasp.envs.contract import Observation
from regrasp.errors import TrainingHaltedError, UserError
from regrasp.models.contract import Policy
from regrasp.models.groot.checkpoint import load_config, load_groot
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.processor import GrootProcessor
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.models.normalization import Statistics
from regrasp.models.settings import RlHeadSettings
from regrasp.observe.progress import progress
from regrasp.runners.demonstrations import ACTION, EXTRA_CAMERA, MAIN_CAMERA, STATE
from regrasp.runners.policies import choose_device, input_names
from regrasp.streams import KeyedNoise, torch_generator

_PART = {"cpu": 256, "cuda": 16}
"""Frames prepared and encoded at once: on a GPU the model may be large."""


@dataclass
class Frames:
    """Training pairs of N frames."""

    inputs: TensorDict
    """Prepared observations, or features where the backbone is frozen."""
    actions: Tensor
    """(N, H, A) physical units."""
    valid: Tensor
    """(N, H) bool."""

    def rows(self, index: Tensor) -> Frames:
        """The frames in `index`."""
        return Frames(self.inputs[index], self.actions[index], self.valid[index])

    def to(self, device: torch.device) -> Frames:
        """The frames on `device`."""
        return Frames(self.inputs.to(device), self.actions.to(device), self.valid.to(device))


@dataclass(frozen=True)
class SftResult:
    """How the stage ended."""

    num_episodes: int
    num_frames: int
    train_loss: float
    validation_loss: float | None


def train_base_model(config: ExperimentConfig, data: Path, backbone: Path | None, seed: int, output: Path) -> SftResult:
    """Train on the dataset `data` and write the policy folder `output`.

    With `backbone`, a folder that `regrasp pretrain` wrote, the policy is a GR00T on it; without, a state policy.
    """
    sft = config.sft
    assert sft is not None
    dataset = DemonstrationDataset.open(data)
    device = choose_device()
    policy = _base_policy(config, dataset, backbone, seed).to(device)
    train, validation = _load_frames(policy, dataset, sft)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.actor.model.precision == "bf16"):
        if sft.train == "head":
            train.inputs = _encode(policy, train.inputs, device)
            if validation is not None:
                validation.inputs = _encode(policy, validation.inputs, device)
        losses = _train(policy, train, validation, sft, seed, device)
    policy.save(output)
    return SftResult(dataset.num_episodes, len(train.actions), *losses)


def _base_policy(config: ExperimentConfig, dataset: DemonstrationDataset, backbone: Path | None, seed: int) -> Policy:
    """An untrained policy with the dataset's statistics."""
    columns = dataset.load_columns([STATE, ACTION])
    state, action = (Statistics.of(torch.from_numpy(columns[name])) for name in (STATE, ACTION))
    if backbone is not None:
        return _groot(config, dataset, backbone, state, action)
    model = config.actor.model
    return MlpPolicy(
        state_dim=state.width,
        action_dim=action.width,
        num_action_chunks=model.num_action_chunks,
        hidden=model.mlp.hidden,
        initial_std=model.mlp.initial_std,
        state=state,
        action=action,
        seed=seed,
    )


def _groot(
    config: ExperimentConfig,
    dataset: DemonstrationDataset,
    backbone: Path,
    state: Statistics,
    action: Statistics,
) -> GrootPolicy:
    """The pretrained backbone with its untrained head."""
    model, mapping = config.actor.model, config.env.train.mapping
    processor = GrootProcessor.for_data(
        load_config(backbone),
        backbone,
        input_names(model, mapping),
        state,
        action,
        num_views=1 + len(mapping.extra_view_images),
        fps=float(dataset.fps),
    )
    settings = RlHeadSettings(
        num_action_chunks=model.num_action_chunks,
        action_dim=action.width,
        denoising_steps=model.denoising_steps,
        trainable=model.trainable,
        precision=model.precision if config.sft is not None and config.sft.train == "head" else "fp32",
        add_value_head=False,
        padding_value=model.rl_head_config.padding_value,
    )
    return load_groot(backbone, settings, processor=processor)


def _load_frames(policy: Policy, dataset: DemonstrationDataset, sft: SftConfig) -> tuple[Frames, Frames | None]:
    """Training and validation frames, split by episode: the last episodes are held out."""
    columns = dataset.load_columns([STATE, ACTION, "episode_index", "task_index"])
    episode = columns["episode_index"]
    actions, valid = action_chunks(columns[ACTION], episode, policy.spec.action_horizon)
    observation = Observation(
        main_images=_main_camera(policy, dataset),
        extra_view_images=_extra_views(dataset),
        states=torch.from_numpy(columns[STATE]),
        task_descriptions=[dataset.tasks[i] for i in columns["task_index"]],
    )
    parts = torch.arange(len(observation)).split(_PART["cpu"])
    inputs = TensorDict.cat([policy.prepare(observation.rows(part)) for part in parts])
    frames = Frames(inputs, torch.from_numpy(actions), torch.from_numpy(valid))
    num_held_out = int(dataset.num_episodes * sft.validation_fraction)
    held_out = torch.from_numpy(episode >= dataset.num_episodes - num_held_out)
    train = frames.rows(torch.nonzero(~held_out).flatten())
    return train, frames.rows(torch.nonzero(held_out).flatten()) if num_held_out else None


def _main_camera(policy: Policy, dataset: DemonstrationDataset) -> Tensor:
    if policy.spec.num_views == 0:
        return torch.zeros(dataset.num_frames, 0, 0, 3, dtype=torch.uint8)
    return _camera(dataset, MAIN_CAMERA)


def _camera(dataset: DemonstrationDataset, name: str) -> Tensor:
    if name not in dataset.cameras:
        raise UserError(
            "The dataset has no such camera",
            file=dataset.root,
            value=name,
            expected=f"one of {list(dataset.cameras)}",
            mend="record the demonstrations with `regrasp collect`, or rename the camera",
        )
    return torch.from_numpy(dataset.load_images(name))


def _extra_views(dataset: DemonstrationDataset) -> Tensor | None:
    names = [EXTRA_CAMERA.format(i) for i in range(len(dataset.cameras))]
    views = [_camera(dataset, name) for name in names if name in dataset.cameras]
    return torch.stack(views, 1) if views else None


@torch.no_grad()
def _encode(policy: Policy, inputs: TensorDict, device: torch.device) -> TensorDict:
    parts = inputs.split(_PART[device.type])
    return TensorDict.cat([policy("encode", inputs=part.to(device)).cpu() for part in parts])


def _train(
    policy: Policy, train: Frames, validation: Frames | None, sft: SftConfig, seed: int, device: torch.device
) -> tuple[float, float | None]:
    """Returns the last training loss (running mean) and the last validation loss."""
    frozen = sft.train == "head"
    parameters = [p for _, p in policy.prepare_training("head" if frozen else "all")]
    optimizer = torch.optim.AdamW(parameters, sft.lr, weight_decay=sft.weight_decay, betas=(0.9, 0.95))
    generator = torch_generator(seed, "data", 10)
    running, validation_loss = None, None
    policy.train()
    with progress("Training base model", sft.steps) as bar:
        for step in range(sft.steps):
            optimizer.param_groups[0]["lr"] = sft.lr * cosine(
                step, num_steps=sft.steps, num_warmup_steps=sft.warmup_steps, min_ratio=0.02
            )
            batch = train.rows(torch.randint(len(train.actions), (sft.batch_size,), generator=generator))
            loss = _loss(policy, batch.to(device), frozen, seed, step, sft.noise_repeats)
            if not torch.isfinite(loss):
                raise TrainingHaltedError(f"The loss of supervised training is not finite at step {step}.")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, sft.clip_grad)
            optimizer.step()
            running = loss.item() if running is None else 0.95 * running + 0.05 * loss.item()
            if validation is not None and ((step + 1) % sft.eval_interval == 0 or step + 1 == sft.steps):
                with torch.no_grad():
                    validation_loss = _loss(policy, validation.to(device), frozen, seed, 0, sft.noise_repeats).item()
            bar.advance(loss=f"{running:.3f}", validation="-" if validation_loss is None else f"{validation_loss:.3f}")
    policy.eval().requires_grad_(True)  # nothing is frozen any more: the folder is one file
    assert running is not None
    return running, validation_loss


def _loss(policy: Policy, batch: Frames, frozen: bool, seed: int, step: int, repeats: int) -> Tensor:
    features = batch.inputs if frozen else policy("encode", inputs=batch.inputs)
    noise = KeyedNoise(seed, "data", [(row, 1, step) for row in range(len(batch.actions))])
    return policy.sft_loss(features, batch.actions, batch.valid, noise, repeats)
