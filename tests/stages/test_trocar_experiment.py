"""The shipped trocar experiment through every stage, on its real task with its three cameras, at toy size."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_toys import ARCHITECTURE, metrics

from regrasp.data.lerobot import DemonstrationDataset
from regrasp.experiment.load import LoadedConfig, load_config
from regrasp.models.registry import load_policy
from regrasp.stages.collect import collect
from regrasp.stages.play import PlayOptions, play
from regrasp.stages.pretrain import pretrain
from regrasp.stages.sft import train_base
from regrasp.stages.train import train

TOY = (
    *ARCHITECTURE,
    "runner.max_epochs=2",
    "runner.val_check_interval=-1",
    "runner.force=true",
    "runner.logger.logger_backends=[]",
    "pretrain.num_scenes=20",
    "pretrain.steps=2",
    "pretrain.batch_size=8",
    "pretrain.max_median_error_cm=1000",
    "collect.num_demos=2",
    "collect.only_successful=false",
    "sft.steps=4",
    "sft.warmup_steps=1",
    "sft.validation_fraction=0.5",
    "env.train.total_num_envs=2",
    "env.train.num_workers=1",
    "env.train.max_episode_steps=32",
    "env.train.max_steps_per_rollout_epoch=32",
    "env.eval.total_num_envs=2",
    "env.eval.num_workers=1",
    "env.eval.num_episodes=2",
    "actor.global_batch_size=4",
    "actor.micro_batch_size=4",
)


def experiment(*overrides: str) -> LoadedConfig:
    return load_config("trocar_ppo_groot", [*TOY, *overrides])


@pytest.mark.full
def test_every_stage_of_the_trocar_experiment_runs(tmp_path: Path) -> None:
    config = experiment().config
    backbone, _ = pretrain(config, tmp_path / "backbone")
    demos, attempts = collect(config, tmp_path / "demos")
    assert attempts == 2
    assert DemonstrationDataset(demos).num_frames == 2 * 32
    base, result = train_base(config, demos, backbone, tmp_path / "base")
    assert result.num_frames == 32 / 4  # one episode is held out, of the other every fourth frame

    loaded = experiment(f"actor.model.model_path={base}")
    run = tmp_path / "run"
    run.mkdir()
    assert train(loaded, run)
    assert [row["env/stage"] for row in metrics(run)] == [0.0, 0.0]  # nothing is lifted within 32 steps
    (tmp_path / "play").mkdir()
    assert len(play(loaded, tmp_path / "play", PlayOptions()).episodes) == 2
    spec = load_policy(next(run.glob("*/checkpoints/global_step_2/model"))).spec
    assert (spec.num_views, spec.state_dim, spec.num_action_chunks, spec.action_dim) == (3, 28, 16, 28)
