"""Self-imitation in whole runs: they resume bit for bit, and their models act elsewhere."""

from __future__ import annotations

from pathlib import Path

from run_toys import assert_same_checkpoint, checkpoint, copy_until, metrics

from regrasp.experiment.load import LoadedConfig, load_config
from regrasp.models.registry import load_policy
from regrasp.stages.train import train


def experiment(*overrides: str) -> LoadedConfig:
    """A state policy on a dense reward."""
    settings = (
        "runner.logger.experiment_name=small",
        "runner.logger.logger_backends=[]",
        "runner.max_epochs=4",
        "runner.val_check_interval=-1",
        "runner.save_interval=1",
        "runner.keep_checkpoints=null",
        "runner.force=true",
        "env.train.auto_reset=false",
        "env.train.max_steps_per_rollout_epoch=20",
        "env.train.max_episode_steps=20",
        "algorithm.adv_type=self_imitation",
        "algorithm.loss_type=imitation",
        "algorithm.update_epoch=2",
        "algorithm.capacity=60",
    )
    return load_config("gymnasium_pendulum_ppo_mlp", [*settings, *overrides])


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert train(experiment(), run)
    lines = metrics(run)
    assert [line["train/imitation/kept"] for line in lines][-1] == 60
    assert all(0 < line["train/imitation/share"] < 1 for line in lines)
    assert lines[0]["train/actor/imitation_loss"] != lines[1]["train/actor/imitation_loss"]
    copy = copy_until(run, 2, tmp_path / "copy")
    assert train(experiment(f"runner.resume_dir={copy}"), copy)
    assert_same_checkpoint(checkpoint(run, 4), checkpoint(copy, 4))
    assert "value" not in load_policy(checkpoint(run, 4) / "model").offers
