"""What commands print, and how fast the command line starts."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import regrasp
from regrasp.cli.common import DEFAULT_CONFIG
from regrasp.cli.main import COMMANDS, main
from regrasp.config.search import SHIPPED
from regrasp.envs.mujoco import backend
from regrasp.experiment import machine
from regrasp.experiment.load import load_config
from regrasp.stages import collect, convert, play, pretrain, quickstart, sft

ROOT = Path(__file__).resolve().parents[2]
LAB = "isaaclab_stack_cube_ppo_groot"
NUMBERS = """
import logging, sys
from regrasp.cli.console import log_to_console
log_to_console()
for number in range(20_000):
    print("拿起", number)
print("done", file=sys.stderr)
"""
EXPERIMENTS = sorted(file.stem for file in SHIPPED.glob("*.yaml"))


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out.split() == ["regrasp", project["version"]]
    assert regrasp.__version__ == project["version"]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_lacks_a_character_shows_its_escape_sequence(encoding: str):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    result = subprocess.run([sys.executable, "-c", NUMBERS], capture_output=True, env=environment, check=True)
    assert result.stdout.startswith(b"\\u62ff\\u8d77 0\n")


@pytest.mark.parametrize("place", ["closed pipe", "full disk"])
def test_output_that_cannot_be_written_is_reported_once_and_costs_nothing(place: str):
    descriptor = os.open("/dev/full", os.O_WRONLY)
    if place == "closed pipe":
        reader, descriptor = os.pipe()
        os.close(reader)
    result = subprocess.run([sys.executable, "-c", NUMBERS], stdout=descriptor, stderr=subprocess.PIPE, check=True)
    warning, done = result.stderr.decode().splitlines()
    assert warning.startswith("[WARN] <stdout> cannot be written any more, and the work goes on: ")
    assert done == "done"


def test_help_is_fast_and_imports_nothing_heavy():
    heavy = {"torch", "transformers", "tensordict", "matplotlib", "mujoco", "av", "pyarrow", "tensorboard", "h5py"}
    code = f"""
