from __future__ import annotations

import pytest
import torch
from groot_toys import SENTENCES, toy_config, toy_observation, toy_processor
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model, SiglipVisionConfig, SiglipVisionModel

from regrasp.models.groot.backbone import Backbone
from regrasp.models.groot.config import GrootConfig
from regrasp.models.initialization import seeded


def build(config: GrootConfig) -> Backbone:
    with seeded(1):
        return Backbone(config.eagle_cfg).eval()


def hand_composed(config: GrootConfig, backbone: Backbone, images: Tensor, input_ids: Tensor) -> Tensor:
    """One row at a time, unpadded, with eager attention and the libraries' own masks."""
    sizes, words = config.eagle_cfg.vision_config, config.eagle_cfg.text_config
    vision = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=sizes.hidden_size,
            num_hidden_layers=sizes.num_hidden_layers,
            num_attention_heads=sizes.num_attention_heads,
            intermediate_size=sizes.intermediate_size,
            patch_size=sizes.patch_size,
            image_size=sizes.image_size,
            vision_use_head=False,
        )
    ).eval()
    language = Qwen3Model(
        Qwen3Config(
            vocab_size=words.vocab_size,
            hidden_size=words.hidden_size,
            num_hidden_layers=words.num_hidden_layers,
            num_attention_heads=words.num_attention_heads,
            num_key_value_heads=words.num_key_value_heads,
            head_dim=words.head_dim,
            intermediate_size=words.intermediate_size,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    ).eval()
    vision.set_attn_implementation("eager")
    language.set_attn_implementation("eager")
    eagle = backbone.eagle_model
    vision.load_state_dict(eagle.vision_model.vision_model.state_dict())
    language.load_state_dict(eagle.language_model.model.state_dict())
    features = []
    for row_images, row in zip(images, input_ids, strict=True):
        ids = row[row != 0]
        pixels = (row_images.float() / 255 - 0.5) / 0.5
        views = [eagle.mlp1(vision(view.permute(2, 0, 1)[None]).last_hidden_state[0]) for view in pixels]
        embeddings = language.embed_tokens(ids)
        embeddings[ids == 1] = torch.cat(views)
        features.append(language(inputs_embeds=embeddings[None]).last_hidden_state[0])
    return torch.cat(features)


@pytest.mark.parametrize("text_first", [True, False])
@torch.no_grad()
def test_equals_transformers_modules_composed_by_hand(text_first):
    config = toy_config(text_first=text_first)
    backbone = build(config)
    inputs = toy_processor(config, num_views=2).prepare(toy_observation(3, num_views=2))
    features = backbone(inputs["images"], inputs["input_ids"])
    expected = hand_composed(config, backbone, inputs["images"], inputs["input_ids"])
    torch.testing.assert_close(features[inputs["input_ids"] != 0], expected, atol=1e-5, rtol=1e-5)


def test_padding_is_finite_forward_and_backward():
    config = toy_config()
    backbone = build(config)
    inputs = toy_processor(config).prepare(toy_observation(3))
    assert (inputs["input_ids"][:, 0] == 0).any()
    features = backbone(inputs["images"], inputs["input_ids"])
    features.square().sum().backward()
    assert features.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


@torch.no_grad()
def test_a_padded_position_sees_nothing():
    config = toy_config()
    backbone = build(config)
    processor = toy_processor(config)
    first, second = (
        backbone(*map(processor.prepare(toy_observation(3, seed=s)).get, ("images", "input_ids"))) for s in (0, 1)
    )
    padded = processor.text.encode(SENTENCES) == 0
    assert torch.equal(first[padded], second[padded])
    assert not torch.equal(first[~padded], second[~padded])
    assert first[padded].std(0).max() < 1e-6


@torch.no_grad()
def test_a_row_does_not_depend_on_the_others():
    config = toy_config()
    backbone = build(config)
    inputs = toy_processor(config).prepare(toy_observation(6))
    together = backbone(inputs["images"], inputs["input_ids"])
    for row in range(6):
        alone = backbone(inputs["images"][row : row + 1], inputs["input_ids"][row : row + 1])
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_views_are_read_in_order():
    config = toy_config()
    backbone = build(config)
    inputs = toy_processor(config, num_views=2).prepare(toy_observation(2, num_views=2))
    straight = backbone(inputs["images"], inputs["input_ids"])
    swapped = backbone(inputs["images"].flip(1), inputs["input_ids"])
    assert not torch.allclose(straight, swapped)
    first_view = slice(config.text_length, config.text_length + 4)
    changed = inputs["images"].clone()
    changed[:, 1] = 0
    torch.testing.assert_close(
        backbone(changed, inputs["input_ids"])[:, first_view], straight[:, first_view], atol=1e-5, rtol=1e-5
    )


def test_construction_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    first, second = build(toy_config()), build(toy_config())
    assert torch.equal(torch.random.get_rng_state(), state)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
