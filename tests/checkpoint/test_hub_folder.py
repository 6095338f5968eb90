"""Weights of Hugging Face style folders, against the safetensors library itself."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from regrasp.checkpoint import hub_folder
from regrasp.checkpoint.hub_folder import in_batches, list_safetensors, load_safetensors, read_stored, save_safetensors
from regrasp.errors import UserError


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(100, generator=generator)
    tied = torch.randn(3, 2, generator=generator)
    return {
        "z.transposed": torch.randn(4, 5, generator=generator).T,
        "view": flat[7:19].view(3, 4),
        "tied.a": tied,
        "tied.b": tied,
        "half": torch.randn(6, generator=generator).bfloat16(),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left)


def test_single_file_reads_with_the_library(tmp_path: Path) -> None:
    save_safetensors(state(), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    assert_same(load_file(file), state())
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    loaded = load_safetensors(tmp_path / "model")
    assert_same(loaded, state())
    assert list(loaded) == sorted(loaded)
    assert file.stat().st_size < 2000


def test_frozen_shard_is_the_same_whatever_is_trained(tmp_path: Path) -> None:
    frozen = {"view", "tied.a", "half", "not in the state"}
    save_safetensors(state(), tmp_path / "a", frozen)
    changed = {name: tensor if name in frozen else tensor + 1 for name, tensor in reversed(state().items())}
    save_safetensors(changed, tmp_path / "b", frozen)
    shards = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    assert (tmp_path / "a" / shards[0]).read_bytes() == (tmp_path / "b" / shards[0]).read_bytes()
    assert load_file(tmp_path / "a" / shards[0]).keys() == frozen & state().keys()
    assert_same(load_safetensors(tmp_path / "a"), state())
    assert_same(load_safetensors(tmp_path / "b"), changed)
    index = json.loads((tmp_path / "a" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state().values())


@pytest.mark.parametrize("first", [set(), {"view"}])
def test_earlier_weights_of_the_folder_are_replaced(tmp_path: Path, first: set[str]) -> None:
    save_safetensors({"view": torch.ones(1), "old": torch.ones(1)}, tmp_path, first)
    save_safetensors(state(), tmp_path, {"view"} - first)
    assert_same(load_safetensors(tmp_path), state())


def test_missing_shards_are_listed(tmp_path: Path) -> None:
    save_safetensors(state(), tmp_path, {"view"})
    for number in (1, 2):
        (tmp_path / f"model-{number:05d}-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"2 of 2.*model-00001-of-00002\.safetensors, model-00002-of-00002"):
        load_safetensors(tmp_path)


def test_shard_without_its_tensor(tmp_path: Path) -> None:
    save_safetensors(state(), tmp_path, {"view"})
    save_file({"other": torch.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match="view"):
        load_safetensors(tmp_path)


def test_headers_alone_tell_names_shapes_and_types(tmp_path: Path) -> None:
    save_safetensors(state(), tmp_path, {"view"})
    listed = list_safetensors(tmp_path)
    assert listed.keys() == state().keys()
    for name, tensor in state().items():
        stored = listed[name]
        assert (stored.shape, stored.dtype, stored.nbytes) == (tuple(tensor.shape), tensor.dtype, tensor.nbytes)
    assert listed["view"].file.name == "model-00001-of-00002.safetensors"


def test_tensors_are_read_in_batches_under_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_folder, "_MAPPED_BYTES", 50)
    save_safetensors(state(), tmp_path, {"view"})
    renamed = {f"my.{name}": stored for name, stored in list_safetensors(tmp_path).items() if name != "half"}
    read = {name.removeprefix("my."): tensor.clone() for name, tensor in read_stored(renamed)}
    assert_same(read, {name: tensor for name, tensor in state().items() if name != "half"})


def test_batches_fill_up_to_the_limit() -> None:
    assert in_batches({"a": 3, "b": 4, "c": 4, "d": 20, "e": 0, "f": 1}, 8) == [["a", "b"], ["c"], ["d"], ["e", "f"]]
    assert in_batches({}, 8) == []


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    save_safetensors(state(), tmp_path, {"view"})
    save_file({"view": torch.ones(1), "half": torch.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match=r"Two weight files hold half: model-00001.*model-00002") as error:
        list_safetensors(tmp_path)
    assert error.value.file == str(tmp_path / "model.safetensors.index.json")


def test_a_tensor_in_another_shard_than_the_index_says(tmp_path: Path) -> None:
    save_safetensors(state(), tmp_path, {"view"})
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["half"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"lists 1 tensors that their file does not hold.*half of model-00001"):
        list_safetensors(tmp_path)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    save_safetensors(state(), tmp_path, {"view"})
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(UserError, match="Not a sound safetensors file") as error:
        list_safetensors(tmp_path)
    assert error.value.file == str(shard)


def test_quantised_weights_are_not_read(tmp_path: Path) -> None:
    save_file({"scaled": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="F8_E4M3"):
        list_safetensors(tmp_path)


def test_damaged_weights(tmp_path: Path) -> None:
    save_safetensors(state(), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match="Not a sound safetensors file"):
        load_safetensors(tmp_path)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No weights"):
        load_safetensors(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"weight_map": {"a": "../secret.safetensors"}}', '{"weight_map": {"a": 3}}']
)
def test_bad_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError):
        load_safetensors(tmp_path)
