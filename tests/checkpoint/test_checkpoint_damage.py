"""Every damage to every file is found, and the user is pointed to a sound checkpoint."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from regrasp.checkpoint.hub_folder import save_safetensors
from regrasp.checkpoint.manifest import Entry, Manifest, decode, encode
from regrasp.checkpoint.read import find_checkpoint, read_checkpoint
from regrasp.checkpoint.verify import is_complete, require_sound_model, verify
from regrasp.checkpoint.write import CheckpointContent, write_checkpoint
from regrasp.errors import UserError

FILES = (
    "actor/model_state_dict/full_weights.pt",
    "manifest.json",
    "model/model-00001-of-00002.safetensors",
    "model/model-00002-of-00002.safetensors",
    "model/model.safetensors.index.json",
    "trainer/optimizer.pt",
    "trainer/state.json",
    "trainer/tensors.safetensors",
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    for step in (5, 10):
        state = {"frozen": torch.ones(3), "trained": torch.full((2,), float(step))}
        content = CheckpointContent(
            model_state=state,
            frozen_names=frozenset({"frozen"}),
            optimizer_state={"state": {0: {"exp_avg": torch.ones(2)}}},
            tensors={"generator": torch.arange(4)},
            state={"update": step},
            export=lambda model, state=state: save_safetensors(state, model, {"frozen"}),
        )
        write_checkpoint(folder, step, content)
    return folder


@pytest.fixture
def copied(checkpoints: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoints, tmp_path / "checkpoints")


def flip(position: float) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[round(position * (len(data) - 1))] ^= 0x10
        file.write_bytes(data)

    return damage


def truncate(keep: float) -> Callable[[Path], object]:
    """Keep a fraction of the file, and always less than all of it."""
    return lambda file: file.write_bytes(file.read_bytes()[: int(keep * (file.stat().st_size - 1))])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flip first": flip(0),
    "flip middle": flip(0.5),
    "flip last": flip(1),
    "truncate last": truncate(1),
    "truncate half": truncate(0.5),
    "empty": truncate(0),
    "grow": lambda file: file.write_bytes(file.read_bytes() + b"\n"),
    "remove": lambda file: file.unlink(),
}


def test_list_of_files_is_complete(checkpoints: Path) -> None:
    folder = checkpoints / "global_step_10"
    assert sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()) == sorted(FILES)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found(copied: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    DAMAGES[damage](copied / "global_step_10" / name)
    assert [problem.file for problem in verify(copied / "global_step_10")] == [name]
    if name.startswith("model/"):
        assert find_checkpoint(copied) == copied / "global_step_10"
        assert read_checkpoint(copied / "global_step_10").state == {"update": 10}
        assert name in caplog.text
        with pytest.raises(UserError, match=name):
            require_sound_model(copied / "global_step_10" / "model")
    else:
        with pytest.raises(UserError) as raised:
            read_checkpoint(copied / "global_step_10")
        assert name in raised.value.problem
        assert str(copied / "global_step_5") in str(raised.value.fix)
    assert read_checkpoint(copied / "global_step_5").state == {"update": 5}
    require_sound_model(copied / "global_step_5" / "model")


def test_a_model_beside_a_damaged_manifest_is_not_used(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(0.5)(copied / "global_step_10" / "manifest.json")
    monkeypatch.chdir(copied / "global_step_10" / "model")
    with pytest.raises(UserError, match="manifest"):
        require_sound_model(Path())


def test_every_byte_of_the_manifest_counts(checkpoints: Path) -> None:
    data = (checkpoints / "global_step_10/manifest.json").read_bytes()
    assert encode(decode(data)) == data
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 0x01
        with pytest.raises(ValueError):
            decode(bytes(changed))


@pytest.mark.parametrize(
    "text", [b"[]", b"null", b'{"files": []}', b"{", b"\xff", b'{"format": 1, "files": {"a": 1}, "step": 1}']
)
def test_foreign_manifest(text: bytes) -> None:
    with pytest.raises(ValueError, match="does not parse"):
        decode(text)


def test_newer_format_is_named(checkpoints: Path) -> None:
    data = (checkpoints / "global_step_10/manifest.json").read_bytes()
    with pytest.raises(ValueError, match="newer Regrasp"):
        decode(data.replace(b'"format": 1', b'"format": 2'))


def test_manifest_cannot_point_outside(copied: Path) -> None:
    folder = copied / "global_step_10"
    files = {**decode((folder / "manifest.json").read_bytes()).files, "../../secret.pt": Entry(1, "0" * 64)}
    (folder / "manifest.json").write_bytes(encode(Manifest(10, files)))
    assert [problem.what for problem in verify(folder)] == ["lies outside the checkpoint"]


@pytest.mark.parametrize(
    ("name", "harmless"),
    [
        ("model/adapter.safetensors", False),
        ("model/chat_template.jinja", False),
        ("model/generation_config.json", False),
        ("a.pt", False),
        ("README.md", True),
        ("model/README.md", True),
        ("notes.json", True),
    ],
)
def test_foreign_files(copied: Path, name: str, harmless: bool) -> None:
    folder = copied / "global_step_10"
    (folder / name).write_bytes(b"x")
    assert (verify(folder) == []) is harmless


def test_no_sound_checkpoint_left(copied: Path) -> None:
    for step in (5, 10):
        flip(0.5)(copied / f"global_step_{step}/trainer/optimizer.pt")
    with pytest.raises(UserError, match="No earlier checkpoint beside it is sound"):
        read_checkpoint(copied / "global_step_10")


def test_a_later_checkpoint_is_not_offered_as_earlier(copied: Path) -> None:
    flip(0.5)(copied / "global_step_5/trainer/optimizer.pt")
    with pytest.raises(UserError, match="No earlier checkpoint"):
        read_checkpoint(copied / "global_step_5")


def test_find_passes_over_incomplete(copied: Path) -> None:
    truncate(0.5)(copied / "global_step_10/trainer/optimizer.pt")
    assert not is_complete(copied / "global_step_10")
    assert find_checkpoint(copied) == copied / "global_step_5"
    with pytest.raises(UserError, match="global_step_5"):
        find_checkpoint(copied / "global_step_10")
