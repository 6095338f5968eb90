"""`regrasp train` from the outside: what a run says, what it leaves, and how it goes on."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from run_toys import SMALL, saved_steps

from regrasp import load_policy
from regrasp.cli.main import main
from regrasp.engine.local import LocalEngine
from regrasp.models.origin import read_origin
from regrasp.rollout.episodes import EpisodeResult
from regrasp.runner.guards import SignalGuard
from regrasp.runner.run_folder import resume_command


@pytest.fixture
def arguments(start_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A small run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    experiment = ["--config_name", "pick_cube_ppo_mlp", "--model_path", str(start_model)]
    return ["train", *experiment, *SMALL, "runner.val_check_interval=-1", "runner.max_epochs=2"]


def only_run(folder: Path) -> Path:
    (run,) = (folder / "logs" / "regrasp").iterdir()
    return run


def test_a_finished_run_says_where_its_model_is(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--run_name", "two words"]) == 0
    run = only_run(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    model = Path(next(line for line in lines if line.startswith("Model: ")).removeprefix("Model: "))
    assert model == run / "small" / "checkpoints" / "global_step_2" / "model"
    assert (model / "config.json").is_file()
    assert read_origin(model).tasks == ("Regrasp-Pick-Cube-v0",)
    report = next(line for line in lines if line.startswith("Report: ")).removeprefix("Report: ")
    assert main(shlex.split(report)[1:]) == 0
    assert shlex.split((run / "command.txt").read_text()) == ["regrasp", *arguments, "--run_name", "two words"]
    assert "regrasp train --config_name pick_cube_ppo_mlp" in (run / "report.html").read_text()

    before = sorted(run.rglob("*"))
    capsys.readouterr()
    assert main([*arguments, "runner.max_epochs=3", "--resume_dir", str(run), "actor.optim.lr=3e-3", "--dry_run"]) == 0
    assert "actor.optim.lr was" in (told := capsys.readouterr().err)
    assert "runner.max_epochs was 2 and is 3" in told
    assert main([*arguments, "--resume_dir", str(run), "--dry_run"]) == 0
    assert "This run is finished" in capsys.readouterr().out
    assert main([*arguments, "runner.max_epochs=3", "--resume_dir", str(run), "env.train.total_num_envs=5"]) == 2
    printed = capsys.readouterr()
    assert "env.train.total_num_envs was 6 and is 5" in printed.err
    continued = shlex.join(["regrasp", *arguments, "--resume_dir", str(run)])
    assert f"With the run's own settings: {continued}\n" in printed.err
    assert sorted(run.rglob("*")) == before
    assert main([*arguments, "--resume_dir", "logs"]) == 2
    assert run.name in capsys.readouterr().err


def test_an_interrupted_run_prints_the_command_that_continues_it(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    collect, count = LocalEngine.collect, 0

    def interrupted(self: LocalEngine, *args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return collect(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(LocalEngine, "collect", interrupted)
        assert main(arguments) == 130
    run = only_run(tmp_path)
    assert saved_steps(run) == [1]
    error = capsys.readouterr().err
    assert f"Checkpoint: {run / 'small' / 'checkpoints' / 'global_step_1'}\n" in error
    command = shlex.split(error.partition("To continue: ")[2].splitlines()[0])
    assert command[0] == "regrasp"
    assert main(command[1:]) == 0
    assert saved_steps(run) == [1, 2]
    assert only_run(tmp_path) == run


def test_a_run_that_sees_no_signal_prints_the_command_that_goes_on_all_the_same(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    after_rollout = SignalGuard.after_rollout

    def hopeless(self: SignalGuard, episodes: Sequence[EpisodeResult], **found: Any) -> None:
        failed = EpisodeResult(0, "do it", False, 0.0, 5, {})
        after_rollout(self, [*episodes, *[failed] * 64] if self._signal.episodes else episodes, **found)

    monkeypatch.setattr(SignalGuard, "after_rollout", hopeless)
    assert main([*arguments, "runner.force=false"]) == 4
    run = only_run(tmp_path)
    assert saved_steps(run) == [1]
    error = capsys.readouterr().err
    assert "None of the first" in error
    command = shlex.split(error.partition("To continue: ")[2].splitlines()[0])
    assert main(command[1:]) == 0
    assert "Continuing because runner.force is true" in capsys.readouterr().err
    assert saved_steps(run) == [1, 2]


def test_a_checkpoint_is_found_by_the_task(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Isaac Lab spells it: `--checkpoint PATH|latest|best`, in `train` and in `play`."""
    evaluate = [*arguments[1:], "env.eval.num_episodes=2"]
    assert main(["play", *evaluate, "--checkpoint", "latest"]) == 2
    assert "no checkpoint of a run of this task" in capsys.readouterr().err
    assert main([*arguments, "runner.val_check_interval=1"]) == 0
    run = only_run(tmp_path)
    steps = run / "small" / "checkpoints"

    def evaluated(name: str) -> str:
        capsys.readouterr()
        assert main(["play", *evaluate, "--checkpoint", name]) == 0
        return capsys.readouterr().out

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum("eval/success_once" in line for line in lines) == 2
    for line in lines:
        if "eval/success_once" in line:
            line["eval/success_once"] = {1: 0.5, 2: 0.25}[line["step"]]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert f"Checkpoint: {steps / 'global_step_2'}" in evaluated("latest")
    assert f"Checkpoint: {steps / 'global_step_1'}" in evaluated("best")
    evaluated(str(steps / "global_step_1"))

    assert main([*arguments, "--checkpoint", "latest", "runner.max_epochs=3"]) == 0
    assert saved_steps(run) == [1, 2, 3]
    assert main([*arguments, "--checkpoint", "latest", "--resume_dir", str(run)]) == 2
    assert "--resume_dir, which mean the same" in capsys.readouterr().err


