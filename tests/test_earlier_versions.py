"""What version 0.1.0 wrote still loads: model folders, datasets and checkpoints, kept beside the tests at toy size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import regrasp
from regrasp.data.lerobot import DemonstrationDataset
from regrasp.envs.contract import Observation
from regrasp.experiment.load import LoadedConfig, load_config
from regrasp.stages.sft import train_base
from regrasp.stages.train import train

WRITTEN = Path(__file__).parent / "data" / "written_by_0_1_0"
KINDS = ("mlp", "groot")
SIZES = (
    "runner.logger.logger_backends=[]",
    "runner.force=true",
    "runner.max_epochs=2",
    "runner.val_check_interval=-1",
    "runner.save_interval=1",
    "runner.keep_checkpoints=null",
    "env.train.num_workers=1",
    "env.eval.num_workers=1",
    "env.train.total_num_envs=4",
    "env.eval.total_num_envs=4",
    "env.eval.num_episodes=4",
    "actor.global_batch_size=8",
    "actor.micro_batch_size=8",
)
OWN = {"mlp": ("actor.model.mlp.hidden=[8,8]",), "groot": ("actor.model.value_head_hidden=[4]",)}


def experiment(kind: str, *overrides: str) -> LoadedConfig:
    return load_config(f"pick_cube_ppo_{kind}", [*SIZES, *OWN[kind], *overrides])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_folder_acts_as_it_did(kind: str) -> None:
    policy = regrasp.load_policy(WRITTEN / kind / "base")
    generator = torch.Generator().manual_seed(0)
    observation = Observation(
        state={"state": torch.rand(2, policy.spec.state_dim, generator=generator)},
        images={"main": torch.randint(0, 256, (2, 84, 84, 3), generator=generator, dtype=torch.uint8)},
        instruction=["pick up the red cube", "pick up the blue cube"],
    )
    expected = json.loads((WRITTEN / "predictions.json").read_text())[kind]
    torch.testing.assert_close(policy.predict(observation), torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumes_with_the_update_that_followed(kind: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(WRITTEN / kind / "run", run)
    overrides = (f"runner.resume_dir={run}", f"actor.model.model_path={WRITTEN / kind / 'base'}")
    assert train(experiment(kind, *overrides), run)
    last = [
        json.loads(text.read_text().splitlines()[-1])
        for text in (run / "metrics.jsonl", WRITTEN / kind / "metrics.jsonl")
    ]
    found, expected = ({k: v for k, v in line.items() if not k.startswith("time/")} for line in last)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_model_is_trained_from_demonstrations(kind: str, tmp_path: Path) -> None:
    data = WRITTEN / kind / "demos"
    assert DemonstrationDataset(data).num_episodes == 1
    sft = ("sft.steps=2", "sft.warmup_steps=1", "sft.validation_fraction=0", "sft.batch_size=4")
    backbone = WRITTEN / "groot" / "base" if kind == "groot" else None
    folder, _ = train_base(experiment(kind, *sft).config, data, backbone, tmp_path / "base")
    assert regrasp.load_policy(folder).spec.action_dim == 4
