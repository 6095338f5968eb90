"""Which checkpoint a path means, and which ones pruning removes."""

import os
import socket
import time
from pathlib import Path

import psutil
import pytest
import torch

from regrasp.checkpoint.layout import step_folders
from regrasp.checkpoint.read import find_checkpoint, read_checkpoint
from regrasp.checkpoint.write import CheckpointContent, prune, write_checkpoint
from regrasp.errors import UserError
from regrasp.folders import tidy


def write(checkpoints: Path, *steps: int) -> None:
    for step in steps:
        content = CheckpointContent({"w": torch.full((2,), float(step))}, frozenset(), {}, {}, {"update": step}, None)
        write_checkpoint(checkpoints, step, content)


def names(checkpoints: Path) -> list[str]:
    return sorted(folder.name for folder in checkpoints.iterdir())


def test_newest_is_numeric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = tmp_path / "run" / "experiment" / "checkpoints"
    write(checkpoints, 9, 10, 2)
    newest = checkpoints / "global_step_10"
    for path in (checkpoints, checkpoints.parent, tmp_path / "run", newest, Path(f"{newest}/")):
        assert find_checkpoint(path) == newest
    assert find_checkpoint(checkpoints / "global_step_9") == checkpoints / "global_step_9"
    monkeypatch.chdir(newest)
    assert read_checkpoint(find_checkpoint(Path())).step == 10


def test_a_renamed_checkpoint_keeps_its_step(tmp_path: Path) -> None:
    write(tmp_path, 7)
    best = (tmp_path / "global_step_7").rename(tmp_path / "best")
    assert read_checkpoint(find_checkpoint(best)).step == 7


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="searched for global_step_<N>"):
        find_checkpoint(tmp_path)
    with pytest.raises(UserError, match="No such"):
        find_checkpoint(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        find_checkpoint(tmp_path / "file")
    (tmp_path / "checkpoints/global_step_3").mkdir(parents=True)
    with pytest.raises(UserError, match=r"of 1 found: checkpoints/global_step_3: manifest\.json is missing"):
        find_checkpoint(tmp_path)


def test_several_runs_are_ambiguous(tmp_path: Path) -> None:
    write(tmp_path / "a/checkpoints", 1)
    write(tmp_path / "b/checkpoints", 2)
    with pytest.raises(UserError, match="2 runs") as raised:
        find_checkpoint(tmp_path)
    assert "a/checkpoints/global_step_1" in str(raised.value.fix)


def test_a_folder_above_the_runs_is_refused(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write(tmp_path / "logs" / "regrasp" / name / "experiment" / "checkpoints", 1)
    for path in (tmp_path, tmp_path / "logs", tmp_path / "logs" / "regrasp"):
        with pytest.raises(UserError, match="no run") as raised:
            find_checkpoint(path)
        assert all(str(tmp_path / "logs" / "regrasp" / name) in str(raised.value.fix) for name in ("first", "second"))


def test_prune_keeps_the_newest_complete(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 10, 9)
    (tmp_path / "global_step_11").mkdir()
    assert prune(step_folders(tmp_path), None) == []
    assert prune(step_folders(tmp_path), 2) == [tmp_path / "global_step_2", tmp_path / "global_step_1"]
    assert names(tmp_path) == ["global_step_10", "global_step_11", "global_step_9"]
    prune(step_folders(tmp_path), 1)
    assert names(tmp_path) == ["global_step_10", "global_step_11"]
    with pytest.raises(ValueError, match="at least 1"):
        prune(step_folders(tmp_path), 0)


def test_of_a_checkpoint_moved_to_another_disk_the_link_is_pruned(tmp_path: Path) -> None:
    write(tmp_path / "checkpoints", 1, 2)
    moved = (tmp_path / "checkpoints/global_step_1").rename(tmp_path / "elsewhere")
    (tmp_path / "checkpoints/global_step_1").symlink_to(moved)
    prune(step_folders(tmp_path / "checkpoints"), 1)
    assert names(tmp_path / "checkpoints") == ["global_step_2"]
    assert read_checkpoint(moved).step == 1


def test_leftovers_of_dead_writers_go(tmp_path: Path) -> None:
    host, process = socket.gethostname(), psutil.Process()
    started = int(process.create_time())
    alive = f".global_step_1.draft@{host}@{process.pid}@{started}"
    dead_pid = f".global_step_1.draft@{host}@{2**22 + 1}@{started}"
    reused_pid = f".global_step_2.removed@{host}@{process.pid}@{started - 1000}"
    other_host = f".global_step_3.draft@elsewhere.{host}@1@{started}"
    other_host_old = f".global_step_4.draft@elsewhere.{host}@1@{started}"
    for name in (alive, dead_pid, reused_pid, other_host, other_host_old, ".git", "notes"):
        (tmp_path / name / "sub").mkdir(parents=True)
    two_days_ago = time.time() - 2 * 86400
    os.utime(tmp_path / other_host_old, (two_days_ago, two_days_ago))
    tidy(tmp_path)
    assert names(tmp_path) == sorted([alive, other_host, ".git", "notes"])
