"""What is checked of a folder before work starts, and that it is never there half."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from regrasp.errors import UserError
from regrasp.folders import (
    CHECKSUMS,
    atomic_file,
    atomic_folder,
    check_checksums,
    discard_unused,
    leaves_folder,
    require_output,
    require_writable,
    writing,
)


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


def test_an_output_is_new_or_empty_or_of_our_own_and_asked_for(tmp_path: Path) -> None:
    require_output(tmp_path / "a" / "b", key="--output")
    require_output(tmp_path, key="--output")
    assert not list(tmp_path.iterdir())
    (tmp_path / "config.json").touch()
    require_output(tmp_path, replaces="config.json", overwrite=True, key="--output")
    with pytest.raises(UserError, match="is a file"):
        require_output(tmp_path / "config.json", replaces="config.json", overwrite=True)
    for replaces, overwrite, fixes in ((None, False, False), ("info.json", True, False), ("config.json", False, True)):
        with pytest.raises(UserError, match="not empty") as caught:
            require_output(tmp_path, replaces=replaces, overwrite=overwrite)
        assert ("--overwrite" in str(caught.value.fix)) == fixes
    with pytest.raises(UserError, match="cannot be written"):
        require_output(tmp_path / "config.json" / "below")


def write(target: Path, name: str, overwrite: bool = False) -> None:
    with atomic_folder(target, overwrite=overwrite) as draft:
        (draft / "sub").mkdir()
        (draft / "sub" / name).touch()
        assert not (target / "sub" / name).exists()


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    write(target, "one")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "one")
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {
        "new", "new/folder", "new/folder/sub", "new/folder/sub/one", "empty", "empty/sub", "empty/sub/one",
    }  # fmt: skip


def test_a_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    write(tmp_path / "folder", "one")
    with pytest.raises(UserError, match="not empty"):
        write(tmp_path / "folder", "two")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "sub", "one"]
    write(tmp_path / "folder", "two", overwrite=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "sub", "two"]


def test_a_link_keeps_pointing_to_what_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "disk" / "folder", "one")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "folder")
    write(tmp_path / "link", "two", overwrite=True)
    assert [path.name for path in (tmp_path / "disk").rglob("*")] == ["folder", "sub", "two"]
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("stop", ["draft", "replaced", "removed"])
def test_what_a_killed_process_left_is_settled_by_the_next(tmp_path: Path, stop: str) -> None:
    """It is killed before the renames, between them, and while the replaced folder is deleted."""
    target = tmp_path / "folder"
    write(target, "one")

    def killed() -> None:
        count, rename = iter(("replaced", "placed", "removed")), os.rename

        def renamed(source: str, place: str) -> None:
            if stop == "draft":
                os._exit(1)
            rename(source, place)
            if next(count) == stop:
                os._exit(1)

        os.rename = renamed
        write(target, "two", overwrite=True)

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join()
    assert child.exitcode == 1
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(RuntimeError), atomic_folder(target):
        raise RuntimeError
    kept = "two" if stop == "removed" else "one"
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "sub", kept]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")

    def fail() -> None:
        with atomic_file(file) as draft:
            draft.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert file.read_text() == "one"
    with atomic_file(file) as draft:
        draft.write_text("two")
        assert file.read_text() == "one"
    assert file.read_text() == "two"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("metrics", "stays"), [("", False), ('{"step": 1}\n', True)])
def test_only_an_unused_run_is_discarded(tmp_path: Path, metrics: str, stays: bool) -> None:
    run = tmp_path / "logs" / "regrasp" / "run"
    run.mkdir(parents=True)
    for name in ("config.yaml", "command.txt", "run.json", "run.lock"):
        (run / name).write_text("{}")
    (run / "metrics.jsonl").write_text(metrics)
    discard_unused(run, [run.parent, run.parents[1]])
    assert run.exists() == stays
    assert (tmp_path / "logs").exists() == stays
    assert tmp_path.exists()


def test_a_log_folder_with_other_runs_stays(tmp_path: Path) -> None:
    run, other = tmp_path / "logs" / "run", tmp_path / "logs" / "other"
    run.mkdir(parents=True)
    other.mkdir()
    discard_unused(run, [run.parent])
    assert other.exists()
    assert not run.exists()


def write_text(file: Path) -> None:
    with file.open("w") as stream:
        stream.write("x" * 10_000_000)


def write_safetensors(file: Path) -> None:
    raise SafetensorError(
        f"Error while serializing {file}: I/O error: No space left on device (os error {errno.ENOSPC})"
    )


def write_parquet(file: Path) -> None:
    pq.write_table(pa.table({"a": range(1_000_000)}), file)


def write_tokenizer(file: Path) -> None:
    Tokenizer(WordLevel({"[UNK]": 0}, "[UNK]")).save(str(file))


@pytest.mark.parametrize("write", [write_text, write_safetensors, write_parquet, write_tokenizer])
def test_a_full_disk_is_told_by_every_library(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left") as caught, writing(tmp_path / "target"):
        write(tmp_path / "full")
    assert caught.value.file == str(tmp_path / "target")


def test_what_cannot_be_read_is_not_blamed_on_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(IsADirectoryError), atomic_folder(tmp_path / "new" / "target"):
        (tmp_path / "source").read_text()
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "new" / "target"):
        _ = 1 / 0
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_that_appeared_meanwhile_is_kept(tmp_path: Path) -> None:
    def race() -> None:
        with atomic_folder(tmp_path / "target") as draft:
            (draft / "ours").touch()
            (tmp_path / "target" / "theirs").mkdir(parents=True)

    with pytest.raises(UserError, match="not empty"):
        race()
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["theirs"]


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    with atomic_folder(tmp_path / "model", checksums=True) as draft:
        (draft / "inner").mkdir()
        (draft / "config.json").write_text("{}")
        (draft / "inner" / "weights").write_bytes(b"1234")
    return tmp_path / "model"


def test_checksums_are_those_that_sha256sum_checks(sealed: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", CHECKSUMS], cwd=sealed, check=True)
    check_checksums(sealed)
    (sealed / "README.md").write_text("a file of the user's")
    check_checksums(sealed)


@pytest.mark.parametrize("change", [b"1235", b"", None])
def test_what_changed_since_a_folder_was_written_is_found(sealed: Path, change: bytes | None) -> None:
    file = sealed / "inner" / "weights"
    file.unlink() if change is None else file.write_bytes(change)
    with pytest.raises(UserError, match="not as it was written") as caught:
        check_checksums(sealed)
    assert ("it is gone" in str(caught.value)) == (change is None)
    assert caught.value.file == str(file)
    (sealed / CHECKSUMS).unlink()
    check_checksums(sealed)


@pytest.mark.parametrize("name", ["model.safetensors", "inner/model.bin", "chat_template.jinja", "inner/extra.json"])
def test_a_file_that_was_added_and_could_be_loaded_is_refused(sealed: Path, name: str) -> None:
    (sealed / name).write_bytes(b"{}")
    with pytest.raises(UserError, match="does not list it") as caught:
        check_checksums(sealed)
    assert caught.value.file == str(sealed / name)


@pytest.mark.parametrize("lines", ["what?", f"{'0' * 64}  ../other", f"{'0' * 64}  /etc/hostname", f"{'0' * 64}  a\0b"])
def test_a_list_of_checksums_that_is_none(sealed: Path, lines: str) -> None:
    (sealed / CHECKSUMS).write_text(lines)
    with pytest.raises(UserError, match="no list of checksums") as caught:
        check_checksums(sealed)
    assert caught.value.file == str(sealed / CHECKSUMS)


@pytest.mark.parametrize("name", ["/etc/passwd", "../other", "a/../../b", "a\0b"])
def test_a_path_out_of_its_folder(name: str) -> None:
    assert leaves_folder(name)
    assert not leaves_folder("videos/episode..mp4")
