"""What the environments of a run take is compared with the machine before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from regrasp import device
from regrasp.cli.main import main
from regrasp.config.types import changed
from regrasp.envs.registry import create_env, preflight
from regrasp.experiment import ExperimentConfig, machine
from regrasp.experiment.load import load_config
from regrasp.experiment.machine import Needs, Starts, all_needs, shortages

MIB = 2**20


def experiment(num_envs: int = 4) -> ExperimentConfig:
    config = load_config("pick_cube_ppo_groot").config
    for key in ("env.train.total_num_envs", "env.eval.total_num_envs"):
        config = changed(config, key, num_envs)
    return config


def needs(config: ExperimentConfig, starts: Starts | None) -> dict[str, Needs]:
    specs = {name: preflight(env, name, config.actor.model.action_dim) for name, env in vars(config.env).items()}
    return all_needs(config, specs, starts)


def test_the_estimate_is_what_environments_share():
    config = changed(experiment(), "env.train.num_workers", 1)
    env = create_env(config.env.train, "train", config.actor.model.num_action_chunks)
    try:
        arrays = env._arrays  # pyright: ignore[reportAttributeAccessIssue]
        shared = sum(array.nbytes for array in arrays.values())
    finally:
        env.close()
    assert shared <= (needs(config, "train")["train"].shared or 0) < shared + 64 * (len(arrays) + 1) + 4096


def test_the_environments_that_start_together_are_counted():
    config = experiment()
    assert list(needs(config, "train")) == ["train", "eval"]
    assert list(needs(changed(config, "runner.val_check_interval", -1), "train")) == ["train"]
    assert list(needs(changed(config, "runner.only_eval", True), "train")) == ["eval"]
    assert list(needs(config, "evaluation")) == ["eval"]
    assert list(needs(config, "collect")) == ["train"]
    assert needs(config, None) == {}


NEEDS = {"train": Needs(128, 4, 50 * MIB, 500 * MIB), "eval": Needs(64, 2, 25 * MIB, 250 * MIB)}


@pytest.mark.parametrize(
    ("offer", "key", "expected"),
    [
        ((75 * MIB, 750 * MIB, 1024), None, ""),
        ((64 * MIB, 750 * MIB, 1024), "env.train.total_num_envs", "at most about 103 environments"),
        ((75 * MIB, 375 * MIB, 1024), "env.train.total_num_envs", "at most about 60 environments"),
        ((75 * MIB, 750 * MIB, 80), "env.train.num_workers", "about as many as cores"),
    ],
)
def test_what_a_machine_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, offer: tuple[int, int, int], key: str | None, expected: str
):
    monkeypatch.setattr(machine, "free_shared_memory", lambda: offer[0])
    monkeypatch.setattr(machine, "available_memory", lambda: offer[1])
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (offer[2], offer[2]))
    found = list(shortages(NEEDS))
    assert [error.key for error in found] == ([] if key is None else [key])
    assert all(expected in (error.expected or "") for error in found)


@pytest.mark.parametrize("command", ["train", "play", "collect"])
def test_too_many_environments_are_refused_before_one_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "free_shared_memory", lambda: 64 * MIB)
    monkeypatch.setattr("regrasp.experiment.paths.require_paths", lambda *_: None)
    arguments = {"train": [], "play": ["--policy", "zero"], "collect": ["--num_demos", "100000"]}[command]
    assert main([command, "--num_envs", "100000", *arguments]) == 2
    assert "Shared memory is too small" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


def test_a_dry_run_says_both_and_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(machine, "free_shared_memory", lambda: 64 * MIB)
    assert main(["train", "--dry_run", "--num_envs", "100000"]) == 0
    out, err = capsys.readouterr()
    assert "env.train: 100000 environments in" in out
    assert "64.00 MiB in /dev/shm" in out
    assert "Shared memory is too small" in err


def test_a_container_has_the_memory_that_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name, text in (("max", "3000\n"), ("current", "1000\n"), ("unlimited", "max\n")):
        (tmp_path / name).write_text(text)
    groups = (("absent", "absent"), ("unlimited", "current"), ("max", "current"))
    paths = tuple((str(tmp_path / limit), str(tmp_path / used)) for limit, used in groups)
    monkeypatch.setattr(device, "_CONTAINER_MEMORY", paths)
    assert device.available_memory() == 2000
