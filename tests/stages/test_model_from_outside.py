"""The tutorial of docs/models.md: a model of a package of its own goes through every stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import regrasp
from outside_packages import code_blocks, install
from regrasp.checkpoint.layout import FULL_WEIGHTS
from regrasp.cli.main import main
from regrasp.envs.contract import Observation
from regrasp.errors import UserError
from regrasp.experiment.load import load_config
from regrasp.models.config import DatasetFacts, ModelConfig
from regrasp.models.inputs import InputNames
from regrasp.models.normalization import Statistics
from regrasp.models.registry import known_models

MODULE, *_ = code_blocks("models.md", "model tutorial", "python")
PROJECT, *_ = code_blocks("models.md", "model tutorial", "toml")
EXPERIMENT, *_ = code_blocks("models.md", "model tutorial", "yaml")
SMALL = (
    "runner.logger.logger_backends=[]",
    "runner.max_epochs=1",
    "runner.force=true",
    "env.train.total_num_envs=4",
    "env.train.num_workers=1",
    "env.eval.total_num_envs=4",
    "env.eval.num_workers=1",
    "env.eval.num_episodes=4",
    "actor.global_batch_size=24",
    "actor.micro_batch_size=24",
    "algorithm.update_epoch=1",
    "algorithm.rollout_epoch=1",
    "sft.steps=3",
    "sft.batch_size=16",
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the tutorial's experiment, where its package is installed."""
    install(tmp_path / "site", {"my_models": MODULE}, PROJECT, monkeypatch)
    (tmp_path / "pick_cube_cnn.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_goes_through_every_stage(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--config_name", "pick_cube_cnn.yaml", *SMALL]
    assert main(["collect", *chosen, "--num_demos", "3"]) == 0
    assert main(["sft", *chosen]) == 0
    assert json.loads((here / "base" / "made_for.json").read_text())["experiment"] == "pick_cube_cnn"
    assert main(["train", "--model_path", "base"]) == 0
    (run,) = here.glob("logs/regrasp/2*")
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["train/actor/first_ratio_error"] < 1e-5
    assert main(["play", "--model_path", str(run)]) == 0
    (evaluation,) = here.glob("logs/regrasp/eval/*/evaluation.json")
    assert json.loads(evaluation.read_text())["episodes"] == 4
    assert main(["export", "--model_path", str(run), "--output", "tuned"]) == 0
    (checkpoint,) = run.glob("*/checkpoints/global_step_1")
    assert main(["export", "--model_path", "base", "--rl_model_path", str(run), "--output", "laid_over"]) == 0
    assert main(["export", "--model_path", "base", "--with_value_head", "--output", "no"]) == 2
    assert "leave it out" in capsys.readouterr().err
    trained = torch.load(checkpoint / FULL_WEIGHTS, weights_only=True)
    observation = Observation(
        {"main": torch.randint(0, 256, (2, 84, 84, 3), dtype=torch.uint8)}, {"state": torch.randn(2, 16)}, ["", ""]
    )
    for name in ("tuned", "laid_over"):
        policy = regrasp.load_policy(name)
        assert all(torch.equal(weight, trained[key]) for key, weight in policy.state_dict().items())
        assert policy.predict(observation).shape == (2, 4, 4)
        kept = yaml.safe_load((here / name / "experiment.yaml").read_text())
        assert kept["actor"]["model"]["model_type"] == "my_cnn"
        assert kept["env"]["train"]["init_params"]["id"] == "Regrasp-Pick-Cube-v0"


@pytest.mark.usefixtures("here")
def test_its_keys_are_checked_as_all_are() -> None:
    model = load_config("pick_cube_cnn.yaml", ["actor.model.initial_std=0.5"]).config.actor.model
    assert (type(model).__name__, vars(model)["initial_std"]) == ("ConvConfig", 0.5)
    with pytest.raises(UserError, match="initial_std") as caught:
        load_config("pick_cube_cnn.yaml", ["actor.model.inital_std=0.5"])
    assert caught.value.key == "actor.model.inital_std"


@pytest.mark.usefixtures("here")
def test_supervised_training_begins_with_a_folder_where_one_is_given(tmp_path: Path) -> None:
    first = load_config("pick_cube_cnn.yaml").config.actor.model
    numbers = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    facts = DatasetFacts(Statistics.of(numbers), Statistics.of(numbers), InputNames(), ("main",), {}, 10.0)
    new = first.from_dataset(facts, backbone=None, whole=False, seed=3)
    assert new.spec.state_dim == 4
    new.save(tmp_path / "made")
    again = load_config("pick_cube_cnn.yaml", [f"actor.model.model_path={tmp_path / 'made'}"]).config.actor.model
    loaded = again.from_dataset(facts, backbone=None, whole=False, seed=4)
    assert all(torch.equal(weight, new.state_dict()[key]) for key, weight in loaded.state_dict().items())


def test_a_backbone_is_asked_for_by_models_that_make_something_of_it() -> None:
    asks = {name: model.starts_from_backbone() for name, model in known_models().items()}
    assert asks["gr00t"]
    assert not asks["mlp"]
    assert not ModelConfig.starts_from_backbone()
    exported = {name: model.has_published_layout() for name, model in known_models().items()}
    assert (exported["gr00t"], exported["mlp"]) == (True, False)
