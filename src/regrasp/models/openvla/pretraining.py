"""Grounding pretraining of a tiny OpenVLA, see `regrasp.models.grounding`.

The published model inherits this from its vision-language model. Words follow the image here, so it is the prompt's
last position, from which actions are predicted, that has to know where the named objects are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from regrasp.models.config import CONFIG_FILE
from regrasp.models.grounding import Grounding, Lessons, ground
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
from regrasp.models.pretraining import PretrainConfig
from regrasp.seeding import torch_generator

_POINTING_WEIGHT = 0.3
_POINTER_WIDTH = 32
_RESIDUAL_GAIN = 0.5
_RESIDUAL_OUTPUTS = ("o_proj", "down_proj", "attn.proj", "fc2")


class _Readout(nn.Module):
    """Positions of S objects and the robot's state, read off the prompt's last feature, which points at patches too."""

    def __init__(self, width: int, num_slots: int, robot_width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.num_slots = num_slots
        with seeded(0):
            self.position = nn.Linear(width, 2 * num_slots)
            self.query = nn.Linear(width, _POINTER_WIDTH * num_slots)
            self.key = nn.Linear(width, _POINTER_WIDTH)
            self.robot = nn.Linear(width, robot_width)
        for layer in (self.position, self.query, self.key, self.robot):
            init_linear(layer, generator)

    def forward(self, patches: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions (B, S, 2), scores (B, S, P) of patches (B, P, D), and the robot's state, by the last one (B, D)."""
        query = self.query(last).unflatten(-1, (self.num_slots, -1))
        scores = query @ self.key(patches).transpose(1, 2) * _POINTER_WIDTH**-0.5
        return self.position(last).unflatten(-1, (self.num_slots, 2)), scores, self.robot(last)


def pretrain(config: PretrainConfig, architecture: OpenVlaArchitectureConfig, lessons: Lessons, output: Path) -> float:
    """See `PretrainConfig.train`."""
    policy = fresh_policy(architecture, lessons.instructions, config.seed).to(lessons.device)
    size, generator = policy.config.image_size, torch_generator(config.seed, "init", 1)
    readout = _Readout(architecture.language_width, lessons.num_slots, lessons.robot_width, generator).to(
        lessons.device
    )

    def locate(images: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs = TensorDict({"images": images, "input_ids": input_ids}, batch_size=[len(images)])
        return readout(*policy.prompt_features(policy.encode(inputs)))

    images = torch.cat([torch.from_numpy(part.images) for part in lessons.scenes])
    if images.shape[1:3] != (size, size):
        raise ValueError(f"scenes of {tuple(images.shape[1:3])} pixels, for a network of {size}")
    grounding = Grounding(
        policy,
        [parameter for _, parameter in policy.trainable("all")] + list(readout.parameters()),
        images.unsqueeze(1),
        policy.processor.prompts.encode(lessons.instructions),
        locate,
        grid=size // policy.config.towers[0].patch_size,
        pointing_weight=_POINTING_WEIGHT,
        save=lambda folder: save_openvla(policy, folder),
    )
    return ground(grounding, lessons, config, output)


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
