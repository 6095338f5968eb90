"""Completion in a real shell, the help of a bare command, and names that other tools have for flags."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from regrasp.cli.completion import SHELLS
from regrasp.cli.main import COMMANDS, main


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


def completed(file: Path, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    line = f"source {file}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
    line += "$(complete -p regrasp | sed 's/.*-F \\([^ ]*\\).*/\\1/') regrasp; printf '%s\\n' \"${COMPREPLY[@]}\""
    answer = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, cwd=file.parent)
    return sorted(text.strip() for text in answer.stdout.splitlines())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_commands_flags_experiments_tasks_and_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "regrasp.bash"
    file.write_text(script("bash", capsys))
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "outputs").mkdir()
    assert completed(file, "regrasp", "pl") == ["play"]
    assert {*completed(file, "regrasp", "''")} >= set(COMMANDS)
    assert completed(file, "regrasp", "train", "--max_it") == ["--max_iterations"]
    assert completed(file, "regrasp", "play", "--config_name", "pick_cube_ppo_m") == ["pick_cube_ppo_mlp"]
    assert completed(file, "regrasp", "play", "--config_name", "mi") == ["mine.yaml"]
    assert completed(file, "regrasp", "sft", "--task", "Regrasp-St") == ["Regrasp-Stack-Cube-v0"]
    assert completed(file, "regrasp", "sft", "--data", "out") == ["outputs"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shells_read_it(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    assert all(command in text for command in COMMANDS)
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    (tmp_path / "script").write_text(text)
    subprocess.run([shell, "-n", "script"], check=True, cwd=tmp_path)


def test_a_bare_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: regrasp")
    assert all(command in printed for command in COMMANDS)


def test_headless_takes_the_window_that_an_experiment_asks_for(capsys: pytest.CaptureFixture[str]) -> None:
    lab = ["train", "--dry_run", "--config_name", "isaaclab_stack_cube_ppo_groot", "env.isaaclab.headless=false"]
    shown = {}
    for flags in ([], ["--headless"]):
        assert main([*lab, *flags]) == 0
        envs = yaml.safe_load(capsys.readouterr().out)["env"]
        shown[len(flags)] = {envs[name]["init_params"]["headless"] for name in ("train", "eval")}
    assert shown == {0: {False}, 1: {True}}
    assert main(["train", "--dry_run", "--config_name", "pick_cube_ppo_mlp", "--headless"]) == 0
    assert "[WARN]" not in capsys.readouterr().err
