"""The report page of each kind of run folder."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from run_toys import mlp_experiment

from regrasp.errors import UserError
from regrasp.experiment.load import load_config
from regrasp.stages.play import PlayOptions, play
from regrasp.stages.report import report_run, versions


def page_of(run: Path) -> str:
    page = report_run(run, run / "report.html").read_text()
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"'#]+)""", page)
    assert all(link.startswith("data:") for link in links), "nothing is loaded from elsewhere"
    return page


def test_of_a_training_run(finished_run: Path, tmp_path: Path) -> None:
    shutil.copy(finished_run / "metrics.jsonl", tmp_path)
    (tmp_path / "config.yaml").write_text(mlp_experiment("runner.seed=42").to_yaml())
    assert "regrasp report" not in page_of(tmp_path)
    (tmp_path / "command.txt").write_text("regrasp train --seed 42\n")
    page = page_of(tmp_path)
    assert '<pre class="wrap">regrasp train --seed 42</pre>' in page
    assert re.search(r"[Ss]eed[^0-9]{0,30}42", page)
    assert "<svg" in page or "data:image" in page, "learning curves"


def test_of_an_evaluation(tmp_path: Path) -> None:
    loaded = load_config(
        "pick_cube_ppo_groot",
        [
            "env.eval.total_num_envs=2",
            "env.eval.num_workers=1",
            "env.eval.num_episodes=3",
            "env.eval.video_cfg.save_video=true",
        ],
    )
    result = play(loaded, tmp_path, PlayOptions(kind="expert", num_videos=2))
    (tmp_path / "config.yaml").write_text(loaded.to_yaml())
    page = page_of(tmp_path)
    assert page.count("data:video/mp4;base64,") == 2
    assert re.search(rf"[Ss]eed[^0-9]{{0,30}}{loaded.config.seed}", page)
    for episode in result.episodes[:2]:
        assert episode.instruction in page
    assert "100.0 %" in page


def test_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="nothing to report"):
            report_run(folder, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_versions_are_those_of_what_is_installed() -> None:
    import torch

    assert versions()["torch"] == torch.__version__
    assert set(versions()) >= {"regrasp", "python", "torch", "transformers", "mujoco-core", "numpy"}
