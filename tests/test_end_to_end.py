"""`regrasp quickstart` as a user calls it, at toy size: interrupted, continued, called again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import regrasp
from regrasp.cli.main import main
from regrasp.models.registry import load_policy

TOY = (
    "runner.max_epochs=4",
    "runner.save_interval=100",
    "runner.val_check_interval=4",
    "runner.force=true",
    "pretrain.tasks=[Regrasp-Pick-Cube-v0]",
    "pretrain.num_scenes=40",
    "pretrain.steps=2",
    "pretrain.batch_size=8",
    "pretrain.max_median_error_cm=100",
    "pretrain.architecture.vision_width=24",
    "pretrain.architecture.language_width=24",
    "pretrain.architecture.head_width=24",
    "pretrain.architecture.head_layers=2",
    "collect.num_demos=2",
    "sft.steps=3",
    "sft.batch_size=16",
    "sft.warmup_steps=1",
    "env.train.total_num_envs=4",
    "env.eval.total_num_envs=4",
    "env.train.num_workers=1",
    "env.eval.num_workers=1",
    "env.eval.num_episodes=4",
    "actor.global_batch_size=20",
    "actor.micro_batch_size=20",
    "algorithm.rollout_epoch=1",
    "algorithm.critic_only_steps=3",
    "algorithm.replay_buffer.min_decisions=20",
)
PROGRAM = """
import sys
from regrasp.cli.main import main
from regrasp.stages import pretrain
pretrain._NUM_VALIDATION = 60
sys.exit(main(sys.argv[1:]))
"""
"""The command, with fewer scenes that judge a backbone than the 1000 that a real one is judged by."""
STAGES = ("pretrain", "collect", "sft", "evaluate_base", "train", "evaluate_finetuned")


def interrupted_after(pattern: str, command: list[str]) -> tuple[int, str]:
    """Exit code and output of a process that got SIGINT when a line matched."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *command],
        env={**os.environ, "PYTHONPATH": str(Path(regrasp.__file__).parents[1]), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if re.search(pattern, line):
            process.send_signal(signal.SIGINT)
            break
    rest, _ = process.communicate(timeout=60)
    return process.returncode, printed + rest


@pytest.mark.slow
def test_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    output = tmp_path / "run"
    command = ["quickstart", "--seed", "3", "--output", str(output), *TOY]
    code, printed = interrupted_after(r"^\s+1/4 ", command)
    assert code == 130, printed
    assert "Traceback" not in printed
    assert not (output / "summary.json").exists()

    code = main(command)
    printed = "".join(capsys.readouterr())
    assert code == 0, printed
    assert printed.count("done before") == 4
    assert "differs" not in printed
    rows = [json.loads(line) for line in (output / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert any((tmp_path / "cache" / "regrasp" / "backbones").iterdir())
    _check_summary(output)
    _check_report(output)

    before = (output / "summary.json").read_text()
    assert main(command) == 0
    assert "".join(capsys.readouterr()).count("done before") == len(STAGES)
    assert (output / "summary.json").read_text() == before

    assert main([*command, "actor.optim.lr=1e-6"]) == 2
    assert "other settings" in capsys.readouterr().err


def _check_summary(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["seed"] == 3
    assert summary["task"] == "Regrasp-Pick-Cube-v0"
    for name in ("base", "finetuned"):
        assert summary[name]["episodes"] == 4
        low, high = summary[name]["ci95"]
        assert 0 <= low <= summary[name]["success"] <= high <= 1
        evaluation = json.loads((run / f"evaluate_{name}" / "evaluation.json").read_text())
        assert evaluation == summary[name]
    assert tuple(summary["stage_seconds"]) == STAGES
    assert all(seconds >= 0 for seconds in summary["stage_seconds"].values())
    assert summary["total_seconds"] == pytest.approx(sum(summary["stage_seconds"].values()), abs=0.1)
    assert tuple(summary["stage_cpu_seconds"]) == STAGES
    assert 1 < summary["stage_cpu_seconds"]["train"] < summary["total_cpu_seconds"]
    assert {"regrasp", "python", "torch", "transformers", "mujoco-core"} <= summary["versions"].keys()
    assert load_policy(summary["model"]).spec.action_dim == 4
    assert summary["command"].startswith("regrasp quickstart --seed 3 ")


def _check_report(run: Path) -> None:
    page = (run / "report.html").read_text()
    summary = json.loads((run / "summary.json").read_text())
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"'#]+)""", page)
    assert links
    assert all(link.startswith("data:") for link in links), "nothing is loaded from elsewhere"
    assert len(summary["videos"]) == 8
    assert page.count("data:video/mp4;base64,") == 8
