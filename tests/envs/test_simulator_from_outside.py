"""The simulator of docs/tasks.md, as a package of its own: it plays, is demonstrated and trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outside_packages import code_blocks, install
from regrasp.cli.main import main
from regrasp.data.lerobot import DemonstrationDataset

SIMULATOR, OURS, *_ = code_blocks("tasks.md", "simulator tutorial", "python")
PROJECT, *_ = code_blocks("tasks.md", "simulator tutorial", "toml")
EXPERIMENT, *_ = code_blocks("tasks.md", "simulator tutorial", "yaml")
SMALL = (
    "env.train.total_num_envs=32",
    "env.train.num_workers=1",
    "env.eval.total_num_envs=8",
    "env.eval.num_workers=1",
)


def test_it_plays_is_demonstrated_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", {"line_world": SIMULATOR, "line_world_env": OURS}, PROJECT, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")  # for its processes, as if it were installed
    monkeypatch.chdir(tmp_path)
    (tmp_path / "line_ppo_mlp.yaml").write_text(EXPERIMENT)
    sizes = ["env.eval.num_episodes=8", "actor.global_batch_size=96", "actor.micro_batch_size=96"]
    chosen = ["--config_name", "line_ppo_mlp.yaml", *SMALL, *sizes, "runner.logger.logger_backends=[]"]
    assert main(["play", *chosen, "--policy", "expert"]) == 0
    (evaluation,) = tmp_path.glob("logs/regrasp/eval/*/evaluation.json")
    assert json.loads(evaluation.read_text())["success"] == 1.0
    assert main(["collect", *chosen, "--num_demos", "3"]) == 0
    assert DemonstrationDataset(tmp_path / "demos").num_episodes == 3
    assert main(["train", *chosen, "--max_epochs", "2"]) == 0
    (run,) = tmp_path.glob("logs/regrasp/2*")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert lines[-1]["rollout/decisions"] > 0
    (tmp_path / "imitating.yaml").write_text(f"{EXPERIMENT}\nsft: {{}}\n")
    algorithm = ("adv_type=self_imitation", "loss_type=imitation", "demo_buffer.load_path=demos")
    given = [*chosen, *(f"algorithm.{item}" for item in algorithm), "actor.model.add_value_head=false"]
    given[given.index("line_ppo_mlp.yaml")] = "imitating.yaml"
    assert main(["train", *given, "--max_epochs", "3", f"runner.logger.log_path={tmp_path / 'imitating'}"]) == 0
    (imitating,) = tmp_path.glob("imitating/*")
    lines = [json.loads(line) for line in (imitating / "metrics.jsonl").read_text().splitlines()]
    assert {line["train/demo_buffer/share"] for line in lines} == {0.5}
    assert all(line["train/imitation/kept"] > 0 for line in lines)
