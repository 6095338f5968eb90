"""The quickstart's policy with random weights: speed does not depend on what it has learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import load_config
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.processing.processor import GrootProcessor

SENTENCES = ("pick up the red cube", "stack the red cube on the blue cube")
STATE_DIM = 4


def experiment(overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The quickstart's experiment."""
    return load_config("pick_cube_ppo_groot", overrides).config


def random_policy(config: ExperimentConfig, **settings: str) -> GrootPolicy:
    """A policy of the experiment's sizes."""
    assert config.pretrain is not None
    model = config.actor.model
    architecture = config.pretrain.architecture
    groot = GrootConfig.tiny(architecture)
    processor = GrootProcessor.fresh(
        groot,
        SENTENCES,
        num_views=1,
        state_dim=STATE_DIM,
        action_dim=model.action_dim,
        text_length=architecture.text_length,
        text_first=architecture.text_first,
    )
    return GrootPolicy(groot, processor, dataclasses.replace(model, **settings), seed=0)
