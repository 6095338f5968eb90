"""Grounding pretraining of a tiny vision-language backbone, see `regrasp.models.grounding`.

A real VLA inherits this from its vision-language model. The backbone, and the action head's self-attention over its
features, are trained; what is kept is a policy folder whose action head is untrained but for that.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.models.groot.architecture import ArchitectureConfig
from regrasp.models.groot.checkpoint import save_groot
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.network.grounding import GroundingReadout
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.processing.images import prepare_images
from regrasp.models.groot.processing.processor import GrootProcessor
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.models.grounding import Grounding, Lessons, ground
from regrasp.models.pretraining import PretrainConfig
from regrasp.seeding import torch_generator

_POINTING_WEIGHT = 0.1


def pretrain(config: PretrainConfig, architecture: ArchitectureConfig, lessons: Lessons, output: Path) -> float:
    """See `PretrainConfig.train`."""
    policy = _fresh_policy(architecture, lessons.instructions, config.seed).to(lessons.device)
    groot, vision = policy.config, policy.config.eagle_cfg.vision_config
    readout = GroundingReadout(
        groot.action_head_cfg.backbone_embedding_dim, lessons.num_slots, torch_generator(config.seed, "init", 1)
    ).to(lessons.device)

    def locate(images: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor, None]:
        state = torch.zeros(len(images), groot.action_head_cfg.max_state_dim, device=images.device)
        inputs = {"images": images, "input_ids": input_ids, "state": state}
        positions, scores = readout(policy.encode(TensorDict(inputs, batch_size=[len(images)])))
        return positions, scores[:, :, input_ids[0] == groot.eagle_cfg.image_token_index], None

    images = [
        prepare_images([torch.from_numpy(part.images)], size=groot.image_size, crop_scale=1.0)
        for part in lessons.scenes
    ]
    grounding = Grounding(
        policy,
        [parameter for _, parameter in policy.trainable("backbone")] + list(readout.parameters()),
        torch.cat(images),
        policy.processor.text.encode(lessons.instructions),
        locate,
        grid=vision.image_size // vision.patch_size,
        pointing_weight=_POINTING_WEIGHT,
        save=lambda folder: save_groot(policy, folder),
    )
    return ground(grounding, lessons, config, output)


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
