"""Several runs on one page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_toys import mlp_experiment

from regrasp.cli.main import main
from regrasp.logging.intervals import wilson_interval


def make_run(folder: Path, learning_rate: float, success: float, *, base: bool = True, steps: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(mlp_experiment(f"actor.optim.lr={learning_rate}").to_yaml())
    rows = (
        [{"step": 0, "eval/success_once": 0.25, "eval/num_trajectories": 40.0, "env/total_steps": 0.0}] if base else []
    )
    for step in range(1, 5):
        row = {
            "step": step,
            "env/success_once": success * step / 4,
            "env/height": learning_rate * step,
            "time/step": 2.0,
        }
        if steps:
            row["env/total_steps"] = 100.0 * step
        if step % 2 == 0:
            row |= {"eval/success_once": success * step / 4, "eval/num_trajectories": 40.0, "time/eval": 1.0}
        rows.append(row | {"env/still": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_runs_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / f"lr_{rate}" / "train", rate, success) for rate, success in ((0.1, 0.5), (0.01, 0.9))]
    assert main(["compare", *map(str, runs), "--output", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in printed[1:3]] == ["lr_0.1", "lr_0.01"]
    low, high = wilson_interval(36, 40)
    assert f"90.0% [{100 * low:.1f}, {100 * high:.1f}]" in printed[2]
    assert printed[2].split()[-2:] == ["400", "0:10"]
    page = (tmp_path / "page.html").read_text()
    text = " ".join(page.split())
    assert f'90.0 % <span class="muted small">{100 * low:.1f} % to {100 * high:.1f} %, 40 episodes</span>' in text
    assert "25.0 %" in text
    assert '<td data-title="Key">actor.optim.lr</td>' in text
    assert 'data-title="lr_0.1">0.1</td>' in text
    assert "runner.max_epochs" not in page
    assert "var(--run1)" in page
    assert "var(--run2)" in page
    assert "var(--run3)" not in page[page.index("<main") :]
    assert "<h3>height</h3>" in page
    assert "<h3>still</h3>" not in page
    assert "<script" not in page
    assert page.count("environment steps") == 3


def test_runs_that_cannot_share_an_axis_are_drawn_by_updates(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", 0.1, 0.5), make_run(tmp_path / "b", 0.1, 0.6, base=False, steps=False)]
    assert main(["compare", *map(str, runs), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "environment steps" not in page
    assert "None, but for where the runs write." in page


def test_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(make_run(tmp_path / "a", 0.1, 0.5))
    for arguments, said in (
        ([run], "One run has nothing to be compared with"),
        ([run, run], "A run is given twice"),
        ([run, str(tmp_path / "no")], "There is no such folder"),
    ):
        assert main(["compare", *arguments, "--output", str(tmp_path / "page.html")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
