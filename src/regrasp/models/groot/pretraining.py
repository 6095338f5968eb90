"""Grounding pretraining of a tiny vision-language backbone: where is what the words name?

A real VLA inherits this from its vision-language model. The backbone, and the action head's self-attention over its
features, are trained with a readout that is thrown away afterwards; what is kept is a policy folder whose action head
is untrained but for that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from regrasp.envs.scenes import Scenes
from regrasp.folders import atomic_folder
from regrasp.logging.progress import progress
from regrasp.models.groot.architecture import ArchitectureConfig
from regrasp.models.groot.checkpoint import save_groot
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.network.grounding import GroundingReadout
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.processing.images import prepare_images
from regrasp.models.groot.processing.processor import GrootProcessor
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.models.pointing import pointing_target
from regrasp.models.pretraining import GROUNDING_FILE, PretrainConfig
from regrasp.models.weights import write_json
from regrasp.seeding import torch_generator

_EVALUATION_BATCH = 500
_POINTING_WEIGHT = 0.1
_SCALE = 0.1
"""Targets are regressed in units of 10 cm."""


@dataclass
class _Examples:
    """Scenes of all tasks, with the token ids of every instruction."""

    images: Tensor
    """(N, 1, H, W, 3) uint8."""
    positions: Tensor
    """(N, I, S, 2) in units of `_SCALE`, NaN past the objects that the instruction names."""
    pixels: Tensor
    """(N, I, S, 2) image coordinates of the same objects."""
    input_ids: Tensor
    """(I, L)."""
    allowed: Tensor
    """(N, I) bool: instructions of the scene's own task."""


def pretrain(
    config: PretrainConfig,
    architecture: ArchitectureConfig,
    scenes: Sequence[Scenes],
    num_validation: int,
    learning_rate: Callable[[int], float],
    output: Path,
) -> float:
    """See `PretrainConfig.train`."""
    seed = config.seed
    sentences = [text for part in scenes for text in part.instructions]
    policy = _fresh_policy(architecture, sentences, seed)
    examples = _examples(scenes, policy)
    readout = GroundingReadout(
        policy.config.action_head_cfg.backbone_embedding_dim,
        examples.positions.shape[2],
        torch_generator(seed, "init", 1),
    )
    order = torch.randperm(len(examples.images), generator=torch_generator(seed, "data", 0))
    _train(policy, readout, examples, order[num_validation:], config, learning_rate, torch_generator(seed, "data", 1))
    policy.half().float()  # as it is stored; the error is that of what others load
    error = _median_error(policy, readout, examples, order[:num_validation])
    config.check_error(error)
    with atomic_folder(output, overwrite=True, checksums=True) as draft:
        save_groot(policy.half(), draft)
        write_json(draft / GROUNDING_FILE, {"median_error_cm": error})
    return error


def _fresh_policy(architecture: ArchitectureConfig, sentences: list[str], seed: int) -> GrootPolicy:
    groot = GrootConfig.tiny(architecture)
    processor = GrootProcessor.fresh(
        groot,
        sentences,
        num_views=1,
        state_dim=1,
        action_dim=1,
        text_length=architecture.text_length,
        text_first=architecture.text_first,
    )
    settings = GrootModelConfig(
        num_action_chunks=1, action_dim=1, add_value_head=False, trainable="head_without_context"
    )
    policy = GrootPolicy(groot, processor, settings, seed=seed)
    policy.backbone.reset_parameters(torch_generator(seed, "init", 0))
    return policy


def _examples(scenes: Sequence[Scenes], policy: GrootPolicy) -> _Examples:
    """Join the tasks' scenes; a scene's instructions are its own task's."""
    starts = np.cumsum([0, *(len(part.instructions) for part in scenes)])

    def join(name: str) -> Tensor:
        blocks = [getattr(part, name) for part in scenes]
        padded = [
            np.pad(block, ((0, 0), (start, starts[-1] - end), (0, 0), (0, 0)), constant_values=np.nan)
            for block, (start, end) in zip(blocks, itertools.pairwise(starts), strict=True)
        ]
        return torch.from_numpy(np.concatenate(padded))

    positions, size = join("positions"), policy.config.image_size
    images = [prepare_images([torch.from_numpy(part.images)], size=size, crop_scale=1.0) for part in scenes]
    return _Examples(
        images=torch.cat(images),
        positions=positions / _SCALE,
        pixels=join("pixels"),
        input_ids=policy.processor.text.encode([text for part in scenes for text in part.instructions]),
        allowed=~positions.isnan().flatten(2).all(-1),
    )


def _train(
    policy: GrootPolicy,
    readout: GroundingReadout,
    examples: _Examples,
    train_rows: Tensor,
    config: PretrainConfig,
    learning_rate: Callable[[int], float],
    generator: torch.Generator,
) -> None:
    parameters = [p for _, p in policy.trainable("backbone")] + list(readout.parameters())
    optimizer = torch.optim.AdamW(parameters, config.lr, weight_decay=1e-4, betas=(0.9, 0.95))
    policy.train()
    with progress("Pretraining backbone", config.steps) as bar:
        for step in range(config.steps):
            optimizer.param_groups[0]["lr"] = learning_rate(step)
            rows = train_rows[torch.randint(len(train_rows), (config.batch_size,), generator=generator)]
            instructions = torch.multinomial(examples.allowed[rows].float(), 1, generator=generator).squeeze(1)
            predicted, target, pointing = _predict(policy, readout, examples, rows, instructions)
            loss = nn.functional.smooth_l1_loss(predicted, target, beta=0.3) + _POINTING_WEIGHT * pointing
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            error = (predicted - target).detach().reshape(-1, 2).norm(dim=1).median() * _SCALE * 100
            bar.advance(error=f"{error:.2f} cm")
    policy.eval()


def _predict(
    policy: GrootPolicy, readout: GroundingReadout, examples: _Examples, rows: Tensor, instructions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted and true positions of all named objects of a batch, (M, 2) in units of `_SCALE`, and a pointing loss.

    The pointing loss is the cross-entropy between the readout's attention over image tokens and where the object is.
    """
    inputs = TensorDict(
        {
            "images": examples.images[rows],
            "input_ids": examples.input_ids[instructions],
            "state": torch.zeros(len(rows), policy.config.action_head_cfg.max_state_dim),
        },
        batch_size=[len(rows)],
    )
    predicted, scores = readout(policy.encode(inputs))
    target = examples.positions[rows, instructions]
    named = ~target.isnan().any(-1)
    vision = policy.config.eagle_cfg.vision_config
    is_image = inputs["input_ids"][0] == policy.config.eagle_cfg.image_token_index
    wanted = pointing_target(examples.pixels[rows, instructions][named], vision.image_size // vision.patch_size)
    pointing = nn.functional.cross_entropy(scores[named][:, is_image], wanted)
    return predicted[named], target[named], pointing


@torch.no_grad()
def _median_error(policy: GrootPolicy, readout: GroundingReadout, examples: _Examples, rows: Tensor) -> float:
    """Median distance in centimetres over held-out scenes, every instruction of each."""
    pairs = examples.allowed[rows].nonzero()
    distances = []
    for part in pairs.split(_EVALUATION_BATCH):
        predicted, target, _ = _predict(policy, readout, examples, rows[part[:, 0]], part[:, 1])
        distances.append((predicted - target).norm(dim=1))
    return float(torch.cat(distances).median()) * _SCALE * 100
