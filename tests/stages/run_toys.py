"""Small experiments on the real simulator, and what two runs are compared by."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from regrasp.checkpoint.layout import FULL_WEIGHTS, OPTIMIZER, STATE, TENSORS
from regrasp.data.lerobot import DemonstrationDataset
from regrasp.experiment.load import LoadedConfig, load_config
from regrasp.stages.train import train

SMALL = (
    "runner.logger.experiment_name=small",
    "runner.logger.logger_backends=[]",
    "runner.max_epochs=4",
    "runner.val_check_interval=2",
    "runner.save_interval=1",
    "runner.keep_checkpoints=null",
    "env.train.total_num_envs=6",
    "env.train.num_workers=1",
    "env.train.max_steps_per_rollout_epoch=12",
    "env.train.max_episode_steps=12",
    "env.eval.total_num_envs=3",
    "env.eval.num_workers=1",
    "env.eval.num_episodes=4",
    "actor.global_batch_size=8",
    "actor.micro_batch_size=4",
    "actor.optim.lr_scheduler=linear",
    "algorithm.update_epoch=2",
    "algorithm.rollout_epoch=1",
)
OVER_EPOCHS = ("env.train.auto_reset=true", "env.train.max_steps_per_rollout_epoch=8")
"""Episodes of 12 steps over rollouts of 8."""
ARCHITECTURE = (
    "pretrain.architecture.vision_width=24",
    "pretrain.architecture.vision_mlp=48",
    "pretrain.architecture.language_width=24",
    "pretrain.architecture.language_head_dim=8",
    "pretrain.architecture.language_mlp=48",
    "pretrain.architecture.head_width=24",
    "pretrain.architecture.head_layers=2",
)
STAGES = (
    *ARCHITECTURE,
    "pretrain.tasks=[Regrasp-Pick-Cube-v0]",
    "pretrain.num_scenes=40",
    "pretrain.steps=3",
    "pretrain.batch_size=16",
    "pretrain.max_median_error_cm=1000",
    "collect.num_demos=5",
    "sft.steps=8",
    "sft.batch_size=32",
    "sft.warmup_steps=2",
    "sft.validation_fraction=0.2",
    "sft.eval_interval=4",
)


def mlp_experiment(*overrides: str) -> LoadedConfig:
    """State policy, PPO, seconds."""
    return load_config("pick_cube_ppo_mlp", [*SMALL, *overrides])


def groot_experiment(*overrides: str) -> LoadedConfig:
    """All stages with a network of a few thousand weights."""
    return load_config("pick_cube_ppo_groot", [*SMALL, *STAGES, *overrides])


def checkpoint(run: Path, step: int) -> Path:
    """A checkpoint of a run of one of these experiments."""
    return run / "small" / "checkpoints" / f"global_step_{step}"


def saved_steps(run: Path) -> list[int]:
    """Steps of the run's checkpoints, ascending."""
    folders = (run / "small" / "checkpoints").glob("global_step_*")
    return sorted(int(folder.name.removeprefix("global_step_")) for folder in folders)


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock says."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{tag: value for tag, value in row.items() if not tag.startswith("time/")} for row in rows]


def without_values(loaded: LoadedConfig, run: Path) -> list[str]:
    """What the table of updates shows, and no update of a run has a value of."""
    tags = {tag for row in metrics(run) for tag in row}
    return [column.title for column in loaded.config.algorithm.shown if f"train/{column.tag}" not in tags]


def assert_same_checkpoint(first: Path, second: Path) -> None:
    """Weights, optimizer, environments and counters, bit for bit."""
    for name in (FULL_WEIGHTS, OPTIMIZER):
        _assert_same(torch.load(first / name, weights_only=True), torch.load(second / name, weights_only=True), name)
    _assert_same(load_file(first / TENSORS), load_file(second / TENSORS), TENSORS)
    states = [json.loads((folder / STATE).read_text()) for folder in (first, second)]
    assert states[0] == states[1]


def copy_until(run: Path, step: int, copy: Path) -> Path:
    """The run as a crash soon after `step` leaves it: later metrics are there, later checkpoints are not."""
    shutil.copytree(run, copy)
    for later in range(step + 1, 5):
        shutil.rmtree(checkpoint(copy, later), ignore_errors=True)
    return copy


def assert_resumes_equal(experiment: LoadedConfig, uninterrupted: Path, resumed: Path) -> None:
    assert train(experiment, resumed)
    assert_same_checkpoint(checkpoint(uninterrupted, 4), checkpoint(resumed, 4))
    assert metrics(uninterrupted) == metrics(resumed)


def same_weights(first: Path, second: Path) -> bool:
    """Whether two checkpoints hold the same policy."""
    one, other = (torch.load(folder / FULL_WEIGHTS, weights_only=True) for folder in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _assert_same(first: Any, second: Any, where: str) -> None:
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key, value in first.items():
            _assert_same(value, second[key], f"{where}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, value in enumerate(first):
            _assert_same(value, second[index], f"{where}[{index}]")
    else:
        assert first == second, where


def successes(dataset: DemonstrationDataset) -> list[bool]:
    """Whether each episode of a dataset ended in success."""
    seen = dataset.load_columns(["next.success"])["next.success"]
    return [bool(seen[episode.start : episode.stop].any()) for episode in dataset.episodes]
