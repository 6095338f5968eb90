"""Weights of Hugging Face style folders, against the safetensors library itself."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from regrasp.checkpoint.hub_folder import load_safetensors, save_safetensors
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
