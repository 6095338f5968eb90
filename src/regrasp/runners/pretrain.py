"""Grounding pretraining of a tiny vision-language backbone: where is what the words name?

A real VLA inherits this from its vision-language model. The backbone is trained with a readout that is thrown away
afterwards; what is kept is a policy folder with an untrained action head.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import platformdirs
import torch
from tensordict import TensorDict
from torch import Tensor, nn

import regrasp
from regrasp.algorithms.schedule import cosine
from regrasp.config.schema import PretrainConfig
from regrasp.envs.contract import Observation
from regrasp.envs.mujoco.scenes import Scenes, render_scenes
from regrasp.errors import TrainingHaltedError
from regrasp.models.groot.checkpoint import save_groot
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.grounding import GroundingReadout
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.processor import GrootProcessor
from regrasp.models.settings import RlHeadSettings
from regrasp.observe.progress import progress
from regrasp.streams import torch_generator

_NUM_VALIDATION = 1000
_EVALUATION_BATCH = 500
_SCALE = 0.1
"""Targets are regressed in units of 10 cm."""
_RECIPE_VERSION = 1
"""Raised when this file changes what it trains, so that a cached backbone is not mistaken for a new one."""


@dataclass
class _Examples:
    """Scenes of all tasks, with the token ids of every instruction."""

    images: Tensor
    """(N, H, W, 3) uint8."""
    targets: Tensor
    """(N, I, S, 2) in units of `_SCALE`, NaN where the scene's task has no such instruction."""
    input_ids: Tensor
    """(I, L)."""
    allowed: Tensor
    """(N, I) bool: instructions of the scene's own task."""


def default_cache() -> Path:
    """Where pretrained backbones are kept between runs."""
    return Path(platformdirs.user_cache_dir("regrasp", appauthor=False)) / "backbones"


def cached_backbone(config: PretrainConfig) -> Path:
    """The folder in the user's cache that belongs to this configuration, whether it is filled or not."""
    described = json.dumps([asdict(config), _RECIPE_VERSION, regrasp.__version__], sort_keys=True)
    return default_cache() / hashlib.sha256(described.encode()).hexdigest()[:16]


def pretrain(config: PretrainConfig, output: Path) -> float:
    """Pretrain and write the policy folder `output`.

    Returns:
        Median distance between predicted and true position over held-out scenes, in centimetres.

    Raises:
        TrainingHaltedError: The error is above `max_median_error_cm`; nothing is written.
    """
    seed = config.seed
    scenes = _render(config)
    sentences = [text for part in scenes for text in part.instructions]
    policy = _fresh_policy(config, sentences)
    examples = _examples(scenes, policy)
    readout = GroundingReadout(
        policy.config.action_head_cfg.backbone_embedding_dim,
        examples.targets.shape[2],
        torch_generator(seed, "init", 1),
    )
    order = torch.randperm(len(examples.images), generator=torch_generator(seed, "data", 0))
    _train(policy, readout, examples, order[_NUM_VALIDATION:], config, torch_generator(seed, "data", 1))
    error = _median_error(policy, readout, examples, order[:_NUM_VALIDATION])
    if error > config.max_median_error_cm:
        raise TrainingHaltedError(
            f"Grounding pretraining ended with a median error of {error:.2f} cm, above the limit of"
            f" {config.max_median_error_cm} cm (pretrain.max_median_error_cm). Raise pretrain.steps or num_scenes."
        )
    save_groot(policy, output)
    return error


