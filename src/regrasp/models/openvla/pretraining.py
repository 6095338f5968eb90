"""Grounding pretraining of a tiny OpenVLA: where is what the words name?

The published model inherits this from its vision-language model. Words follow the image here, so it is the prompt's
last position, from which actions are predicted, that has to know: a readout of its feature gives the positions of the
named objects, and points at the patches that show them. The readout is thrown away afterwards.
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
from regrasp.models.config import CONFIG_FILE
from regrasp.models.initialization import fan_in_normal, init_linear, seeded
from regrasp.models.normalization import Statistics
from regrasp.models.openvla.architecture import OpenVlaArchitectureConfig
from regrasp.models.openvla.checkpoint import save_openvla
from regrasp.models.openvla.config import OpenVlaConfig
from regrasp.models.openvla.decoding import Decoding
from regrasp.models.openvla.network.vision import VisionBackbone
from regrasp.models.openvla.policy import OpenVlaPolicy
from regrasp.models.openvla.processing.action_scaling import entry_of
from regrasp.models.openvla.processing.images import PUBLISHED_MEANS, PUBLISHED_STDS
from regrasp.models.openvla.processing.processor import OWN_DATA, OpenVlaProcessor
from regrasp.models.openvla.processing.tokenizer import train_tokenizer
from regrasp.models.openvla.settings import OpenVlaModelConfig
from regrasp.models.pointing import pointing_target
from regrasp.models.pretraining import GROUNDING_FILE, PretrainConfig
from regrasp.models.weights import write_json
from regrasp.seeding import torch_generator

_EVALUATION_BATCH = 500
_POINTING_WEIGHT = 0.3
_POINTER_WIDTH = 32
_SCALE = 0.1
"""Targets are regressed in units of 10 cm."""
_RESIDUAL_GAIN = 0.5
_RESIDUAL_OUTPUTS = ("o_proj", "down_proj", "attn.proj", "fc2")


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


class _Readout(nn.Module):
    """Positions of S objects, read off the prompt's last feature, and how much it points at each patch."""

    def __init__(self, width: int, num_slots: int, generator: torch.Generator) -> None:
        super().__init__()
        self.num_slots = num_slots
        with seeded(0):
            self.position = nn.Linear(width, 2 * num_slots)
            self.query = nn.Linear(width, _POINTER_WIDTH * num_slots)
            self.key = nn.Linear(width, _POINTER_WIDTH)
        for layer in (self.position, self.query, self.key):
            init_linear(layer, generator)

    def forward(self, patches: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (B, S, 2), and scores (B, S, P) of patches (B, P, D) by the last position (B, D)."""
        query = self.query(last).unflatten(-1, (self.num_slots, -1))
        scores = query @ self.key(patches).transpose(1, 2) * _POINTER_WIDTH**-0.5
        return self.position(last).unflatten(-1, (self.num_slots, 2)), scores


def pretrain(
    config: PretrainConfig,
    architecture: OpenVlaArchitectureConfig,
    scenes: Sequence[Scenes],
    num_validation: int,
    learning_rate: Callable[[int], float],
    output: Path,
) -> float:
    """See `PretrainConfig.train`."""
    policy = fresh_policy(architecture, [text for part in scenes for text in part.instructions], config.seed)
    examples = _examples(scenes, policy)
    readout = _Readout(
        architecture.language_width, examples.positions.shape[2], torch_generator(config.seed, "init", 1)
    )
    order = torch.randperm(len(examples.images), generator=torch_generator(config.seed, "data", 0))
    _train(policy, readout, examples, order[num_validation:], config, learning_rate)
    policy.half().float()  # as it is stored; the error is that of what others load
    error = _median_error(policy, readout, examples, order[:num_validation])
    config.check_error(error)
    with atomic_folder(output, overwrite=True, checksums=True) as draft:
        save_openvla(policy.half(), draft)
        write_json(draft / GROUNDING_FILE, {"median_error_cm": error})
    return error


def fresh_policy(architecture: OpenVlaArchitectureConfig, sentences: Sequence[str], seed: int) -> OpenVlaPolicy:
    """An untrained policy with a tokenizer for these instructions and statistics of one dimension."""
    config = OpenVlaConfig.read(architecture.to_json(), Path(CONFIG_FILE))
    unknown = Statistics.identity(1)
    means, stds = ([list(row) for row in rows] for rows in (PUBLISHED_MEANS, PUBLISHED_STDS))
    processor = OpenVlaProcessor(
        config,
        Decoding(max_prompt_length=architecture.text_length),
        {OWN_DATA: entry_of(unknown, unknown)},
        {"image_processor_type": "PrismaticImageProcessor", "means": means, "stds": stds},
        train_tokenizer(sentences, architecture.vocab_size),
        Path(CONFIG_FILE),
    )
    policy = OpenVlaPolicy(processor, OpenVlaModelConfig(action_dim=1, add_value_head=False), seed=seed)
    _reset_parameters(policy, torch_generator(seed, "init", 0))
    return policy


@torch.no_grad()
def _reset_parameters(policy: OpenVlaPolicy, generator: torch.Generator) -> None:
    """Weights to train from scratch at small widths: fan-in scaled, smaller residual branches, distinct words."""
    for name, module in policy.named_modules():
        if isinstance(module, nn.Linear):
            init_linear(module, generator, _RESIDUAL_GAIN if name.endswith(_RESIDUAL_OUTPUTS) else 1.0)
        elif isinstance(module, nn.Conv2d):
            fan_in_normal(module.weight, module.weight[0].numel(), generator)
    backbone: VisionBackbone = policy.vision_backbone
    for tower in backbone.towers():
        for tokens in (tower.cls_token, tower.reg_token, tower.pos_embed):
            if tokens is not None:
                tokens.normal_(0.0, 0.5, generator=generator)
    nn.init.normal_(policy.language_model.model.embed_tokens.weight, generator=generator)


def _examples(scenes: Sequence[Scenes], policy: OpenVlaPolicy) -> _Examples:
    """Join the tasks' scenes; a scene's instructions are its own task's."""
    starts = np.cumsum([0, *(len(part.instructions) for part in scenes)])

    def join(name: str) -> Tensor:
        blocks = [
            np.pad(getattr(part, name), ((0, 0), (start, starts[-1] - end), (0, 0), (0, 0)), constant_values=np.nan)
            for part, (start, end) in zip(scenes, itertools.pairwise(starts), strict=True)
        ]
        return torch.from_numpy(np.concatenate(blocks))

    positions = join("positions")
    images = torch.cat([torch.from_numpy(part.images) for part in scenes])
    size = policy.config.image_size
    if images.shape[1:3] != (size, size):
        raise ValueError(f"scenes of {tuple(images.shape[1:3])} pixels, for a network of {size}")
    return _Examples(
        images=images.unsqueeze(1),
        positions=positions / _SCALE,
        pixels=join("pixels"),
        input_ids=policy.processor.prompts.encode([text for part in scenes for text in part.instructions]),
        allowed=~positions.isnan().flatten(2).all(-1),
    )


def _train(
    policy: OpenVlaPolicy,
    readout: _Readout,
    examples: _Examples,
    train_rows: Tensor,
    config: PretrainConfig,
    learning_rate: Callable[[int], float],
) -> None:
    parameters = [p for _, p in policy.trainable("all")] + list(readout.parameters())
    optimizer = torch.optim.AdamW(parameters, config.lr, weight_decay=1e-4, betas=(0.9, 0.95))
    generator = torch_generator(config.seed, "data", 1)
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
            error = (predicted - target).detach().norm(dim=1).median() * _SCALE * 100
            bar.advance(error=f"{error:.2f} cm")
    policy.eval()


def _predict(
    policy: OpenVlaPolicy, readout: _Readout, examples: _Examples, rows: Tensor, instructions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted and true positions of all named objects of a batch, (M, 2) in units of `_SCALE`, and a pointing loss.

    The pointing loss is the cross-entropy between where the readout points and where the object is.
    """
    inputs = {"images": examples.images[rows], "input_ids": examples.input_ids[instructions]}
    features = policy.encode(TensorDict(inputs, batch_size=[len(rows)]))
    predicted, scores = readout(*policy.prompt_features(features))
    target = examples.positions[rows, instructions]
    named = ~target.isnan().any(-1)
    config = policy.config
    wanted = pointing_target(
        examples.pixels[rows, instructions][named], config.image_size // config.towers[0].patch_size
    )
    return predicted[named], target[named], nn.functional.cross_entropy(scores[named], wanted)


@torch.no_grad()
def _median_error(policy: OpenVlaPolicy, readout: _Readout, examples: _Examples, rows: Tensor) -> float:
    """Median distance in centimetres over held-out scenes, every instruction of each."""
    pairs = examples.allowed[rows].nonzero()
    distances = []
    for part in pairs.split(_EVALUATION_BATCH):
        predicted, target, _ = _predict(policy, readout, examples, rows[part[:, 0]], part[:, 1])
        distances.append((predicted - target).norm(dim=1))
    return float(torch.cat(distances).median()) * _SCALE * 100
