"""Whole commands on Gymnasium's own environments: what they write, say and return with."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch

from regrasp.cli.main import main
from regrasp.envs.process.vector import RemoteVecEnv
from regrasp.logging.metrics import METRICS_FILE, read_metrics

pytest.importorskip("gymnasium")
PENDULUM = ["--config_name", "gymnasium_pendulum_ppo_mlp"]
SHORT = [
    *("env.train.max_steps_per_rollout_epoch=200", "env.eval.num_episodes=2", "env.eval.total_num_envs=2"),
    *("algorithm.update_epoch=1", "runner.logger.logger_backends=[]", "runner.save_interval=1"),
    *("runner.val_check_interval=1", "runner.max_epochs=2"),
]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_folder(folder: Path) -> Path:
    (found,) = (file.parent for file in folder.rglob(METRICS_FILE))
    return found


def test_a_task_without_success_trains_and_shows_its_return(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *PENDULUM, *SHORT]) == 0
    printed = capsys.readouterr().out
    assert "evaluation: return -" in printed
    assert "0.0%" not in "".join(line for line in printed.splitlines() if "evaluation" in line)
    rows = read_metrics(run_folder(tmp_path) / METRICS_FILE)
    assert len(rows) == 2
    for row in rows:
        assert not {"env/success_once", "eval/success_once"} & row.keys()
        assert row["eval/return"] < 0
        assert row["env/episode_len"] == 200
        assert row["rollout/decisions"] == 800
    assert main(["report", str(run_folder(tmp_path))]) == 0
    page = next(tmp_path.rglob("*.html")).read_text()
    assert ">return<" in page
    assert "Success" not in page
    assert main(["play", *PENDULUM, *SHORT, "--checkpoint", "best"]) == 0
    assert "mean return: -" in capsys.readouterr().out


def test_an_evaluation_records_what_the_environment_renders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    count = ["env.eval.init_params.id=gym_envs:Count-v0", "env.eval.mapping.states=[clock]"]
    assert main(["play", *PENDULUM, *SHORT, *count, "--policy", "random", "--video"]) == 0
    assert sorted(video.name for video in tmp_path.rglob("*.mp4")) == ["episode_000.mp4", "episode_001.mp4"]


def test_an_evaluation_without_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", *PENDULUM, *SHORT, "--policy", "zero"]) == 0
    assert "mean return: -" in capsys.readouterr().out
    summary = json.loads(next(tmp_path.rglob("evaluation.json")).read_text())
    assert summary["success"] is summary["ci95"] is None
    assert summary["episodes"] == 2
    episodes = [json.loads(line) for line in next(tmp_path.rglob("episodes.jsonl")).read_text().splitlines()]
    assert [episode["success"] for episode in episodes] == [None, None]
    assert summary["measures"]["return"]["mean"] == pytest.approx(
        sum(episode["total_reward"] for episode in episodes) / 2
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["env.eval.init_params.id=Pendulm-v1"], ["'Pendulm-v1'", "did you mean 'Pendulum-v1'?"]),
        (["+env.train.init_params.kwargs={gravity: 3}"], ["gravity", "env.train.init_params.kwargs"]),
        (["+env.train.init_params.success_key=is_success"], ["env.train.init_params.success_key", "info holds"]),
        (["env.train.mapping.states=[angle]"], ["'angle'", "observation"]),
        (["+env.train.ignore_terminations=true"], ["env.train.ignore_terminations"]),
    ],
)
def test_mistakes_end_with_code_2_and_no_traceback(
    change: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *PENDULUM, *SHORT, *change]) == 2
    printed = capsys.readouterr().err
    assert all(text in printed for text in said), printed
    assert "Traceback" not in printed


def test_a_dry_run_looks_the_environment_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(RemoteVecEnv, "__init__", None)
    flags = ["train", "--dry_run", *PENDULUM, *SHORT]
    assert main(flags) == 0
    assert main([*flags, "env.eval.init_params.id=gym_envs:Broken-v0"]) == 0, "what cannot be made is known at start"
    assert main([*flags, "env.eval.python=/no/such/python"]) == 0
    assert "env.eval.init_params.id is not looked up: this machine has no /no/such/python" in capsys.readouterr().err
    assert main([*flags, "env.eval.init_params.id=Pendulm-v1"]) == 2
    printed = capsys.readouterr()
    assert "# Summary" in printed.out
    for text in ("key:      env.eval.init_params.id", "expected: one of the nearest, Pendulum-v1", "did you mean"):
        assert text in printed.err
    assert not [*tmp_path.iterdir()]


@pytest.mark.full
def test_a_simulator_that_dies_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, count = RemoteVecEnv.begin_step, 0

    def struck(self: RemoteVecEnv, actions: torch.Tensor) -> None:
        nonlocal count
        count += 1
        if count == 50:
            os.kill(self._workers[0].pid, signal.SIGKILL)
        original(self, actions)

    monkeypatch.setattr(RemoteVecEnv, "begin_step", struck)
    assert main(["train", *PENDULUM, *SHORT]) == 0
    assert [row["step"] for row in read_metrics(run_folder(tmp_path) / METRICS_FILE)] == [1, 2]


@pytest.mark.full
def test_two_runs_with_one_seed_are_the_same(tmp_path: Path) -> None:
    rows = []
    for name in ("one", "other"):
        assert main(["train", *PENDULUM, *SHORT, f"runner.logger.log_path={tmp_path / name}"]) == 0
        rows.append(read_metrics(run_folder(tmp_path / name) / METRICS_FILE))
    for one, other in zip(*rows, strict=True):
        timeless = {tag for tag in one if not tag.startswith("time/")}
        assert {tag: one[tag] for tag in timeless} == {tag: other[tag] for tag in timeless}


def test_a_vector_environment_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cartpole = [
        *("env.train.init_params.id=CartPole-v1", "+env.train.init_params.vector=true"),
        *("+env.eval.init_params.vector=true", "env.train.mapping.action_bounds=clip", "actor.model.action_dim=2"),
        *("env.train.max_episode_steps=100", "env.train.max_steps_per_rollout_epoch=100"),
    ]
    assert main(["train", *PENDULUM, *SHORT, *cartpole]) == 0
    for row in read_metrics(run_folder(tmp_path) / METRICS_FILE):
        assert row["env/return"] == row["env/episode_len"]  # a reward of 1 per step, and none for the reset step
        assert math.isfinite(row["train/actor/total_loss"])


@pytest.mark.full
@pytest.mark.slow
def test_ppo_swings_the_pendulum_up(tmp_path: Path) -> None:
    assert main(["train", *PENDULUM, "runner.max_epochs=15", "runner.val_check_interval=15"]) == 0
    assert read_metrics(run_folder(tmp_path) / METRICS_FILE)[-1]["eval/return"] > -250
