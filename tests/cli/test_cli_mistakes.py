"""A user's mistake: exit code 2, what is wrong and where, and no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from regrasp.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --config_name pick_cub", ["'pick_cub'", "--config_name", "pick_cube_ppo_groot"]),
        ("train --config_name pick_cube_ppo_groot", ["actor.model.model_path", "--model_path"]),
        ("train --model_path no/such/folder", ["no/such/folder", "actor.model.model_path"]),
        ("play --model_path no/such/folder", ["no/such/folder", "actor.model.model_path"]),
        ("train --logger tensorbord", ["'tensorbord'", "'tensorboard'"]),
        ("train --num_envs 0", ["total_num_envs", "command line"]),
        ("play --num_episodes 0", ["env.eval.num_episodes", "command line"]),
        ("train --dry_run algorithm.update_epochs=2", ["algorithm.update_epochs", "algorithm.update_epoch"]),
        ("train nonsense", ["'nonsense'", "key=value"]),
        ("sft --config_name pick_cube_ppo_mlp sft=null", ["'sft'"]),
        ("collect --num_demos 0", ["collect.num_demos"]),
        ("report no/such/folder", ["no/such/folder"]),
        ("export --model_path no/such/folder --output out", ["no/such/folder", "--model_path"]),
    ],
)
def test_mistakes_are_named(
    arguments: str,
    message: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("\nerror: ")
    assert all(part in captured.err for part in message), captured.err
    assert not list(tmp_path.iterdir()), "a run that cannot start leaves nothing behind"


def test_the_references_script_prints_no_traceback(tmp_path: Path):
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "train.py", "--config_name", "pick_cub", "--model_path", "base"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("\nerror: No configuration is called 'pick_cub'")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
