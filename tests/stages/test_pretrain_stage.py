"""Grounding pretraining at toy size."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_toys import groot_experiment

from regrasp.checkpoint.hub_folder import load_safetensors
from regrasp.checkpoint.verify import require_sound_model
from regrasp.cli.main import main
from regrasp.errors import TrainingHaltedError, UserError
from regrasp.experiment.load import load_config
from regrasp.models.groot.checkpoint import load_groot
from regrasp.models.pretraining import GROUNDING_FILE, PretrainConfig
from regrasp.stages.pretrain import (
    SHIPPED,
    cached_backbone,
    check_instructions,
    find_backbone,
    pretrain,
    train_backbone,
)


def pretrain_config(*overrides: str) -> PretrainConfig:
    config = groot_experiment(*overrides).config.pretrain
    assert config is not None
    return config


def test_what_is_written_is_a_policy_folder(backbone: Path) -> None:
    policy = load_groot(backbone)
    assert policy.config.eagle_cfg.vision_config.hidden_size == 24
    ids = policy.processor.text.encode(["pick up the red cube", "pick up the blue cube"])
    assert not torch.equal(ids[0], ids[1])


def test_the_same_seed_gives_the_same_backbone(backbone: Path, tmp_path: Path) -> None:
    error = train_backbone(pretrain_config(), tmp_path)
    first, second = load_safetensors(backbone), load_safetensors(tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert 0 < error < 100


LONG = "take the red cube from the table and put it on top of the blue cube that stands behind it"


@pytest.mark.parametrize(
    ("name", "overrides", "fix"),
    [
        ("train", [], "pretrain.architecture.text_length="),
        ("eval", ["+actor.model.rl_head_config.padding_value=46"], "actor.model.rl_head_config.padding_value="),
    ],
)
def test_an_instruction_that_is_too_long_is_found_before_anything_is_rendered(
    name: str, overrides: list[str], fix: str, tmp_path: Path
) -> None:
    long = f"+env.{name}.mapping.task_description={LONG}"
    with pytest.raises(UserError, match=r"An instruction of \d+ tokens, with room for") as caught:
        pretrain(groot_experiment(long, *overrides).config, tmp_path / "backbone")
    assert caught.value.key == f"env.{name}.mapping.task_description"
    advised = str(caught.value.fix).partition(", or set ")[2]
    assert advised.startswith(fix)
    check_instructions(groot_experiment(long, f"++{advised}").config)
    key, _, needed = advised.partition("=")
    with pytest.raises(UserError, match="with room for"):
        check_instructions(groot_experiment(long, f"++{key}={int(needed) - 1}").config)
    assert not (tmp_path / "backbone").exists()


@pytest.mark.parametrize("flags", [[], ["--dry_run"]])
def test_the_command_names_the_instruction_where_it_is_written(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", *flags, f"+env.train.mapping.task_description={LONG}"]) == 2
    error = capsys.readouterr().err
    assert "file:     command line" in error
    assert "key:      env.train.mapping.task_description" in error


def test_an_unknown_task_of_pretraining_is_one_error() -> None:
    with pytest.raises(UserError, match="Unknown MuJoCo task") as caught:
        check_instructions(groot_experiment("pretrain.tasks=[Regrasp-Pick-Cub-v0]").config)
    assert caught.value.key == "pretrain.tasks"


def test_an_error_above_the_limit_writes_nothing(tmp_path: Path) -> None:
    config = pretrain_config("pretrain.max_median_error_cm=0.01", "pretrain.steps=1", "pretrain.num_scenes=16")
    with pytest.raises(TrainingHaltedError, match=r"median error of \d+\.\d+ cm, above the limit of 0.01 cm"):
        train_backbone(config, tmp_path / "backbone")
    assert not (tmp_path / "backbone").exists()


@pytest.mark.full
def test_every_task_contributes_its_words(tmp_path: Path) -> None:
    config = pretrain_config("pretrain.tasks=[Regrasp-Pick-Cube-v0,Regrasp-Stack-Cube-v0]", "pretrain.steps=2")
    assert 0 < train_backbone(config, tmp_path) < 100


def test_what_is_cached_is_not_made_again(backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = groot_experiment().config
    made, error = pretrain(config, backbone)
    assert (made, error) == (backbone, None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert config.pretrain is not None
    folder = cached_backbone(config.pretrain)
    assert tmp_path in folder.parents
    assert folder == cached_backbone(pretrain_config()), "the seed of the run does not matter"
    assert folder == cached_backbone(pretrain_config("runner.seed=3"))
    assert folder == cached_backbone(pretrain_config("pretrain.max_median_error_cm=9")), "it changes no weight"
    assert folder != cached_backbone(pretrain_config("pretrain.steps=4"))
    strict = groot_experiment("pretrain.max_median_error_cm=0.01").config
    with pytest.raises(TrainingHaltedError, match=r"above the limit of 0.01 cm[\s\S]*pretrain.max_median_error_cm=\d"):
        pretrain(strict, backbone)
    assert folder != cached_backbone(pretrain_config("pretrain.architecture.head_width=48"))


@pytest.mark.parametrize("name", ["pick_cube_sac_groot", "pick_cube_ppo_groot", "stack_cube_ppo_groot"])
def test_the_cube_tasks_backbone_comes_with_the_package(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = load_config(name, []).config
    assert pretrain(config) == (SHIPPED / "cubes", None)
    assert config.pretrain is not None
    other = dataclasses.replace(config.pretrain, steps=801)
    assert find_backbone(other) == cached_backbone(other)


def test_what_comes_with_the_package_is_sound_and_small() -> None:
    folder = SHIPPED / "cubes"
    require_sound_model(folder)
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 8e6
    policy = load_groot(folder)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float16}


@pytest.mark.full
def test_the_command_that_made_it_reaches_its_error(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "make_backbone.py"
    subprocess.run([sys.executable, script, tmp_path / "made"], check=True)
    made, shipped = (
        json.loads((folder / GROUNDING_FILE).read_text())["median_error_cm"]
        for folder in (tmp_path / "made", SHIPPED / "cubes")
    )
    assert made < 1.1 * shipped
    assert (tmp_path / "made.json").read_text() == SHIPPED.joinpath("cubes.json").read_text()
