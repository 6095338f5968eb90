from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from groot_toys import keyed_noise, toy_observation, toy_policy, toy_settings, with_statistics
from safetensors.torch import load_file, save_file
from torch import Tensor

from regrasp.errors import UserError
from regrasp.models.groot.checkpoint import load_groot, load_processor, save_groot
from regrasp.models.normalization import Statistics

EMBEDDING = "backbone.eagle_model.language_model.model.embed_tokens.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    save_groot(toy_policy(), tmp_path)
    return tmp_path


def rewrite(folder: Path, state: dict[str, Tensor]) -> None:
    save_file(state, folder / "model.safetensors")


def test_the_folder_holds_everything(folder):
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "config.json",
        "experiment_cfg/metadata.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert json.loads((folder / "config.json").read_text())["model_type"] == "gr00t_n1_5"


def test_a_base_model_gets_a_fresh_value_head(tmp_path):
    save_groot(toy_policy(add_value_head=False), tmp_path)
    first, again, other = (load_groot(tmp_path, toy_settings(), seed=seed) for seed in (0, 0, 1))
    assert first.value_head is not None
    weights = [dict(policy.named_parameters())["value_head.mlp.0.weight"] for policy in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not first.value(first.encode(first.prepare(toy_observation(2)))).any()


def test_what_rl_added_is_dropped_for_inference(folder):
    policy = load_groot(folder)
    assert policy.value_head is None
    assert policy.spec.num_action_chunks == policy.config.action_horizon


def test_noise_net_is_added_and_kept(folder, tmp_path):
    policy = load_groot(folder, toy_settings(noise_method="flow_noise"))
    policy.save(tmp_path / "again")
    loaded = load_groot(tmp_path / "again", toy_settings(noise_method="flow_noise"), seed=7)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


def test_loaded_weights_train(folder):
    policy = load_groot(folder, toy_settings())
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    before = (folder / "model.safetensors").read_bytes()
    features = policy.encode(policy.prepare(toy_observation(2)))
    policy.act(features, keyed_noise(2)).log_probs.sum().backward()
    optimizer.step()
    assert (folder / "model.safetensors").read_bytes() == before


def test_published_and_fine_tuned_key_variants(folder):
    expected = toy_policy()
    state = load_file(folder / "model.safetensors")
    state["backbone.eagle_model.language_model.lm_head.weight"] = state.pop(EMBEDDING)
    state["backbone.eagle_model.vision_model.vision_model.head.probe"] = torch.zeros(1, 1, 16)
    rewrite(folder, {f"_groot_model.{name}": tensor for name, tensor in state.items()})
    loaded = load_groot(folder, toy_settings())
    for name, value in expected.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


def test_half_precision_shards(folder):
    state = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: state[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = load_groot(folder, toy_settings())
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].float())
    next(iter(folder.glob("model-00002*"))).unlink()
    with pytest.raises(UserError, match="model-00002"):
        load_groot(folder, toy_settings())


def test_missing_unexpected_and_misshapen_tensors_are_listed(folder):
    state = load_file(folder / "model.safetensors")
    del state["action_head.vlln.weight"]
    state["action_head.surprise"] = torch.zeros(1)
    state[EMBEDDING] = torch.zeros(3, 3)
    rewrite(folder, state)
    with pytest.raises(UserError) as error:
        load_groot(folder, toy_settings())
    for words in (
        "1 missing: action_head.vlln.weight",
        "1 unexpected: action_head.surprise",
        "1 of another shape",
        "(3, 3)",
    ):
        assert words in str(error.value)


def test_a_value_head_of_another_size_is_named(folder):
    with pytest.raises(UserError, match=r"value_head\.mlp\.0\.weight"):
        load_groot(folder, toy_settings(value_head_hidden=(4, 4)))


@pytest.mark.parametrize(
    "name",
    ["config.json", "processor_config.json", "experiment_cfg/metadata.json", "model.safetensors", "tokenizer.json"],
)
def test_missing_and_damaged_files_are_named(folder, name):
    file = folder / name
    whole = file.read_bytes()
    file.unlink()
    if name != "processor_config.json":  # without it, a folder is taken for a published one
        with pytest.raises(UserError) as error:
            load_groot(folder, toy_settings())
        assert error.value.file == str(file)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as error:
        load_groot(folder, toy_settings())
    assert error.value.file == str(file)


def test_a_backbone_is_adopted_for_other_data(folder):
    processor = load_processor(folder)
    other = with_statistics(processor, Statistics.identity(5), Statistics.identity(4), embodiment_id=0)
    policy = load_groot(folder, toy_settings(action_dim=4), processor=other)
    assert (policy.spec.state_dim, policy.spec.action_dim) == (5, 4)
    observation = dataclasses.replace(toy_observation(2), state={"state": torch.zeros(2, 5)})
    assert policy.predict(observation).shape == (2, 3, 4)
