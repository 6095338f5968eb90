"""The step rate of a dataset is that of its recordings."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from lab_recordings import demo, write_recording
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import load_config
from regrasp.stages.convert import survey


def experiment() -> ExperimentConfig:
    return load_config("isaaclab_stack_cube_ppo_groot").config


def rated(folder: Path, *decimations: int | None, dt: float = 0.01) -> list[Path]:
    return [
        write_recording(folder / f"{i}.hdf5", [demo(i)], sim_args=None if n is None else {"dt": dt, "decimation": n})
        for i, n in enumerate(decimations)
    ]


def test_the_step_rate_is_the_recordings(tmp_path: Path) -> None:
    assert survey(experiment(), rated(tmp_path, 2, 2)).fps == 50
    chosen = survey(experiment(), rated(tmp_path, 4, None))
    assert chosen.fps == 25
    assert len(chosen.warnings) == 1
    assert "taken for 25 Hz" in chosen.warnings[0]
    chosen = survey(experiment(), rated(tmp_path, 2, None), fps=30)
    assert chosen.fps == 30
    assert [warning.split(" says ")[1] for warning in chosen.warnings] == ["50 steps per second, not 30."]


def test_a_rate_that_is_no_whole_number_is_said(tmp_path: Path) -> None:
    chosen = survey(experiment(), rated(tmp_path, 7, dt=0.005))
    assert (chosen.fps, chosen.warnings) == (
        29,
        ("28.5714 steps per second are written as 29: a dataset has a whole number.",),
    )
    assert survey(experiment(), rated(tmp_path, 4, dt=0.008333)).warnings == (), "30 Hz but for rounding"


def test_rates_that_round_to_one_are_still_two(tmp_path: Path) -> None:
    slow = write_recording(tmp_path / "slow.hdf5", [demo()], sim_args={"dt": 1 / 28.6, "decimation": 1})
    fast = write_recording(tmp_path / "fast.hdf5", [demo()], sim_args={"dt": 1 / 29.4, "decimation": 1})
    with pytest.raises(UserError, match="different step rates") as caught:
        survey(experiment(), [slow, fast])
    assert caught.value.value == f"{slow}: 28.6 Hz, {fast}: 29.4 Hz"


def test_an_unclear_step_rate_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="different step rates"):
        survey(experiment(), rated(tmp_path, 2, 5))
    with pytest.raises(UserError, match="not known") as caught:
        survey(experiment(), rated(tmp_path, None))
    assert caught.value.key == "--fps"
    assert caught.value.value == str(tmp_path / "0.hdf5")


def test_a_rate_replaces_arguments_that_cannot_be_read(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "demos.hdf5", [demo()])
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = "{not json"
    with pytest.raises(UserError, match="step rate"):
        survey(experiment(), [path])
    chosen = survey(experiment(), [path], fps=20)
    assert len(chosen.episodes) == 1
    assert "env_args" in chosen.warnings[0]


def test_the_embedded_simulator_knows_the_step_rate(tmp_path: Path) -> None:
    overrides = [
        "env.train.mapping.main_images=table_cam",
        "env.train.mapping.states=[eef_pos]",
        "+env.train.mapping.task_description=lift",
    ]
    config = load_config("pick_cube_ppo_groot", overrides).config
    path = write_recording(
        tmp_path / "demos.hdf5",
        [demo().but({"actions": np.zeros((6, 4), np.float32)})],
        env_name="Regrasp-Pick-Cube-v0",
        sim_args=None,
    )
    assert survey(config, [path]).fps == 10
