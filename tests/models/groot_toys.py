"""Tiny GR00T networks and observations for the tests of this folder."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from regrasp.envs.contract import Observation, numbered_cameras
from regrasp.envs.data_config import KeyConfig
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.processing.metadata import Metadata
from regrasp.models.groot.processing.processor import GrootProcessor
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.models.normalization import Statistics
from regrasp.seeding import KeyedNoise
from rl_toys import groot_settings

SENTENCES = ("pick up the red cube", "pick up the green cube", "push it")
STATE_DIM, ACTION_DIM = 3, 2
TEXT_LENGTH = 10
ARCHITECTURE: dict[str, Any] = {
    "image_size": 28,
    "patch_size": 14,
    "vision_width": 16,
    "vision_layers": 2,
    "vision_heads": 2,
    "vision_mlp": 32,
    "language_width": 24,
    "language_layers": 2,
    "language_heads": 2,
    "language_kv_heads": 1,
    "language_head_dim": 8,
    "language_mlp": 32,
    "vocab_size": 300,
    "head_width": 16,
    "head_layers": 3,
    "head_heads": 2,
    "vl_self_attention_layers": 2,
    "num_future_tokens": 2,
    "action_horizon": 4,
    "max_state_dim": 5,
    "max_action_dim": 4,
    "num_embodiments": 3,
}


def toy_config(**changes: Any) -> GrootConfig:
    return GrootConfig.tiny(SimpleNamespace(**(ARCHITECTURE | changes)))


def toy_settings(**changes: Any) -> GrootModelConfig:
    values: dict[str, Any] = {
        "num_action_chunks": 3,
        "action_dim": ACTION_DIM,
        "noise_level": 0.5,
        "value_head_hidden": (8, 8),
    }
    return groot_settings(**(values | changes))


def toy_processor(
    config: GrootConfig, *, num_views: int = 1, text_length: int = TEXT_LENGTH, text_first: bool = True
) -> GrootProcessor:
    processor = GrootProcessor.fresh(
        config,
        SENTENCES,
        num_views=num_views,
        state_dim=STATE_DIM,
        action_dim=ACTION_DIM,
        text_length=text_length,
        text_first=text_first,
    )
    generator = torch.Generator().manual_seed(5)
    state = Statistics.of(torch.randn(50, STATE_DIM, generator=generator) * 2 + 1)
    action = Statistics.of(torch.randn(50, ACTION_DIM, generator=generator) * 0.3)
    return with_statistics(processor, state, action, embodiment_id=2)


def with_statistics(
    processor: GrootProcessor, state: Statistics, action: Statistics, *, embodiment_id: int
) -> GrootProcessor:
    """The processor for other data, whose states and actions are one key each, in another slot."""
    data = replace(processor.config.data_config, state=(KeyConfig("state"),), action=(KeyConfig("action"),))
    config = replace(processor.config, data_config=data, embodiment_id=embodiment_id)
    metadata = Metadata.of(
        config.embodiment_tag, {"state": {"state": state}, "action": {"action": action}}, data.video, 28, 10.0
    )
    return GrootProcessor(processor.groot, config, metadata, processor.tokenizer)


def toy_policy(*, num_views: int = 1, seed: int = 0, **settings: Any) -> GrootPolicy:
    config = toy_config()
    policy = GrootPolicy(config, toy_processor(config, num_views=num_views), toy_settings(**settings), seed=seed)
    return policy.eval()


def toy_observation(batch: int, *, num_views: int = 1, size: int = 28, seed: int = 0) -> Observation:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (batch, num_views, size, size, 3), generator=generator, dtype=torch.uint8)
    return Observation(
        images=dict(zip(numbered_cameras(num_views), images.unbind(1), strict=True)),
        state={"state": torch.randn(batch, STATE_DIM, generator=generator)},
        instruction=[SENTENCES[i % len(SENTENCES)] for i in range(batch)],
    )


def keyed_noise(batch: int, seed: int = 0) -> KeyedNoise:
    return KeyedNoise(seed, "train", [(row, 0, 0) for row in range(batch)])
