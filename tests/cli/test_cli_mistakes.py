"""A user's mistake: exit code 2, what is wrong and where, and no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from regrasp.cli.main import main
from regrasp.errors import SimulatorError
from regrasp.stages import collect, convert, sft

ROOT = Path(__file__).resolve().parents[2]
LAB = "isaaclab_stack_cube_ppo_groot"


def flag(name: str) -> list[str]:
    """How a message names what was wrong on the command line."""
    return ["file:     command line", f"key:      {name}\n"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --config_name pick_cube_pp", ["'pick_cube_pp'", "--config_name", "pick_cube_ppo_groot"]),
        ("train --config_name pick_cube_ppo_groot", ["actor.model.model_path", "--model_path"]),
        ("train --model_path no/such/folder", ["no/such/folder", *flag("--model_path")]),
        ("play --model_path no/such/folder", ["no/such/folder", *flag("--model_path")]),
        ("train actor.model.model_path=no/such", ["no/such", *flag("actor.model.model_path")]),
        ("train --model_path base actor.model.model_path=no/such", ["no/such", "as --model_path says"]),
        ("train --max_epochs 3 runner.max_epochs=4", ["runner.max_epochs", "as --max_epochs says"]),
        ("train --config_name pick_cube_ppo_mlp --resume_dir no/such", ["no/such", *flag("--resume_dir")]),
        ("train --task No-Such-v0", ["'No-Such-v0'", *flag("--task")]),
        ("sft --data no/such", ["no/such", *flag("--data")]),
        ("play --policy zero --rl_model_path no/such", ["no/such", "fix:"]),
        ("train --logger tensorbord", ["'tensorbord'", "'tensorboard'"]),
        ("train --num_envs 0", flag("--num_envs")),
        ("play --num_episodes 0", flag("--num_episodes")),
        ("train actor.optim.lr 1e-5", ["has no value", "actor.optim.lr=..."]),
        ("train actor.optim.lr=[1", ["cannot be read: [1", "close brackets"]),
        ("train --dry_run algorithm.update_epochs=2", ["algorithm.update_epochs", "algorithm.update_epoch"]),
        ("train nonsense", ["'nonsense'", "key=value"]),
        ("sft --config_name pick_cube_ppo_mlp sft=null", ["'sft'"]),
        ("collect --num_demos 0", flag("--num_demos")),
        ("collect --policy human", ["'human'", "module:function", "key:      --policy\n"]),
        ("collect --policy no_such_module:act", ["no module 'no_such_module'", "key:      --policy\n"]),
        ("collect --policy json:act", ["json has no 'act'", "key:      --policy\n"]),
        ("collect --policy model", ["model is given", "--model_path"]),
        ("collect --model_path no/such", ["no/such", "key:      --model_path\n"]),
        ("collect --policy expert --model_path base", ["would not act", "--model_path"]),
        (f"collect --config_name {LAB}", ["no scripted expert", "--policy", "env.train.init_params.id"]),
        (f"convert --config_name {LAB}", ["No recording is given", "regrasp convert demos.hdf5"]),
        (f"convert no/such.hdf5 --config_name {LAB}", ["no such recording", "'no/such.hdf5'"]),
        (f"convert a.hdf5 --fps 0 --config_name {LAB}", ["key:      --fps\n"]),
        (f"convert a.hdf5 --config_name {LAB} env.train.isaaclab.sates=[x]", ["Unknown key", "states"]),
        ("convert a.hdf5", ["key:      env.train.env_type\n", "--config_name"]),
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
    assert not any(leak in captured.err for leak in ("None", "viable", "LexerNoViableAlt", "mismatched input"))
    assert not list(tmp_path.iterdir()), "a run that cannot start leaves nothing behind"


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ("train --config_name pick_cube_ppo_mlp runner.logger.log_path={}", "runner.logger.log_path"),
        ("train --config_name pick_cube_ppo_mlp --only_eval runner.logger.log_path={}", "runner.logger.log_path"),
        ("play --policy zero runner.logger.log_path={}", "runner.logger.log_path"),
        ("collect --output {}", "--output"),
        ("collect collect.output_dir={}", "collect.output_dir"),
        (f"convert a.hdf5 --config_name {LAB} --output {{}}", "--output"),
        (f"convert a.hdf5 --config_name {LAB} collect.output_dir={{}}", "collect.output_dir"),
        ("sft --data . --output {}", "--output"),
        ("pretrain --output {}", "--output"),
        ("quickstart --output {}", "--output"),
        ("report . --output {}/page.html", "--output"),
        ("export --model_path base --output {}", "--output"),
    ],
)
@pytest.mark.parametrize("place", ["file/below", "/proc/nope"])
def test_a_folder_that_cannot_be_written_is_refused_first(
    arguments: str,
    key: str,
    place: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").touch()  # so that the folder looks like a dataset's
    assert main(arguments.format(place).split()) == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error
    assert f"key:      {key}\n" in error
    assert f"value:    '{place}" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "meta"]


@pytest.mark.parametrize("command", ["collect", f"convert a.hdf5 --config_name {LAB}", "sft --data ."])
def test_what_is_there_is_replaced_only_when_asked(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)

    def begin(*_: object, **__: object) -> None:
        raise SimulatorError("the stage has begun")

    for module, name in ((collect, "env_type_of"), (convert, "survey"), (sft, "DemonstrationDataset")):
        monkeypatch.setattr(module, name, begin)
    precious = tmp_path / "out" / "precious"
    (tmp_path / "out" / "meta").mkdir(parents=True)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").touch()
    arguments = [*command.split(), "--output", "out"]
    precious.touch()
    assert main([*arguments, "--overwrite"]) == 2, "it is no dataset, and no model"
    assert "name another folder" in capsys.readouterr().err
    (tmp_path / "out" / ("config.json" if command.startswith("sft") else "meta/info.json")).touch()
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == SimulatorError.exit_code
    assert precious.exists(), "replaced by the stage, not by the check"


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


@pytest.mark.parametrize("name", ["a" * 300, "../../x", "/tmp/x", "红" * 90])
def test_a_name_that_is_no_folders_writes_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, name: str):
    monkeypatch.chdir(tmp_path)
    assert main(["play", "--policy", "zero", "--run_name", name]) == 2
    assert "--run_name" in capsys.readouterr().err
    assert list(tmp_path.rglob("*.yaml")) == []


@pytest.mark.parametrize(
    "flags",
    [
        ["play", "--model_path"],
        ["train", "--model_path", ".", "--resume_dir"],
        ["sft", "--data"],
        ["collect", "--num_demos", "1", "--output"],
        ["export", "--output", "x", "--checkpoint"],
        ["report"],
        ["convert", "--output"],
        ["play", "--policy", "zero", "--config_path"],
        ["play", "--config_name"],
    ],
)
def test_a_path_that_is_too_long_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, flags: list[str]
):
    monkeypatch.chdir(tmp_path)
    try:
        code = main([*flags, "a" * 300])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert capsys.readouterr().err