import sys, time
from regrasp.cli.main import main
for arguments in (["--help"], *([command, "--help"] for command in {list(COMMANDS)})):
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == 0
print(time.process_time(), *({heavy} & set(sys.modules)), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *imported = result.stderr.split()
    assert not imported
    assert float(seconds) < 2.0
    assert all(summary in result.stdout for summary in COMMANDS.values())


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(("train", name) for name in EXPERIMENTS),
        *((command, DEFAULT_CONFIG) for command in ("play", "collect", "convert", "sft", "pretrain", "quickstart")),
    ],
)
def test_dry_run_prints_the_experiment_that_would_run(
    command: str, name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main([command, "--config_name", name, "--dry_run", "runner.max_epochs=3"]) == 0
    printed = capsys.readouterr().out
    copy = tmp_path / "copy.yaml"
    copy.write_text(printed)
    assert load_config(str(copy)).config == load_config(name, ["runner.max_epochs=3"]).config
    copy.unlink()
    assert not list(tmp_path.iterdir())
    if command == "train":
        assert_batch_equation_adds_up(printed)


def assert_batch_equation_adds_up(printed: str) -> None:
    values = yaml.safe_load(printed)
    equation = next(line for line in printed.splitlines() if line.startswith("# ") and " samples" in line)
    train, algorithm = values["env"]["train"], values["algorithm"]
    steps = train["total_num_envs"] * train["max_steps_per_rollout_epoch"] * algorithm["rollout_epoch"]
    samples = steps // values["actor"]["model"]["num_action_chunks"]
    minibatches = -(-samples // values["actor"]["global_batch_size"])
    assert f"= {samples} samples" in equation
    if algorithm["loss_type"] == "imitation":
        own = values["actor"]["global_batch_size"] * 3 // 4  # these experiments have demonstrations for a quarter
        count = -(-algorithm["capacity"] // own) * algorithm["update_epoch"]
        assert f" of {own} kept decisions and {own // 3} of demonstrations" in equation
        assert f"at most {count} optimizer steps per update" in equation
        return
    if algorithm["loss_type"] == "embodied_sac":
        critic = round((algorithm["updates_per_decision"] or algorithm["update_epoch"] / samples) * samples)
        actor = critic // algorithm["critic_actor_ratio"]
        assert f"{critic} critic steps and {actor} actor steps per update" in equation
        return
    plural = "" if minibatches == 1 else "es"
    assert f"{minibatches} minibatch{plural} of {min(samples, values['actor']['global_batch_size'])}" in equation
    assert f"= {minibatches * algorithm['update_epoch']} optimizer steps" in equation


def test_batch_equation_of_a_small_run(capsys: pytest.CaptureFixture[str]):
    small = "env.train.total_num_envs=10 env.train.max_steps_per_rollout_epoch=24 algorithm.rollout_epoch=2"
    main(["train", "--config_name", "pick_cube_ppo_groot", "--dry_run", *small.split(), "algorithm.update_epoch=1"])
    *_, yaml_end, summary, _file, equation, _train, _eval, _machine, processes, _memory = (
        capsys.readouterr().out.splitlines()
    )
    assert not yaml_end
    assert summary == "# Summary"
    assert processes.startswith("# processes: one with all roles, on ")
    assert "= 120 samples; 1 minibatch of 120 (1 x 120) x 1 epoch = 1 optimizer step per update" in equation
    sizes = "actor.global_batch_size=50 actor.micro_batch_size=25 algorithm.update_epoch=2"
    main(["train", "--config_name", "pick_cube_ppo_groot", "--dry_run", *small.split(), *sizes.split()])
    equation = capsys.readouterr().out.splitlines()[-6]
    assert "3 minibatches of 50 (2 x 25) x 2 epochs = 6 optimizer steps" in equation
    assert "the last minibatch has 20" in equation


@pytest.mark.parametrize("script", ["train", "play"])
def test_scripts_of_the_reference_are_the_commands(
    script: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    arguments = ["--config_name", "pick_cube_ppo_groot", "--model_path", "some/model", "--dry_run"]
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
    for name in ("available_memory", "free_shared_memory"):
        monkeypatch.setattr(machine, name, lambda: 2**34)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["actor"]["model"]["model_path"] == "some/model"
    main([script, *arguments])
    assert printed == capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "rendering"),
    [
        (["tasks"], "egl"),
        (["train", "--list_tasks"], None),
        pytest.param(["tasks"], None, marks=pytest.mark.full),
        pytest.param(["train", "--list_tasks"], "egl", marks=pytest.mark.full),
    ],
)
def test_tasks_name_their_experiments(
    arguments: list[str],
    rendering: str | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(backend, "working_backend", lambda: rendering)
    assert main(arguments) == 0
    rows = capsys.readouterr().out.splitlines()
    by_task = {row.split()[0]: row for row in rows}
    assert len(by_task) == len(rows)
    for name in EXPERIMENTS:
        env = load_config(name).config.env.train
        row = by_task[env.init_params.id]
        assert re.search(rf"\b{name}\b", row)
        assert env.env_type in row
        assert env.env_type != "mujoco" or ("runs here" in row) == (rendering is not None)


def test_doctor_on_a_machine_that_renders(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "working_backend", lambda: "egl")
    assert main(["doctor"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["rendering"] == "egl works"
    assert rows["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert {"system", "memory", "disk", "torch", "GPU", "transformers", "mujoco-core"} <= rows.keys()
    extras = {"wandb", "swanlab", "peft", "mink", "h5py"}
    assert extras <= rows.keys()
    missing = [rows[name] for name in extras if "not installed" in rows[name]]
    assert all("pip install" in row and "regrasp[" not in row for row in missing)
    assert main(["doctor", "--rendering"]) == 0


def test_doctor_runs_from_sources_that_are_not_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    folders = [Path(folder) for folder in sys.path if folder]
    with_packages = [folder for folder in folders if any(folder.glob("*.dist-info")) or any(folder.glob("*.egg-info"))]
    for entry in (entry for folder in with_packages for entry in folder.iterdir()):
        if not entry.name.startswith(("regrasp", "wandb-", "swanlab-")) and not (tmp_path / entry.name).is_symlink():
            (tmp_path / entry.name).symlink_to(entry)
    others = [str(folder) for folder in folders if folder not in with_packages]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *others])
    monkeypatch.setattr(backend, "working_backend", lambda: "egl")
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("regrasp")
    assert main(["doctor"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["wandb"].endswith('-m pip install "wandb"')
    assert rows["swanlab"].endswith('-m pip install "swanlab"')


def test_doctor_names_the_packages_that_rendering_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backend, "working_backend", lambda: None)
    monkeypatch.setattr(backend, "probe", lambda name: f"no {name} library")
    assert main(["doctor"]) == 2
    printed = capsys.readouterr().out
    assert "no egl library" in printed
    assert all(package in printed for package in backend.PACKAGES)
    assert main(["doctor", "--rendering"]) == 2
    printed = capsys.readouterr().err
    assert all(package in printed for package in backend.PACKAGES)


def test_interrupt_is_no_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(backend, "working_backend", interrupt)
    assert main(["doctor", "--rendering"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("pretrain", "Nothing of this stage is kept"),
        ("collect --output new", "Nothing of this stage is kept"),
        (f"convert a.hdf5 --output new --config_name {LAB}", "Nothing of this stage is kept"),
        ("sft --data . --output new", "Nothing of this stage is kept"),
        ("quickstart --output new", "training goes on from its newest checkpoint"),
        ("play --policy zero", "Run the same command again"),
    ],
)
def test_interrupt_says_what_is_kept(
    command: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").touch()
    for module, name in (
        (pretrain, "pretrain"),
        (collect, "collect"),
        (sft, "train_base"),
        (convert, "convert"),
        (quickstart, "quickstart"),
        (play, "play"),
    ):
        monkeypatch.setattr(module, name, interrupt)
    assert main(command.split()) == 130
    error = capsys.readouterr().err
    assert error.startswith("\ninterrupted\n")
    assert says in error


def test_help_names_the_default_experiment(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert f"of the task, else {DEFAULT_CONFIG}" in " ".join(capsys.readouterr().out.split())


def test_what_the_package_logs_is_printed_once_however_often_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["tasks"]) == 0
        capsys.readouterr()
    logger = logging.getLogger("regrasp.stages")
    logger.info("half %d done", 1)
    logger.warning("100 % of it")
    printed = capsys.readouterr()
    assert printed.out == "[INFO] half 1 done\n"
    assert printed.err == "[WARN] 100 % of it\n"