def _render(config: PretrainConfig) -> list[Scenes]:
    total = config.num_scenes + _NUM_VALIDATION
    shares = [total // len(config.tasks)] * len(config.tasks)
    shares[0] += total - sum(shares)
    with progress("Rendering scenes", total) as bar:
        return [
            render_scenes(task, share, config.seed, on_progress=bar.advance)
            for task, share in zip(config.tasks, shares, strict=True)
        ]


def _fresh_policy(config: PretrainConfig, sentences: list[str]) -> GrootPolicy:
    groot = GrootConfig.tiny(config.architecture)
    processor = GrootProcessor.fresh(groot, sentences, num_views=1, state_dim=1, action_dim=1)
    settings = RlHeadSettings(num_action_chunks=1, action_dim=1, add_value_head=False)
    return GrootPolicy(groot, processor, settings, seed=config.seed)


def _examples(scenes: list[Scenes], policy: GrootPolicy) -> _Examples:
    num_slots = max(part.targets.shape[2] for part in scenes)
    num_instructions = sum(len(part.instructions) for part in scenes)
    images = np.concatenate([part.images for part in scenes])
    targets = np.full((len(images), num_instructions, num_slots, 2), np.nan, np.float32)
    allowed = np.zeros((len(images), num_instructions), bool)
    row = column = 0
    for part in scenes:
        rows, columns = slice(row, row + len(part.images)), slice(column, column + len(part.instructions))
        targets[rows, columns, : part.targets.shape[2]] = part.targets / _SCALE
        allowed[rows, columns] = True
        row, column = rows.stop, columns.stop
    sentences = [text for part in scenes for text in part.instructions]
    input_ids = policy.processor.text.encode(sentences)
    return _Examples(torch.from_numpy(images), torch.from_numpy(targets), input_ids, torch.from_numpy(allowed))


def _train(
    policy: GrootPolicy,
    readout: GroundingReadout,
    examples: _Examples,
    train_rows: Tensor,
    config: PretrainConfig,
    generator: torch.Generator,
) -> None:
    parameters = [p for _, p in policy.trainable("backbone")] + list(readout.parameters())
    optimizer = torch.optim.AdamW(parameters, config.lr, weight_decay=1e-4, betas=(0.9, 0.95))
    policy.train()
    with progress("Pretraining backbone", config.steps) as bar:
        for step in range(config.steps):
            optimizer.param_groups[0]["lr"] = config.lr * cosine(
                step, num_steps=config.steps, num_warmup_steps=config.steps // 15, min_ratio=0.02
            )
            rows = train_rows[torch.randint(len(train_rows), (config.batch_size,), generator=generator)]
            instructions = torch.multinomial(examples.allowed[rows].float(), 1, generator=generator).squeeze(1)
            predicted, target = _predict(policy, readout, examples, rows, instructions)
            loss = nn.functional.smooth_l1_loss(predicted, target, reduction="sum") / config.batch_size
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            error = (predicted - target).detach().reshape(-1, 2).norm(dim=1).median() * _SCALE * 100
            bar.advance(error=f"{error:.2f} cm")
    policy.eval()


def _predict(
    policy: GrootPolicy, readout: GroundingReadout, examples: _Examples, rows: Tensor, instructions: Tensor
) -> tuple[Tensor, Tensor]:
    """Predicted and true positions of all named objects of a batch, each (M, 2) in units of `_SCALE`."""
    inputs = TensorDict(
        {
            "images": examples.images[rows][:, None],
            "input_ids": examples.input_ids[instructions],
            "state": torch.zeros(len(rows), policy.config.action_head_cfg.max_state_dim),
        },
        batch_size=[len(rows)],
    )
    predicted = readout(policy("encode", inputs=inputs))
    target = examples.targets[rows, instructions]
    named = ~target.isnan().any(-1)
    return predicted[named], target[named]


@torch.no_grad()
def _median_error(policy: GrootPolicy, readout: GroundingReadout, examples: _Examples, rows: Tensor) -> float:
    """Median distance in centimetres over held-out scenes, every instruction of each."""
    pairs = examples.allowed[rows].nonzero()
    distances = []
    for part in pairs.split(_EVALUATION_BATCH):
        predicted, target = _predict(policy, readout, examples, rows[part[:, 0]], part[:, 1])
        distances.append((predicted - target).norm(dim=1))
    return float(torch.cat(distances).median()) * _SCALE * 100