def test_rlinfs_key_and_folder_of_weights(
    arguments: list[str], finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = load_policy(next(finished_run.rglob("global_step_4")) / "model").state_dict()
    weights = tmp_path / "rlinf" / "global_step_10" / "actor" / "model_state_dict" / "full_weights.pt"
    weights.parent.mkdir(parents=True)
    torch.save({f"module.{name}": tensor for name, tensor in trained.items()}, weights)
    key = f"runner.ckpt_path={weights}"
    assert main([*arguments, key, "runner.only_eval=true", "env.eval.num_episodes=2"]) == 0
    assert main(["play", *arguments[1:], "--rl_model_path", str(weights.parents[2]), "env.eval.num_episodes=2"]) == 0
    first, second = (tmp_path / "logs" / "regrasp" / "eval").glob("*/episodes.jsonl")
    assert first.read_text() == second.read_text()
    capsys.readouterr()
    assert main([*arguments, key]) == 2
    assert "runner.ckpt_path" in (error := capsys.readouterr().err)
    assert "regrasp export --rl_model_path" in error
    assert main([*arguments, "--resume_dir", str(weights.parents[2])]) == 2
    assert "another tool, such as RLinf" in (error := capsys.readouterr().err)
    assert "a new value head starts" in error
    assert main(["play", *arguments[1:], "runner.ckpt_path=/no/such"]) == 2
    assert "No full_weights.pt here" in capsys.readouterr().err


def test_the_folder_of_a_run_stands_for_its_newest_model(
    arguments: list[str], finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = next(finished_run.rglob("global_step_4"))
    told = f"[INFO] The newest checkpoint of {finished_run}: {newest}\n"
    evaluate = ["play", *arguments[1:], "env.eval.num_episodes=2"]
    for option in ("--rl_model_path", "--model_path"):
        for place in (finished_run, newest):
            assert main([*evaluate, option, str(place)]) == 0
            assert (told in capsys.readouterr().out) == (place == finished_run)
    first, *others = (file.read_text() for file in (tmp_path / "logs").rglob("episodes.jsonl"))
    assert others == [first] * 3
    # What trains is asked for the model itself: a run that is to go on is given by --resume_dir.
    assert main([*arguments, "--model_path", str(finished_run)]) == 2
    assert told not in capsys.readouterr().out


def test_an_evaluation_that_is_refused_leaves_no_folder(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.pt"
    torch.save({"of.another.model": torch.ones(1)}, weights)
    assert main(["play", *arguments[1:], "--rl_model_path", str(weights)]) == 2
    printed = capsys.readouterr()
    assert "[INFO] Logging to: " in printed.out
    assert "do not fit the base model" in printed.err
    assert [*tmp_path.rglob("*")] == [weights], "no file, and no empty folder"


def test_the_command_that_continues_names_the_run_once() -> None:
    given = ["train", "--resume_dir", "old run", "a=1", "--resume_dir=x", "runner.resume_dir=y", "--num_envs", "4"]
    given += ["--checkpoint", "latest", "--checkpoint=best", "--run_name", "one", "--run_name=two"]
    command = resume_command(given, Path("the run"))
    run = str(Path("the run").absolute())
    assert shlex.split(command) == ["regrasp", "train", "a=1", "--num_envs", "4", "--resume_dir", run]
