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
from regrasp.stages.report import report_run


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
    assert "Scripted expert" in page
    assert ">Base<" not in page


@pytest.mark.parametrize(
    ("name", "problem"),
    [("", "nothing to report"), ("nowhere", "no such folder"), ("metrics.jsonl", "a file, not the folder")],
)
def test_of_something_else(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    with pytest.raises(UserError, match=problem) as caught:
        report_run(tmp_path / name, tmp_path / "report.html")
    assert caught.value.file == str(tmp_path / name)
    assert not (tmp_path / "report.html").exists()


SUMMARY = {"success": 0.5, "ci95": [0.1, 0.9], "episodes": 2, "per_instruction": {"pick": [1, 2]}, "measures": {}}
VIDEO = {"file": "v.mp4", "instruction": "pick", "success": True, "group": "base", "seed": 1}
QUICKSTART = {
    "task": "t",
    "seed": 0,
    "base": SUMMARY,
    "finetuned": SUMMARY,
    "stage_seconds": {"train": 1.0},
    "videos": [VIDEO],
    "versions": {"regrasp": "1"},
    "command": "regrasp quickstart",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A quickstart's folder, which is also an evaluation's."""
    folder = tmp_path / "run"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "metrics.jsonl").write_text('{"step": 1, "env/success_once": 0.5}\n')
    (folder / "config.yaml").write_text("runner: {seed: 1}\nactor: {seed: 2}\n")
    (folder / "command.txt").write_text("regrasp play\n")
    (folder / "evaluation.json").write_text(json.dumps(SUMMARY))
    (folder / "episodes.jsonl").write_text(json.dumps({**VIDEO, "episode": 0}) + "\n")
    (folder / "summary.json").write_text(json.dumps(QUICKSTART))
    (folder / "v.mp4").write_bytes(b"video")
    return folder


@pytest.mark.parametrize("content", [b"{\377", b"", b"[]", b"[" * 100_000, b'{"seed": 1}'])
@pytest.mark.parametrize("name", ["summary.json", "config.yaml", "evaluation.json", "episodes.jsonl"])
def test_a_damaged_file_of_a_run_is_named(run: Path, name: str, content: bytes) -> None:
    if name != "summary.json":
        (run / "summary.json").unlink()
    if name == "episodes.jsonl" and not content:
        return  # an evaluation without episodes
    (run / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        report_run(run, run / "report.html")
    assert str(run / name) in str(caught.value.file)
    assert caught.value.fix


@pytest.mark.parametrize("file", ["../secret.mp4", "/etc/hostname", "link.mp4", "config.yaml", "v\0.mp4"])
def test_only_a_video_of_the_run_is_put_into_its_page(run: Path, file: str) -> None:
    (run.parent / "secret.mp4").write_text("secret")
    (run / "link.mp4").symlink_to(run.parent / "secret.mp4")
    assert page_of(run)
    (run / "summary.json").write_text(json.dumps({**QUICKSTART, "videos": [{**VIDEO, "file": file}]}))
    with pytest.raises(UserError, match="Not a video of this run") as caught:
        report_run(run, run / "report.html")
    assert caught.value.file == str(run / "summary.json")


@pytest.mark.parametrize(
    "change", [{"success": 1.5}, {"episodes": "2"}, {"per_instruction": {"pick": [3, 2]}}, {"ci95": [0.1]}]
)
def test_an_evaluation_that_cannot_be_is_refused(run: Path, change: dict[str, object]) -> None:
    (run / "summary.json").unlink()
    (run / "evaluation.json").write_text(json.dumps(SUMMARY | change))
    with pytest.raises(UserError) as caught:
        report_run(run, run / "report.html")
    assert caught.value.file == str(run / "evaluation.json")
