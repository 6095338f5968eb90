"""A crash or a full disk at any instant leaves a complete checkpoint behind."""

import errno
import io
import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from regrasp.checkpoint.hub_folder import save_safetensors
from regrasp.checkpoint.layout import step_folders
from regrasp.checkpoint.read import find_checkpoint, read_checkpoint
from regrasp.checkpoint.verify import verify
from regrasp.checkpoint.write import CheckpointContent, prune, write_checkpoint
from regrasp.errors import UserError
from regrasp.folders import tidy

BOUNDARIES = ("fsync", "rename", "replace", "link", "mkdir", "rmdir", "unlink")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a sync does to the platter cannot be seen here; when it is called can, see `boundaries`."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def content(value: float, size: int = 4) -> CheckpointContent:
    state = {"frozen": torch.ones(size), "trained": torch.full((size,), value)}
    return CheckpointContent(
        model_state=state,
        frozen_names=frozenset({"frozen"}),
        optimizer_state={"state": {0: {"exp_avg": torch.ones(2)}}},
        tensors={"generator": torch.arange(4)},
        state={"value": value},
        export=lambda folder: save_safetensors(state, folder, {"frozen"}),
    )


@contextmanager
def boundaries(act: Callable[[int, str], None]) -> Iterator[None]:
    """Call `act(number, name)` before each system call that changes the folder, and inside each torch.save."""
    count = iter(range(1_000_000))

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            act(next(count), name)
            return call(*args, **options)

        return wrapped

    def save_in_two_parts(value: Any, stream: Any) -> None:
        buffer = io.BytesIO()
        real_save(value, buffer)
        half = len(buffer.getvalue()) // 2
        stream.write(buffer.getvalue()[:half])
        stream.flush()
        act(next(count), "save")
        stream.write(buffer.getvalue()[half:])

    real_save = torch.save
    with pytest.MonkeyPatch.context() as patch:
        for name in BOUNDARIES:
            patch.setattr(os, name, wrap(name, getattr(os, name)))
        patch.setattr(torch, "save", save_in_two_parts)
        yield


def recorded(write: Callable[[], object]) -> list[str]:
    names: list[str] = []
    with boundaries(lambda _, name: names.append(name)):
        write()
    return names


def killed_at(number: int, write: Callable[[], object]) -> int:
    """Run `write` in a child that kills itself at a boundary; the child's exit code."""

    def act(count: int, _: str) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        with boundaries(act):
            write()

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join(30)
    return child.exitcode or 0


def assert_sound(checkpoints: Path, expected: set[float]) -> None:
    found = read_checkpoint(find_checkpoint(checkpoints))
    assert found.state["value"] in expected
    assert found.model_state["trained"][0] == found.state["value"]


@pytest.mark.parametrize(
    ("before", "step"), [((1,), 2), *(pytest.param(*case, marks=pytest.mark.full) for case in (((1,), 1), ((1, 2), 2)))]
)
def test_kill_at_every_boundary(tmp_path: Path, before: tuple[int, ...], step: int) -> None:
    for earlier in before:
        write_checkpoint(tmp_path / "template", earlier, content(earlier))

    def prepare(name: str) -> Path:
        return shutil.copytree(tmp_path / "template", tmp_path / name)

    prepared = prepare("recorded")
    calls = recorded(lambda: write_checkpoint(prepared, step, content(9.0)))
    assert {"fsync", "rename", "link", "save"} <= set(calls)
    for number in range(len(calls)):
        folder = prepare(f"killed_at_{number}")
        assert killed_at(number, lambda folder=folder: write_checkpoint(folder, step, content(9.0))) == -signal.SIGKILL
        assert_sound(folder, {float(max(before)), 9.0})
        tidy(folder)
        assert_sound(folder, {float(max(before)), 9.0})
        write_checkpoint(folder, 3, content(3.0))
        assert all(verify(child) == [] for child in folder.iterdir())
        assert {child.name for child in folder.iterdir()} >= {f"global_step_{earlier}" for earlier in before}


def test_everything_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Path] = []
    rename = os.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    monkeypatch.setattr(os, "rename", lambda source, target: (events.append(Path(target)), rename(source, target)))
    final = write_checkpoint(tmp_path / "checkpoints", 1, content(1.0))
    before = events[: events.index(final)]
    draft = before[-1]
    assert {path.relative_to(draft) for path in before} == {
        path.relative_to(final) for path in [final, *final.rglob("*")]
    }
    files = [path.name for path in before if (final / path.relative_to(draft)).is_file()]
    assert files[-1] == "manifest.json"
    assert events[events.index(final) + 1] == final.parent


def test_kill_while_pruning(tmp_path: Path) -> None:
    def prepare(folder: Path) -> Path:
        for step in (1, 2):
            write_checkpoint(folder, step, content(step))
        return folder

    prepared = prepare(tmp_path / "0")
    for number in range(len(recorded(lambda: prune(step_folders(prepared), 1)))):
        folder = prepare(tmp_path / f"killed_at_{number}")
        assert killed_at(number, lambda folder=folder: prune(step_folders(folder), 1)) == -signal.SIGKILL
        assert_sound(folder, {2.0})
        tidy(folder)
        prune(step_folders(folder), 1)
        assert [child.name for child in folder.iterdir()] == ["global_step_2"]


def test_any_failing_call_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    prepared = tmp_path / "checkpoints"
    write_checkpoint(prepared, 1, content(1.0))
    calls = recorded(lambda: write_checkpoint(prepared, 2, content(2.0)))
    last = max(number for number, name in enumerate(calls) if name == "rename")
    writing = [number for number in range(last) if calls[number] in ("save", "fsync", "rename", "replace")]
    for failing in writing:
        folder = tmp_path / f"fails_at_{failing}"
        write_checkpoint(folder, 1, content(1.0))

        def act(number: int, _: str, failing: int = failing) -> None:
            if number == failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with boundaries(act), pytest.raises(UserError, match="No space left on device"):
            write_checkpoint(folder, 2, content(2.0))
        assert [child.name for child in folder.iterdir()] == ["global_step_1"]
        assert verify(folder / "global_step_1") == []


@pytest.mark.parametrize("limit", [30_000, 90_000])
def test_disk_full_for_real(tmp_path: Path, limit: int) -> None:
    """The limit on file sizes stands in for a full disk: writes fail inside torch.save or the safetensors library."""
    write_checkpoint(tmp_path, 1, content(1.0))
    hungry = content(2.0, size=10_000)
    if limit > 80_000:
        big = {"w": torch.ones(50_000)}
        hungry = CheckpointContent(
            {}, frozenset(), {}, {}, {}, lambda folder: save_file(big, folder / "model.safetensors")
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(UserError, match="File too large"):
            write_checkpoint(tmp_path, 2, hungry)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [child.name for child in tmp_path.iterdir()] == ["global_step_1"]


def test_failing_export_keeps_its_own_error(tmp_path: Path) -> None:
    def export(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_checkpoint(tmp_path, 1, CheckpointContent({}, frozenset(), {}, {}, {}, export))
    assert list(tmp_path.iterdir()) == []


def test_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not be written"):
        write_checkpoint(tmp_path / "file" / "checkpoints", 1, content(1.0))


def test_replacing_a_step(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, content(1.0))
    (tmp_path / "global_step_2").mkdir()
    for step in (1, 2):
        write_checkpoint(tmp_path, step, content(7.0))
        assert read_checkpoint(tmp_path / f"global_step_{step}").state["value"] == 7.0
    assert {child.name for child in tmp_path.iterdir()} == {"global_step_1", "global_step_2"}
