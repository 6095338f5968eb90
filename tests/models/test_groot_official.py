"""Checkpoints in the published layout: every key and shape of the 3 B model, and a small one loaded for real."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import official_layout as official
import pytest
import torch
from official_layout import INPUTS, PUBLISHED, SMALL, Shapes, write_official
from safetensors.torch import load_file, save_file

from regrasp.envs.contract import Observation, numbered_cameras
from regrasp.errors import UserError
from regrasp.models.groot.checkpoint import load_config, load_groot
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.network.action_head import ActionHead
from regrasp.models.groot.network.backbone import Backbone
from regrasp.models.groot.policy import CONTEXT_LAYERS
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.models.inputs import InputNames
from regrasp.models.registry import load_policy


def observation(batch: int = 2, state_dim: int = 5, num_views: int = 2) -> Observation:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (batch, num_views, 30, 40, 3), generator=generator, dtype=torch.uint8)
    return Observation(
        images=dict(zip(numbered_cameras(num_views), images.unbind(1), strict=True)),
        state={"state": torch.randn(batch, state_dim, generator=generator)},
        instruction=[official.INSTRUCTION] * batch,
    )


def count(shapes: Shapes) -> float:
    """Parameters in millions."""
    return sum(math.prod(shape) for shape in shapes.values()) / 1e6


def shapes_of(module: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def test_every_key_and_shape_of_the_published_model():
    config = GrootConfig.from_json(official.config_json(PUBLISHED))
    assert config == GrootConfig()
    with torch.device("meta"):
        network = torch.nn.ModuleDict(
            {
                "backbone": Backbone(config.eagle_cfg),
                "action_head": ActionHead(config.action_head_cfg, use_dropout=False),
            }
        )
    assert shapes_of(network) == official.official_shapes(PUBLISHED)


@pytest.mark.parametrize(
    ("shapes", "millions"),
    [
        ({**official.vision_shapes(PUBLISHED), **official.pooling_shapes(PUBLISHED)}, 427.7),
        (official.text_shapes(PUBLISHED), 914.7),
        (official.connector_shapes(PUBLISHED), 2.4),
        (official.dit_shapes(PUBLISHED), 550.4),
        (official.context_shapes(PUBLISHED), 201.4),
        (official.projector_shapes(PUBLISHED), 52.5 + 228.2 + 34.6),
        ({**official.official_shapes(PUBLISHED), **official.pooling_shapes(PUBLISHED)}, 2413.6),
        ({official.OUTPUT_LAYER: official.official_shapes(PUBLISHED)[official.EMBEDDING]}, 310.6),
    ],
)
def test_the_published_parameter_counts(shapes: Shapes, millions: float):
    assert count(shapes) == pytest.approx(millions, abs=0.16)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"embedding": "embed_tokens", "num_shards": 3},
        {"embedding": "both", "num_shards": 1},
        {"nesting": 1},
        {"nesting": 3, "prefix": "_groot_model.", "num_shards": 1},
        {"dtype": torch.float32},
        {"dtype": torch.float16, "prefix": "_groot_model."},
    ],
)
def test_a_published_folder_loads_whatever_its_keys_are_called(tmp_path: Path, variant: dict[str, Any]):
    expected = write_official(tmp_path, **variant)
    policy = load_groot(tmp_path, inputs=INPUTS)
    loaded = policy.state_dict()
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype == variant.get("dtype", torch.bfloat16)
        assert torch.equal(loaded[name], tensor), name
    actions = policy.predict(observation())
    assert actions.shape == (2, SMALL.horizon, 5)
    assert actions.isfinite().all()


def test_the_registry_loads_it_for_rl(tmp_path: Path):
    write_official(tmp_path)
    policy = GrootModelConfig(num_action_chunks=3, action_dim=5, value_head_hidden=(8,)).load(tmp_path, INPUTS)
    assert policy.spec.embodiment_id == 31
    assert policy.predict(observation()).shape == (2, 3, 5)


def test_another_embodiment_of_the_same_folder(tmp_path: Path):
    write_official(tmp_path)
    policy = load_groot(tmp_path, inputs=InputNames(embodiment_tag="gr1"))
    assert (policy.spec.embodiment_id, policy.spec.state_dim, policy.spec.action_dim) == (24, 29, 29)
    actions = policy.predict(observation(state_dim=29, num_views=1))
    assert actions.shape == (2, SMALL.horizon, 29)


def test_what_we_save_of_it_is_enough_by_itself(tmp_path: Path):
    write_official(tmp_path / "published")
    policy = load_groot(tmp_path / "published", inputs=INPUTS)
    policy.save(tmp_path / "ours")
    again = load_groot(tmp_path / "ours")
    assert again.config == policy.config
    assert torch.equal(again.predict(observation()), policy.predict(observation()))


def test_the_dtype_is_one_for_all_or_chosen_by_name(tmp_path: Path):
    expected = write_official(tmp_path)
    half = load_groot(tmp_path, inputs=INPUTS, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(half[name], tensor) for name, tensor in expected.items())

    def frozen_in_half(name: str) -> torch.dtype:
        return torch.bfloat16 if name.startswith("backbone.") else torch.float32

    settings = GrootModelConfig(num_action_chunks=2, action_dim=5, value_head_hidden=(8,))
    for name, tensor in load_groot(tmp_path, settings, INPUTS, dtype=frozen_in_half).state_dict().items():
        assert tensor.dtype == frozen_in_half(name)
        assert name not in expected or torch.equal(tensor, expected[name].to(tensor.dtype))


def test_what_trains_is_float32_and_what_does_not_follows_the_precision(tmp_path: Path):
    expected = write_official(tmp_path)
    settings = GrootModelConfig(
        num_action_chunks=2, action_dim=5, value_head_hidden=(8,), trainable="head_without_context"
    )
    assert {tensor.dtype for tensor in load_groot(tmp_path, settings, INPUTS).state_dict().values()} == {torch.float32}
    for name, tensor in load_groot(tmp_path, replace(settings, precision="bf16"), INPUTS).state_dict().items():
        is_frozen = name.startswith(("backbone.", *CONTEXT_LAYERS))
        assert tensor.dtype == (torch.bfloat16 if is_frozen else torch.float32), name
        assert name not in expected or torch.equal(tensor, expected[name].to(tensor.dtype))


def test_sizes_come_from_the_eagle_folder_from_eagle_cfg_or_are_the_published_ones(tmp_path: Path):
    write_official(tmp_path)
    config = load_config(tmp_path)
    assert config.eagle_cfg.text_config.num_hidden_layers == SMALL.text_layers
    assert config.eagle_cfg.vision_config.num_tokens == 4
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    (tmp_path / "eagle2_hg_model" / "config.json").unlink()
    assert load_config(tmp_path) == config
    (tmp_path / "config.json").write_text(json.dumps(official.config_json(PUBLISHED)))
    official.write(tmp_path / "eagle2_hg_model" / "config.json", official.eagle_json(PUBLISHED))
    assert load_config(tmp_path) == GrootConfig()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_pixel_shuffle", True),
        ("mlp_connector_layers", 2),
        ("select_layer", -2),
        ("force_image_size", 448),
        ("text_config.attention_bias", True),
        ("vision_config.patch_size", "14"),
    ],
)
def test_another_eagle_is_refused_by_key(tmp_path: Path, key: str, value: Any):
    write_official(tmp_path)
    file = tmp_path / "eagle2_hg_model" / "config.json"
    content = json.loads(file.read_text())
    *block, name = key.split(".")
    (content[block[0]] if block else content)[name] = value
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        load_config(tmp_path)
    assert (error.value.key, error.value.value, error.value.file) == (key, value, str(file))


@pytest.mark.parametrize("layers", [0, 4, "2"])
def test_a_cut_that_the_language_model_does_not_have(tmp_path: Path, layers: Any):
    write_official(tmp_path)
    content = official.config_json(SMALL)
    content["backbone_cfg"]["select_layer"] = layers
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        load_config(tmp_path)
    assert error.value.key == "backbone_cfg.select_layer"
    assert error.value.file == str(tmp_path / "config.json")


def test_two_keys_for_one_tensor_are_an_error(tmp_path: Path):
    write_official(tmp_path, num_shards=1)
    state = load_file(tmp_path / "model.safetensors")
    name = official.VISION + "post_layernorm.bias"
    state[name.replace("vision_model.vision_model.", "vision_model.")] = state[name].clone()
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"Two tensors for one place.*post_layernorm\.bias"):
        load_groot(tmp_path, inputs=INPUTS)


@pytest.mark.parametrize(
    ("content", "files", "what"),
    [
        ({"model_type": "Gr00tN1d6"}, {}, "GR00T N1.6"),
        ({"model_type": "gr00t_n1"}, {}, "GR00T N1 "),
        ({"model_type": "custom", "architectures": ["Gr00tN1d7"]}, {}, "GR00T N1.7"),
        ({"model_name": "nvidia/Cosmos-Reason2-2B", "max_action_dim": 132}, {}, "GR00T N1.7"),
        ({"model_type": "gr00t_n1_5", "model_name": "nvidia/Eagle-Block2A-2B-v2"}, {}, "GR00T N1.6"),
        ({}, {"processor_config.json": {"processor_class": "Gr00tN1d7Processor"}}, "GR00T N1.7"),
        ({}, {"embodiment_id.json": {"libero_sim": 2}, "statistics.json": {}}, "GR00T N1.6 or later"),
        ({"type": "groot"}, {}, "LeRobot"),
    ],
)
def test_other_generations_are_named_by_whatever_shows_them(
    tmp_path: Path, content: dict[str, Any], files: dict[str, Any], what: str
):
    for name, value in {"config.json": content, **files}.items():
        official.write(tmp_path / name, value)
    with pytest.raises(UserError, match=what) as error:
        load_policy(tmp_path)
    assert error.value.file == str(tmp_path / next(iter(files), "config.json"))
    shown = json.loads((tmp_path / next(iter(files), "config.json")).read_text())
    assert error.value.key is None or str(error.value.value) in str(shown[error.value.key])
