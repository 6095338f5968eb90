"""OpenVLA folders: published ones are loaded, saved and exported bit for bit; what does not fit is one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from openvla_layout import KEY, SMALL, statistics, write_openvla
from safetensors.torch import save_file

from regrasp.checkpoint.hub_folder import load_safetensors
from regrasp.errors import UserError
from regrasp.folders import check_checksums
from regrasp.models.config import ExportOptions
from regrasp.models.inputs import InputNames
from regrasp.models.openvla.checkpoint import load_openvla, preview_openvla
from regrasp.models.openvla.settings import OpenVlaModelConfig, OpenVlaOftModelConfig
from regrasp.models.origin import Origin, read_origin
from regrasp.models.registry import check_folder, load_policy, model_in

AUTOREGRESSIVE = OpenVlaModelConfig(action_dim=7)
PARALLEL = OpenVlaOftModelConfig(action_dim=7, num_action_chunks=2)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_openvla(folder)
    return folder


def copied(source: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def change_config(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_published_folder_is_loaded_as_it_is_stored(published: Path) -> None:
    policy, stored = load_policy(published), load_safetensors(published)
    assert {name: tensor.dtype for name, tensor in policy.state_dict().items()} == dict.fromkeys(stored, torch.bfloat16)
    assert all(torch.equal(policy.state_dict()[name], tensor) for name, tensor in stored.items())
    assert policy.spec.num_action_chunks == 1
    assert policy.spec.action_dim == 7
    assert policy.spec.state_dim == 0


@pytest.mark.parametrize("settings", [AUTOREGRESSIVE, PARALLEL], ids=["openvla", "openvla_oft"])
def test_what_is_saved_is_the_published_layout_and_loads_again(
    settings: OpenVlaModelConfig, published: Path, tmp_path: Path
) -> None:
    policy = load_openvla(published, replace(settings, add_value_head=False), dtype=torch.bfloat16)
    policy.write_folder(tmp_path / "saved")
    saved, stored = load_safetensors(tmp_path / "saved"), load_safetensors(published)
    assert saved.keys() == stored.keys()
    assert all(torch.equal(saved[name], stored[name]) and saved[name].dtype == stored[name].dtype for name in stored)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config == json.loads((published / "config.json").read_text())
    again = load_policy(tmp_path / "saved")
    assert again.spec == policy.spec
    assert again.describe_inputs() == policy.describe_inputs()


def test_an_export_has_the_bits_of_the_published_folder(published: Path, tmp_path: Path) -> None:
    output = model_in(published).export(ExportOptions(published, tmp_path / "out", max_shard_bytes=40_000))
    exported, stored = load_safetensors(output), load_safetensors(published)
    assert len(list(output.glob("model-*.safetensors"))) > 1
    assert exported.keys() == stored.keys()
    assert all(torch.equal(exported[name], stored[name]) for name in stored)
    for name in ("preprocessor_config.json", "tokenizer.json", "generation_config.json"):
        assert (output / name).read_bytes() == (published / name).read_bytes()
    assert json.loads((output / "config.json").read_text()) == json.loads((published / "config.json").read_text())


def test_a_value_head_is_kept_in_checkpoints_and_left_out_of_exports(published: Path, tmp_path: Path) -> None:
    policy = load_openvla(published, AUTOREGRESSIVE)
    policy.write_folder(tmp_path / "trained")
    assert any(name.startswith("value_head.") for name in load_safetensors(tmp_path / "trained"))
    output = model_in(published).export(ExportOptions(tmp_path / "trained", tmp_path / "out", dtype=torch.bfloat16))
    exported, stored = load_safetensors(output), load_safetensors(published)
    assert exported.keys() == stored.keys()
    assert all(torch.equal(exported[name], stored[name]) for name in stored)
    kept = ExportOptions(tmp_path / "trained", tmp_path / "kept", with_value_head=True)
    assert any(name.startswith("value_head.") for name in load_safetensors(model_in(published).export(kept)))


def test_an_export_says_what_it_was_made_for(published: Path, tmp_path: Path) -> None:
    origin = Origin(("Regrasp-Pick-Cube-v0",), ("pick up the red cube",)).made_with("mine", "actor: {}\n")
    output = model_in(published).export(ExportOptions(published, tmp_path / "out", origin=origin))
    assert read_origin(output) == origin
    assert "- Task: `Regrasp-Pick-Cube-v0`" in (output / "README.md").read_text()
    check_checksums(output)


def test_a_preview_is_the_policy_without_its_weights(published: Path) -> None:
    policy = preview_openvla(published, AUTOREGRESSIVE)
    assert all(parameter.is_meta for parameter in policy.parameters())
    assert policy.spec == load_openvla(published, AUTOREGRESSIVE).spec


def test_with_bf16_what_trains_is_float32(published: Path) -> None:
    policy = load_openvla(published, replace(AUTOREGRESSIVE, precision="bf16"))
    assert {p.dtype for _, p in policy.trainable("head")} == {torch.float32}
    assert {p.dtype for _, p in policy.trainable("backbone")} == {torch.bfloat16}
    adapted = load_openvla(published, replace(AUTOREGRESSIVE, precision="bf16", is_lora=True))
    assert {p.dtype for _, p in adapted.trainable("head")} == {torch.bfloat16}


def write_adapters(folder: Path, layer: str, down: torch.Tensor, up: torch.Tensor, **settings: object) -> Path:
    folder.mkdir()
    content = {"peft_type": "LORA", "r": len(down), "lora_alpha": 6, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    weights = {f"base_model.model.{layer}.lora_A.weight": down, f"base_model.model.{layer}.lora_B.weight": up}
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def test_adapters_are_merged_into_the_base_model(published: Path, tmp_path: Path) -> None:
    layer = "language_model.model.layers.1.self_attn.q_proj"
    down, up = torch.randn(2, SMALL.width), torch.randn(SMALL.width, 2)
    folder = write_adapters(tmp_path / "adapters", layer, down, up)
    base = load_openvla(published, AUTOREGRESSIVE).state_dict()
    merged = load_openvla(published, replace(AUTOREGRESSIVE, lora_path=str(folder))).state_dict()
    torch.testing.assert_close(merged[f"{layer}.weight"], base[f"{layer}.weight"] + 3 * up @ down)
    changed = [name for name in base if not torch.equal(base[name], merged[name])]
    assert changed == [f"{layer}.weight"]


@pytest.mark.parametrize(
    ("layer", "settings", "words"),
    [
        ("language_model.model.layers.9.mlp.up_proj", {}, "another model"),
        ("language_model.model.layers.0.self_attn.q_proj", {"use_dora": True}, "not supported"),
        ("language_model.model.layers.0.self_attn.q_proj", {"modules_to_save": ["lm_head"]}, "differ by layer"),
        ("language_model.model.layers.0.mlp.up_proj", {}, "another size"),
    ],
)
def test_other_adapters_are_refused(
    layer: str, settings: dict[str, object], words: str, published: Path, tmp_path: Path
) -> None:
    folder = write_adapters(
        tmp_path / "adapters", layer, torch.randn(2, SMALL.width), torch.randn(SMALL.width, 2), **settings
    )
    for load in (load_openvla, preview_openvla):
        with pytest.raises(UserError, match=words):
            load(published, replace(AUTOREGRESSIVE, lora_path=str(folder)))


def test_a_preview_looks_for_the_adapters_too(published: Path) -> None:
    with pytest.raises(UserError, match="No adapters in this folder") as error:
        preview_openvla(published, replace(AUTOREGRESSIVE, lora_path="nowhere"))
    assert (error.value.key, error.value.value) == ("actor.model.lora_path", "nowhere")


def test_an_adapter_folder_in_place_of_a_model_says_so(tmp_path: Path) -> None:
    folder = write_adapters(tmp_path / "adapters", "x", torch.zeros(1, 1), torch.zeros(1, 1))
    with pytest.raises(UserError, match="holds adapters") as error:
        check_folder(AUTOREGRESSIVE, folder)
    assert "lora_path" in str(error.value)


def another_vla(folder: Path) -> None:
    change_config(folder, model_type="pi0")


def prismatic(folder: Path) -> None:
    change_config(folder, model_type="prismatic")


def with_proprio(folder: Path) -> None:
    (folder / "proprio_projector--10000_checkpoint.pt").write_bytes(b"")


def single_tower(folder: Path) -> None:
    change_config(folder, use_fused_vision_backbone=False)


def other_towers(folder: Path) -> None:
    change_config(folder, timm_model_ids=["vit_b"], tower_sizes=[])


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def of_another_width(folder: Path) -> None:
    change_config(folder, norm_stats={KEY: statistics(5)})


def without_statistics(folder: Path) -> None:
    change_config(folder, norm_stats={})


def of_two_data_sets(folder: Path) -> None:
    change_config(folder, norm_stats={"a": statistics(7), "b": statistics(7)})


def without_a_tensor(folder: Path) -> None:
    weights = load_safetensors(folder)
    for file in folder.glob("model*"):
        file.unlink()
    del weights["projector.fc2.bias"]
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (another_vla, "model_type"),
        (prismatic, "Prismatic"),
        (with_proprio, "proprio"),
        (single_tower, "use_fused_vision_backbone"),
        (other_towers, "timm_model_ids"),
        (without_tokenizer, "tokenizer"),
        (of_another_width, "Another action width"),
        (without_statistics, "dataset_statistics.json"),
        (of_two_data_sets, "one of a, b"),
        (without_a_tensor, "1 missing: projector.fc2.bias"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(
    damage: Callable[[Path], None], words: str, published: Path, tmp_path: Path
) -> None:
    folder = copied(published, tmp_path / "model")
    damage(folder)
    with pytest.raises(UserError) as error:
        AUTOREGRESSIVE.load(check_folder(AUTOREGRESSIVE, folder), InputNames())
    assert words in str(error.value)


def test_a_fine_tunes_statistics_count(published: Path, tmp_path: Path) -> None:
    folder = copied(published, tmp_path / "model")
    (folder / "dataset_statistics.json").write_text(json.dumps({"mine": statistics(7)}))
    policy = load_openvla(folder, replace(AUTOREGRESSIVE, unnorm_key="mine"))
    assert "actions of mine" in policy.describe_inputs()
    with pytest.raises(UserError, match="no statistics of this name"):
        load_openvla(folder, replace(AUTOREGRESSIVE, unnorm_key="yours"))


def test_a_folder_that_knows_how_it_decides_is_not_used_otherwise(published: Path, tmp_path: Path) -> None:
    load_openvla(published, PARALLEL).write_folder(tmp_path / "oft")
    with pytest.raises(UserError, match="another way") as error:
        load_openvla(tmp_path / "oft", AUTOREGRESSIVE)
    assert "openvla_oft" in str(error.value)
    with pytest.raises(UserError, match="another way"):
        load_openvla(tmp_path / "oft", replace(PARALLEL, num_action_chunks=3))
