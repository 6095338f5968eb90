"""`--multirun`: a run for every combination, a table and a page."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from run_toys import SMALL

from regrasp.cli import sweep
from regrasp.cli.main import main


def test_combinations_are_hydras(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [job.name for job in sweep._jobs(["a.b=1,2", "c=x", "d=range(0,2)"])]
    assert names == ["a.b=1 d=0", "a.b=1 d=1", "a.b=2 d=0", "a.b=2 d=1"]
    assert all("c=x" in job.overrides for job in sweep._jobs(["a.b=1,2", "c=x"]))
    assert [job.overrides for job in sweep._jobs(["a=[1,2],[3]", "+b='u,v'"])] == [
        ("a=[1,2]", "+b='u,v'"),
        ("a=[3]", "+b='u,v'"),
    ]


@pytest.mark.full
def test_a_sweep_of_two_runs(
    tmp_path: Path, start_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--config_name", "pick_cube_ppo_mlp", "--model_path", str(start_model)]
    arguments = [*model, "-m", "actor.optim.lr=1e-3,1e-4", *SMALL, "runner.max_epochs=2"]
    assert main(["train", *arguments]) == 0
    printed = capfd.readouterr().out
    (folder,) = Path("logs/regrasp").iterdir()
    runs = sorted(path for path in folder.iterdir() if path.is_dir())
    rates = [yaml.safe_load((run / "config.yaml").read_text())["actor"]["optim"]["lr"] for run in runs]
    assert rates == [1e-3, 1e-4]
    table = printed[printed.rindex("run  ") :].splitlines()
    assert [line.split()[0] for line in table[1:3]] == ["actor.optim.lr=0.001", "actor.optim.lr=0.0001"]
    assert "actor.optim.lr" in (folder / "compare.html").read_text()


def test_what_a_sweep_refuses_before_its_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["train", "--config_name", "pick_cube_ppo_mlp", "-m"]
    for override, said in (
        ("runner.seed=1", "Nothing is varied"),
        ("actor.optim.lr=1e-3,-1", "actor.optim.lr"),
        ("runner.sed=1,2", "runner.sed"),
    ):
        assert main([*model, override]) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_a_sweep_rehearses_each_and_goes_on_after_one_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = ["train", "--config_name", "pick_cube_ppo_mlp", "-m", "--dry_run"]
    assert main([*sweep, "runner.seed=1,2"]) == 0
    shown = capsys.readouterr()
    lines = [line for line in shown.out.splitlines() if line.startswith("  regrasp train")]
    assert lines == [f"  regrasp train --config_name pick_cube_ppo_mlp --dry_run runner.seed={seed}" for seed in (1, 2)]
    assert [shown.out.count(text) for text in ("# Summary", "\nrunner:\n", "== 2 of 2: runner.seed=2")] == [2, 1, 1]

    assert main([*sweep, "actor.model.model_path=null,absent", "actor.optim.lr=-1,1e-3"]) == 2
    shown = capsys.readouterr()
    assert shown.out.count("# Summary") == 2
    assert shown.err.count("error: Invalid value: actor.optim.lr") == 2
    assert shown.err.count("The folder does not exist.") == 1
    refused = [f"  actor.model.model_path={folder} actor.optim.lr=-1" for folder in ("null", "absent")]
    assert shown.err.splitlines()[-3:] == ["2 of 4 runs would be refused:", *refused]
    assert not list(tmp_path.iterdir())
