"""Whole runs on the real Isaac Lab wheel: mistakes are told before training, and no finished update is lost."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path

import pytest
import torch
from lab_envs import HERE, LAB_PYTHON, STAND_IN, needs_lab

from regrasp.cli.main import main
from regrasp.engine.local import LocalEngine
from regrasp.envs.isaaclab.vector import IsaacLabVecEnv

pytestmark = [needs_lab, pytest.mark.full]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run of three updates with an evaluation after the second, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))
    experiment = ["--config_name", str(HERE / "point_experiment.yaml"), f"env.isaaclab.python={LAB_PYTHON}"]
    return ["train", *experiment]


def strike_at_step(monkeypatch: pytest.MonkeyPatch, name: str, call: int, number: signal.Signals) -> None:
    """Signal the simulator of `env.<name>` just before its `call`th chunk (from 1)."""
    original, count = IsaacLabVecEnv.begin_step, 0

    def counted(self: IsaacLabVecEnv, actions: torch.Tensor) -> None:
        nonlocal count
        (worker,) = self._workers
        count += worker.name.startswith(name)
        if count == call and worker.name.startswith(name):
            os.kill(worker.pid, number)
        original(self, actions)

    monkeypatch.setattr(IsaacLabVecEnv, "begin_step", counted)


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("global_step_")) for path in folder.rglob("global_step_*"))


@pytest.mark.parametrize(
    ("name", "call", "number", "seconds", "how"),
    [
        ("eval", 2, signal.SIGKILL, 120, "killed by signal 9"),
        ("train", 2 * 2 + 2, signal.SIGSTOP, 5, "did not answer 'step'"),
    ],
)
def test_a_simulator_that_dies_or_falls_silent_costs_no_finished_update(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    call: int,
    number: signal.Signals,
    seconds: int,
    how: str,
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        strike_at_step(patched, name, call, number)
        assert main([*command, "runner.max_restarts=0", f"env.{name}.timeouts.step_s={seconds}"]) == 3
    error = capsys.readouterr().err
    assert f"error: {name} environments 0-" in error
    assert how in error
    assert saved_steps(tmp_path) == [2]
    resume = shlex.split(error.partition("To continue: ")[2].splitlines()[0])[1:]
    assert main([*resume, f"env.{name}.timeouts.step_s=120"]) == 0
    assert saved_steps(tmp_path) == [2, 3]


def test_a_simulator_that_dies_is_started_again(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    strike_at_step(monkeypatch, "train", 2 * 2 + 2, signal.SIGKILL)
    assert main(command) == 0
    assert "killed by signal 9" in capsys.readouterr().err
    assert saved_steps(tmp_path)[-1] == 3


@pytest.mark.parametrize(
    ("change", "key", "named"),
    [
        ("env.eval.init_params.id='lab_tasks:Pont-v0'", "env.eval.init_params.id", "Point-v0"),
        ("env.eval.mapping.states=[position]", "env.eval.mapping.states", "3 values"),
    ],
)
def test_a_mistake_in_the_evaluation_is_told_before_training(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    key: str,
    named: str,
) -> None:
    monkeypatch.setattr(LocalEngine, "collect", None)
    assert main([*command, change]) == 2
    error = capsys.readouterr().err
    assert f"key:      {key}\n" in error
    assert named in error
    assert not list(tmp_path.glob("logs/regrasp/*"))
