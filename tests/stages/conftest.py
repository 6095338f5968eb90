"""What several tests of this folder start from, made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from run_toys import groot_experiment, mlp_experiment

from regrasp.models.groot.checkpoint import load_groot
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.stages import pretrain
from regrasp.stages.collect import collect
from regrasp.stages.pretrain import train_backbone
from regrasp.stages.sft import train_base
from regrasp.stages.train import train


@pytest.fixture(scope="session", autouse=True)
def _few_scenes() -> Iterator[None]:
    """Toy backbones are judged by fewer scenes than the 1000 of others, which take longer to render than all else."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pretrain, "_NUM_VALIDATION", 60)
        yield


@pytest.fixture(scope="session")
def start_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state policy whose values are not zero, so that there is an advantage to learn from without any success."""
    policy = MlpPolicy(state_dim=16, action_dim=4, num_action_chunks=4, hidden=(16, 16))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("start")
    policy.save(folder)
    return folder


@pytest.fixture(scope="session")
def finished_run(start_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four updates of the state policy without interruption; every checkpoint kept."""
    run = tmp_path_factory.mktemp("run")
    assert train(mlp_experiment(f"actor.model.model_path={start_model}"), run)
    return run


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone after three steps of pretraining."""
    folder = tmp_path_factory.mktemp("backbone")
    config = groot_experiment().config.pretrain
    assert config is not None
    train_backbone(config, folder)
    return folder


@pytest.fixture(scope="session")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five demonstrations of the whole task."""
    config = groot_experiment("env.train.max_episode_steps=40", "env.train.max_steps_per_rollout_epoch=40").config
    folder, _ = collect(config, tmp_path_factory.mktemp("demos") / "dataset")
    return folder


@pytest.fixture(scope="session")
def base_model(backbone: Path, demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A barely trained base model."""
    folder, _ = train_base(groot_experiment().config, demos, backbone, tmp_path_factory.mktemp("base"))
    return folder


@pytest.fixture(scope="session")
def groot_start(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model with a value head that is not zero."""
    settings = GrootModelConfig(num_action_chunks=4, action_dim=4, value_head_hidden=(128, 128))
    policy = load_groot(base_model, settings)
    assert policy.value_head is not None
    with torch.no_grad():
        for parameter in policy.value_head.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    folder = tmp_path_factory.mktemp("groot_start")
    policy.save(folder)
    return folder
