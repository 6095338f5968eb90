"""Simulator processes that are killed or fall silent during a run: it goes on, or no finished update is lost."""

from __future__ import annotations

import os
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from run_toys import OVER_EPOCHS, SMALL, checkpoint, metrics, mlp_experiment, same_weights, saved_steps
from safetensors.torch import load_file

from regrasp.checkpoint.layout import TENSORS
from regrasp.cli.main import main
from regrasp.engine.local import LocalEngine
from regrasp.envs.process.vector import RemoteVecEnv
from regrasp.stages.train import train

SHORT, USUAL = 5.0, 120.0
"""Seconds a simulator may be silent: where one falls silent, and by default."""
SECONDS_TO_END = 60.0
"""From a simulator's end to the command's, on a busy machine; less than the usual silence."""
NO_RESTART = "runner.max_restarts=0"
MIDST = [
    pytest.param("eval", 2, marks=pytest.mark.full),  # in the middle of the first evaluation, after update 2
    ("train", 2 * 3 + 2),  # in the middle of the third rollout
]
WAYS = [
    (signal.SIGKILL, "killed by signal 9"),
    pytest.param(signal.SIGSTOP, "did not answer", marks=pytest.mark.full),
]
strikes: list[float] = []
"""When simulators were struck."""


@pytest.fixture
def command(start_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A small run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    experiment = ["--config_name", "pick_cube_ppo_mlp", *SMALL, "runner.save_interval=-1"]
    return ["train", "--model_path", str(start_model), *experiment]


def strike(env: RemoteVecEnv, number: signal.Signals) -> None:
    for worker in env._workers:
        os.kill(worker.pid, number)
    strikes.append(time.monotonic())


def strike_at_step(monkeypatch: pytest.MonkeyPatch, name: str, call: int, number: signal.Signals) -> None:
    """Signal the processes of `env.<name>` just before its `call`th chunk (from 1)."""
    original, count = RemoteVecEnv.begin_step, 0

    def counted(self: RemoteVecEnv, actions: torch.Tensor) -> None:
        nonlocal count
        count += self._workers[0].name.startswith(name)
        if count == call and self._workers[0].name.startswith(name):
            strike(self, number)
        original(self, actions)

    monkeypatch.setattr(RemoteVecEnv, "begin_step", counted)


def fails(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, list[str]]:
    """Run a command that a simulator ends; returns what it said, and the command that it says to continue with."""
    assert main(command) == 3
    assert time.monotonic() - strikes[-1] < SECONDS_TO_END
    error = capsys.readouterr().err
    return error, shlex.split(error.partition("To continue: ")[2].splitlines()[0])[1:]


def only_run(folder: Path) -> Path:
    (run,) = (folder / "logs" / "regrasp").iterdir()
    return run


@pytest.mark.parametrize(("number", "how"), WAYS)
@pytest.mark.parametrize(("name", "call"), MIDST)
def test_the_last_finished_update_is_saved_and_resumed(
    command: list[str],
    finished_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    call: int,
    number: signal.Signals,
    how: str,
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        strike_at_step(patched, name, call, number)
        seconds = SHORT if number == signal.SIGSTOP else USUAL
        error, resume = fails([*command, NO_RESTART, f"env.{name}.timeouts.step_s={seconds}"], capsys)
    assert f"error: {name} environments 0-" in error
    assert how in error
    run = only_run(tmp_path)
    assert saved_steps(run) == [2]
    assert f"Checkpoint: {checkpoint(run, 2)}\n" in error
    assert same_weights(checkpoint(run, 2), checkpoint(finished_run, 2))
    assert [line["step"] for line in metrics(run)] == [1, 2]

    assert main([*resume, f"env.{name}.timeouts.step_s={USUAL}"]) == 0
    assert same_weights(checkpoint(run, 4), checkpoint(finished_run, 4))
    assert metrics(run)[2:] == metrics(finished_run)[2:]


def strike_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill the training simulators while the first evaluation runs."""
    original = LocalEngine.evaluate

    def struck(self: LocalEngine, *args: Any, **kwargs: Any) -> Any:
        assert isinstance(self.rollouts._stages[0].env, RemoteVecEnv)
        strike(self.rollouts._stages[0].env, signal.SIGKILL)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LocalEngine, "evaluate", struck)


@pytest.mark.full
def test_training_simulators_that_die_between_rollouts_cost_no_update(
    command: list[str], finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        strike_in_evaluation(patched)
        error, resume = fails([*command, NO_RESTART], capsys)
    assert "error: train environments 0-5" in error
    run = only_run(tmp_path)
    assert saved_steps(run) == [2]
    assert metrics(run) == metrics(finished_run)[:2]
    assert main(resume) == 0
    assert same_weights(checkpoint(run, 4), checkpoint(finished_run, 4))


@pytest.mark.parametrize("interval", [pytest.param(-1, marks=pytest.mark.full), 2])
def test_where_their_state_died_with_them_episodes_begin_anew(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], interval: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        strike_in_evaluation(patched)
        error, resume = fails([*command, NO_RESTART, *OVER_EPOCHS, f"runner.save_interval={interval}"], capsys)
    assert "The checkpoint of step 2 holds no simulator state" in error
    run = only_run(tmp_path)
    assert saved_steps(run) == [2]
    state = load_file(checkpoint(run, 2) / TENSORS)
    assert not any(name.startswith("simulator.") for name in state)
    assert main(resume) == 0
    assert f"{checkpoint(run, 2)} holds no simulator state" in capsys.readouterr().err
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4]
    assert [line["env/total_steps"] for line in metrics(run)] == [6 * 8 * (i + 1) for i in range(4)]


@pytest.fixture(scope="module")
def run_over_epochs(start_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `finished_run`, with episodes that go on over rollouts."""
    run = tmp_path_factory.mktemp("over_epochs")
    assert train(mlp_experiment(*OVER_EPOCHS, f"actor.model.model_path={start_model}"), run)
    return run


@pytest.mark.parametrize(("number", "how"), WAYS)
@pytest.mark.parametrize(("name", "call"), MIDST)
@pytest.mark.parametrize("over_epochs", [pytest.param(False, marks=pytest.mark.full), True])
def test_simulators_are_started_again_and_nothing_differs(
    command: list[str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    call: int,
    number: signal.Signals,
    how: str,
    over_epochs: bool,
) -> None:
    undisturbed = request.getfixturevalue("run_over_epochs" if over_epochs else "finished_run")
    call, more = (2 * 2 + 2, OVER_EPOCHS) if over_epochs and name == "train" else (call, OVER_EPOCHS * over_epochs)
    with pytest.MonkeyPatch.context() as patched:
        strike_at_step(patched, name, call, number)
        seconds = SHORT if number == signal.SIGSTOP else USUAL
        assert main([*command, *more, f"env.{name}.timeouts.step_s={seconds}"]) == 0
    warning = capsys.readouterr().err
    assert how in warning
    assert "runner.max_restarts: 1 of 3" in warning
    assert "anew:" not in warning
    run = only_run(tmp_path)
    assert metrics(run) == metrics(undisturbed)
    assert same_weights(checkpoint(run, 4), checkpoint(undisturbed, 4))


@pytest.mark.full
def test_videos_of_an_evaluation_are_whole(command: list[str], tmp_path: Path) -> None:
    folders = []
    for struck in (False, True):
        with pytest.MonkeyPatch.context() as patched:
            if struck:
                strike_at_step(patched, "eval", 2, signal.SIGKILL)
            assert main([*command, "env.eval.video_cfg.save_video=true", "runner.max_epochs=2"]) == 0
        run = max((tmp_path / "logs" / "regrasp").iterdir())
        videos = sorted((run / "evaluations").rglob("*.mp4"))
        folders.append({str(file.relative_to(run)): file.read_bytes() for file in videos})
    assert len(folders[0]) > 1
    assert folders[0] == folders[1]


def test_episodes_whose_state_died_between_rollouts_begin_anew(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        strike_in_evaluation(patched)
        assert main([*command, *OVER_EPOCHS, "runner.save_interval=2"]) == 0
    warning = capsys.readouterr().err
    assert "The checkpoint of step 2 holds no simulator state" in warning
    assert "the episodes that were under way begin anew" in warning
    run = only_run(tmp_path)
    assert saved_steps(run) == [2, 4]
    assert [line["env/total_steps"] for line in metrics(run)] == [6 * 8 * (i + 1) for i in range(4)]


@pytest.mark.full
def test_simulators_that_always_fail_end_the_run(
    command: list[str], finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        begin_step = RemoteVecEnv.begin_step
        calls = 0

        def struck(self: RemoteVecEnv, actions: torch.Tensor) -> None:
            nonlocal calls
            calls += self._workers[0].name.startswith("train")
            if calls > 3 + 1 and self._workers[0].name.startswith("train"):
                strike(self, signal.SIGKILL)
            begin_step(self, actions)

        patched.setattr(RemoteVecEnv, "begin_step", struck)
        error, resume = fails([*command, "runner.max_restarts=2"], capsys)
    assert error.count("Its simulators were started anew") == 2
    run = only_run(tmp_path)
    assert saved_steps(run) == [1]
    assert main(resume) == 0
    assert same_weights(checkpoint(run, 4), checkpoint(finished_run, 4))


def test_a_simulator_that_never_starts_leaves_nothing(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "env.eval.timeouts.startup_s=0.001"]) == 3
    error = capsys.readouterr().err
    assert "eval environments 0-2" in error
    assert "To continue" not in error
    assert not list(tmp_path.glob("logs/**/*"))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("env.eval.init_params.id=Regrasp-Pick-Cub-v0", "env.eval.init_params.id"),
        ("env.eval.mapping.states=[gripper_positoin]", "env.eval.mapping.states[0]"),
        ("env.eval.mapping.states=[gripper_position]", "env.eval.mapping.states"),
        ("env.eval.mapping.action_mapping.suffix_pad=1", "env.eval.mapping.action_mapping"),
    ],
)
def test_a_mistake_in_the_evaluation_is_told_before_training(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    key: str,
) -> None:
    monkeypatch.setattr(LocalEngine, "collect", None)
    assert main([*command, change]) == 2
    assert f"{key}\n" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()) or not list((tmp_path / "logs" / "regrasp").iterdir())
