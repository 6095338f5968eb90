"""A tiny OpenVLA through every stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_toys import SMALL, checkpoint, metrics

from regrasp.checkpoint.hub_folder import load_safetensors
from regrasp.experiment.load import LoadedConfig, load_config
from regrasp.models.config import ExportOptions
from regrasp.models.openvla.architecture import OpenVlaArchitectureConfig
from regrasp.models.openvla.checkpoint import load_openvla, save_openvla
from regrasp.models.openvla.pretraining import fresh_policy
from regrasp.models.registry import load_policy
from regrasp.stages.export import export
from regrasp.stages.play import PlayOptions, play
from regrasp.stages.pretrain import train_backbone
from regrasp.stages.sft import train_base
from regrasp.stages.train import train

TINY: dict[str, Any] = {
    "vision_width": 16,
    "vision_mlp": 16,
    "language_width": 24,
    "language_mlp": 32,
    "language_layers": 2,
}
ARCHITECTURE = [f"pretrain.architecture.{name}={value}" for name, value in TINY.items()]
STAGES = (
    *ARCHITECTURE,
    "pretrain.tasks=[Regrasp-Pick-Cube-v0]",
    "pretrain.num_scenes=40",
    "pretrain.steps=3",
    "pretrain.batch_size=16",
    "pretrain.max_median_error_cm=1000",
    "sft.steps=6",
    "sft.batch_size=16",
    "sft.warmup_steps=2",
    "sft.validation_fraction=0.2",
    "sft.eval_interval=3",
    *(f"env.{name}.mapping.extra_view_images=[]" for name in ("train", "eval")),  # the demonstrations have one camera
)


def experiment(name: str, *overrides: str) -> LoadedConfig:
    return load_config(f"pick_cube_{name}_openvla", [*SMALL, *STAGES, *overrides])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny OpenVLA."""
    folder = tmp_path_factory.mktemp("tiny")
    save_openvla(fresh_policy(OpenVlaArchitectureConfig(**TINY), ["pick up the red cube"], seed=0).half(), folder)
    return folder


@pytest.fixture(scope="module")
def base(tiny: Path, demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, result = train_base(experiment("ppo").config, demos, tiny, tmp_path_factory.mktemp("base"))
    assert result.train_loss > 0
    return folder


def test_the_base_model_has_the_datas_statistics(base: Path) -> None:
    policy = load_policy(base)
    assert policy.spec.num_action_chunks == 4
    assert policy.spec.action_dim == 4
    assert json.loads((base / "decoding.json").read_text())["unnorm_key"] == "regrasp"
    assert (base / "made_for.json").is_file()


@pytest.mark.parametrize("name", ["ppo", *(pytest.param(name, marks=pytest.mark.full) for name in ("grpo", "reinpp"))])
def test_it_is_trained_played_and_exported(name: str, base: Path, tmp_path: Path) -> None:
    run, evaluation = tmp_path / "run", tmp_path / "evaluation"
    run.mkdir()
    evaluation.mkdir()
    group = ("algorithm.group_size=3",) if name == "grpo" else ()
    loaded = experiment(name, f"actor.model.model_path={base}", "runner.max_epochs=1", "runner.force=true", *group)
    policy = load_openvla(base, None)
    assert train(loaded, run)
    row = metrics(run)[0]
    if "train/actor/first_ratio_error" in row:
        assert row["train/actor/first_ratio_error"] < 1e-4
    assert ("train/critic/value_loss" in row) == (name == "ppo")
    model = checkpoint(run, 1) / "model"
    towers = [key for key in policy.state_dict() if key.startswith("vision_backbone.")]
    trained = load_safetensors(model)
    assert all(torch.equal(trained[key].half(), policy.state_dict()[key].half()) for key in towers)
    played = play(experiment(name, f"actor.model.model_path={model}", *group), evaluation, PlayOptions())
    assert len(played.episodes) == 4
    output = export(ExportOptions(base, tmp_path / "out", checkpoint(run, 1)))
    exported = load_safetensors(output)
    assert exported.keys() == policy.state_dict().keys()
    assert all(torch.equal(exported[key], trained[key]) for key in exported)


def test_adapters_are_trained_and_merged(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    settings = ("actor.model.is_lora=true", "actor.model.lora.rank=2", "actor.fsdp_config.gradient_checkpointing=true")
    loaded = experiment("ppo", f"actor.model.model_path={base}", "runner.max_epochs=1", "runner.force=true", *settings)
    assert train(loaded, tmp_path)
    assert not any(".lora_" in name for name in load_safetensors(checkpoint(tmp_path, 1) / "model"))


@pytest.mark.full
def test_pretraining_gives_the_same_folder_for_the_same_seed(tmp_path: Path) -> None:
    config = experiment("ppo").config.pretrain
    assert config is not None
    for name in ("first", "second"):
        error = train_backbone(config, tmp_path / name)
        assert 0 < error < 100
    first, second = (load_safetensors(tmp_path / name) for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
