"""What is checked of a folder before work starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from regrasp.errors import UserError
from regrasp.folders import discard_unused, require_new, require_writable


def test_the_check_leaves_nothing(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b", key="--output")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    require_writable(tmp_path / "a" / "b" / "c", key="--output")
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_a_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot be written"):
            require_writable(folder, key="--output")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_new_or_empty_or_asked_for(tmp_path: Path) -> None:
    require_new(tmp_path / "none", overwrite=False, key="--output")
    require_new(tmp_path, overwrite=False, key="--output")
    (tmp_path / "file").touch()
    require_new(tmp_path, overwrite=True, key="--output")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="something already"):
            require_new(taken, overwrite=False, key="--output")


@pytest.mark.parametrize(("more", "stays"), [([], False), (["metrics.jsonl"], True)])
def test_only_an_unused_run_is_discarded(tmp_path: Path, more: list[str], stays: bool) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "command.txt", *more):
        (run / name).touch()
    discard_unused(run)
    assert run.exists() == stays
