"""Recordings and overrides, told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab_recordings import demo, write_recording
from regrasp.cli.convert import split_positionals
from regrasp.cli.main import main
from regrasp.experiment.load import load_config

LAB = "isaaclab_stack_cube_ppo_groot"


@pytest.mark.parametrize(
    ("given", "files", "overrides"),
    [
        ("a.hdf5 b.h5 runner.seed=3", "a.hdf5 b.h5", "runner.seed=3"),
        ("runner.seed=3 a.hdf5 +a.b@c=d ~collect", "a.hdf5", "runner.seed=3 +a.b@c=d ~collect"),
        ("run=3.hdf5 x=1", "run=3.hdf5", "x=1"),
        ("", "", ""),
    ],
)
def test_split(given: str, files: str, overrides: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run=3.hdf5").touch()
    assert split_positionals(given.split()) == ([Path(name) for name in files.split()], overrides.split())


@pytest.mark.parametrize(
    "arguments",
    [
        "a.hdf5 b.hdf5 --config_name {0} collect.output_dir=new",
        "--config_name {0} a.hdf5 b.hdf5 collect.output_dir=new",
        "a.hdf5 collect.output_dir=new --config_name {0} b.hdf5",
        "--output new collect.num_demos=3 --config_name {0} a.hdf5 b.hdf5 --seed 3",
    ],
)
def test_recordings_may_stand_anywhere(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recording(tmp_path / "a.hdf5", [demo(0), demo(1, success=False)])
    write_recording(tmp_path / "b.hdf5", [demo(2)], env_name="Isaac-Lift-Cube-Franka-v0")
    assert main(["convert", *arguments.format(LAB).split()]) == 0
    printed = capsys.readouterr()
    assert printed.out.endswith(
        "Left out: a.hdf5: demo_1: not successful\n"
        f"Demonstrations: {tmp_path / 'new'} (2 of 3 recorded episodes, 12 frames at 20 Hz)\n"
    )
    assert "[WARN] b.hdf5 was recorded in Isaac-Lift-Cube-Franka-v0" in printed.err
    assert (tmp_path / "new/meta/info.json").is_file()


def test_a_truncated_recording_among_sound_ones_stops_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recording(tmp_path / "a.hdf5", [demo(0)])
    content = write_recording(tmp_path / "b.hdf5", [demo(1)]).read_bytes()
    (tmp_path / "b.hdf5").write_bytes(content[: len(content) // 2])
    assert main(["convert", "a.hdf5", "b.hdf5", "--config_name", LAB]) == 2
    error = capsys.readouterr().err
    assert "no readable recording" in error
    assert "file:     b.hdf5" in error
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.hdf5", "b.hdf5"]


def test_a_dry_run_says_what_would_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recording(tmp_path / "a.hdf5", [demo(0), demo(1, success=False)])
    write_recording(tmp_path / "b.hdf5", [demo(2, length=4)], env_name="Isaac-Lift-Cube-Franka-v0")
    arguments = ["convert", "a.hdf5", "b.hdf5", "--config_name", LAB, "--dry_run"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "\n# Left out: a.hdf5: demo_1: not successful\n" in printed.out
    assert "\n# Would take 2 of 3 recorded episodes (10 frames at 20 Hz)" in printed.out
    assert "optimizer step" not in printed.out, "nothing of the RL stage"
    assert "[WARN] b.hdf5 was recorded in Isaac-Lift-Cube-Franka-v0" in printed.err
    (tmp_path / "copy.yaml").write_text(printed.out)
    assert load_config("copy.yaml").config == load_config(LAB).config
    (tmp_path / "copy.yaml").unlink()
    assert main([*arguments, "--keep_failed"]) == 0
    assert "Would take 3 of 3" in capsys.readouterr().out
    assert main([*arguments, "nowhere.hdf5"]) == 2
    assert "no such recording" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.hdf5", "b.hdf5"]
