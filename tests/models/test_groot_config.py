from __future__ import annotations

import json

import pytest
from groot_toys import ARCHITECTURE, toy_config

from regrasp.errors import UserError
from regrasp.experiment.load import load_config
from regrasp.models.groot.architecture import ArchitectureConfig
from regrasp.models.groot.config import GrootConfig


def test_tiny_takes_the_sizes_it_is_given():
    config = toy_config()
    assert config.image_size == ARCHITECTURE["image_size"]
    assert config.eagle_cfg.vision_config.num_tokens == 4
    assert config.eagle_cfg.text_config.num_key_value_heads == ARCHITECTURE["language_kv_heads"]
    assert config.action_head_cfg.diffusion_model_cfg.width == ARCHITECTURE["head_width"]
    assert config.action_head_cfg.max_num_embodiments == ARCHITECTURE["num_embodiments"]


@pytest.mark.parametrize("config", [toy_config(), GrootConfig()])
def test_json_round_trip(config):
    assert GrootConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_published_file_gets_the_published_backbone():
    published = {
        "action_dim": 32,
        "action_horizon": 16,
        "architectures": ["GR00T_N1_5"],
        "hidden_size": 2048,
        "model_dtype": "float32",
        "model_type": "gr00t_n1_5",
        "torch_dtype": "bfloat16",
        "backbone_cfg": {"eagle_path": "somewhere", "select_layer": 12, "tune_llm": False, "project_to_dim": None},
        "action_head_cfg": {
            "action_dim": 32,
            "hidden_size": 1024,
            "tune_projector": True,
            "diffusion_model_cfg": {
                "attention_head_dim": 48,
                "cross_attention_dim": 2048,
                "dropout": 0.2,
                "num_attention_heads": 32,
                "num_layers": 16,
                "output_dim": 1024,
            },
        },
    }
    assert GrootConfig.from_json(published) == GrootConfig()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("backbone_cfg", "project_to_dim"), 1536),
        (("backbone_cfg", "select_layer"), 8),
        (("action_head_cfg", "use_vlln"), False),
        (("action_head_cfg", "diffusion_model_cfg", "norm_type"), "layer_norm"),
        (("action_head_cfg", "diffusion_model_cfg", "num_layers"), "16"),
        (("action_head_cfg", "action_horizon"), True),
        (("backbone_cfg",), 3),
    ],
)
def test_unsupported_and_mistyped_values_name_the_key(path, value):
    content = GrootConfig().to_json()
    block = content
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    with pytest.raises(UserError) as error:
        GrootConfig.from_json(content, file="config.json")
    assert path[-1] in str(error.value.key)


def test_a_missing_size_is_named():
    content = GrootConfig().to_json()
    del content["action_head_cfg"]["diffusion_model_cfg"]["num_layers"]
    with pytest.raises(UserError) as error:
        GrootConfig.from_json(content)
    assert error.value.key == "action_head_cfg.diffusion_model_cfg.num_layers"


def test_indivisible_widths_are_refused():
    model = load_config("pick_cube_ppo_groot").config.actor.model
    found = [error.key for error in ArchitectureConfig(head_width=97, language_width=95).problems(model, {})]
    assert found == ["pretrain.architecture.head_width", "pretrain.architecture.language_width"]
    with pytest.raises(UserError, match="not supported"):
        toy_config(head_width=17)
