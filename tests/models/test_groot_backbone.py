from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from groot_toys import SENTENCES, TEXT_LENGTH, toy_config, toy_observation, toy_processor
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Qwen3Config, Qwen3Model, SiglipVisionConfig, SiglipVisionModel
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention
from transformers.utils.import_utils import is_flash_attn_2_available

from regrasp.errors import UserError
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.network.backbone import Backbone
from regrasp.models.initialization import seeded


def build(config: GrootConfig) -> Backbone:
    with seeded(1):
        return Backbone(config.eagle_cfg).eval()


def libraries(config: GrootConfig, backbone: Backbone) -> tuple[SiglipVisionModel, Qwen3Model]:
    """The libraries' models with the backbone's weights and eager attention."""
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
    return vision, language


def hand_composed(config: GrootConfig, backbone: Backbone, images: Tensor, input_ids: Tensor) -> Tensor:
    """One row at a time, unpadded, with eager attention and the libraries' own masks."""
    vision, language = libraries(config, backbone)
    features = []
    for row_images, row in zip(images, input_ids, strict=True):
        ids = row[row != 0]
        pixels = (row_images.float() / 255 - 0.5) / 0.5
        patches = [vision(view.permute(2, 0, 1)[None]).last_hidden_state[0] for view in pixels]
        views = [backbone.eagle_model.mlp1(view) for view in patches]
        embeddings = language.embed_tokens(ids)
        embeddings[ids == 1] = torch.cat(views)
        output = language(inputs_embeds=embeddings[None], output_hidden_states=True)
        features.append(output.hidden_states[config.backbone_cfg.select_layer][0])
    return torch.cat(features)


@pytest.mark.parametrize("text_first", [True, False])
@torch.no_grad()
def test_equals_transformers_modules_composed_by_hand(text_first):
    config = toy_config()
    backbone = build(config)
    inputs = toy_processor(config, num_views=2, text_first=text_first).prepare(toy_observation(3, num_views=2))
    features = backbone(inputs["images"], inputs["input_ids"])
    expected = hand_composed(config, backbone, inputs["images"], inputs["input_ids"])
    torch.testing.assert_close(features[inputs["input_ids"] != 0], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_published_image_is_256_tokens():
    config = toy_config(image_size=224)
    backbone = build(config)
    inputs = toy_processor(config, num_views=2, text_length=12).prepare(toy_observation(2, num_views=2, size=224))
    ids = inputs["input_ids"]
    assert ids.shape == (2, 12 + 2 * 256)
    assert (ids == config.eagle_cfg.image_token_index).sum(1).tolist() == [512, 512]
    features = backbone(inputs["images"], ids)
    expected = hand_composed(config, backbone, inputs["images"], ids)
    torch.testing.assert_close(features[ids != 0], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_padded_position_passes_the_mlps_alone():
    """What unpadding attention leaves of it: no attention output, and o_proj has no bias."""
    config = toy_config()
    backbone = build(config)
    inputs = toy_processor(config).prepare(toy_observation(3))
    padded = inputs["input_ids"] == 0
    w = backbone.eagle_model.language_model.model.state_dict()
    x = w["embed_tokens.weight"][inputs["input_ids"][padded]]
    for i in range(config.eagle_cfg.text_config.num_hidden_layers):
        normed = F.rms_norm(x, x.shape[-1:], w[f"layers.{i}.post_attention_layernorm.weight"], 1e-6)
        gate, up, down = (w[f"layers.{i}.mlp.{name}_proj.weight"].T for name in ("gate", "up", "down"))
        x = x + (F.silu(normed @ gate) * (normed @ up)) @ down
    expected = F.rms_norm(x, x.shape[-1:], w["norm.weight"], 1e-6)
    features = backbone(inputs["images"], inputs["input_ids"])
    torch.testing.assert_close(features[padded], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@torch.no_grad()
def test_features_do_not_depend_on_what_a_kernel_gives_padding(kernel):
    config = toy_config()
    backbone = build(config)
    inputs = toy_processor(config).prepare(toy_observation(3))
    expected = backbone(inputs["images"], inputs["input_ids"])
    with sdpa_kernel(kernel):
        features = backbone(inputs["images"], inputs["input_ids"])
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    for module in backbone.modules():
        if isinstance(module, Qwen3Attention):
            module.register_forward_hook(_spoil_padding((inputs["input_ids"] == 0).sort(dim=1).values))
    assert torch.equal(backbone(inputs["images"], inputs["input_ids"]), expected)


def _spoil_padding(padded: Tensor) -> Any:
    """A kernel that gives padded queries, behind the tokens there, the number 7."""
    return lambda _module, _inputs, output: (output[0].masked_fill(padded.unsqueeze(-1), 7.0), *output[1:])


@torch.no_grad()
def test_positions_are_counted_from_the_padding():
    """The library's own two-dimensional mask over the padded sequence, which passes no positions either."""
    config = toy_config()
    backbone = build(config)
    inputs = toy_processor(config).prepare(toy_observation(3))
    ids, (_, language) = inputs["input_ids"], libraries(config, backbone)
    words = language.embed_tokens(ids)
    ours = backbone.eagle_model.language_model(words, ids != 0, words[0, 0])
    theirs = language(inputs_embeds=words, attention_mask=(ids != 0).long()).last_hidden_state
    torch.testing.assert_close(ours[ids != 0], theirs[ids != 0], atol=1e-5, rtol=1e-5)
    shifted = language(inputs_embeds=words[:, 1:], attention_mask=(ids[:, 1:] != 0).long()).last_hidden_state
    torch.testing.assert_close(theirs[:, 1:][ids[:, 1:] != 0], shifted[ids[:, 1:] != 0], atol=1e-4, rtol=1e-4)


def test_rotary_frequencies_stay_in_single_precision():
    config = toy_config(language_head_dim=128)
    language = build(config).to(torch.bfloat16).eagle_model.language_model
    assert language.model.norm.weight.dtype == torch.bfloat16
    exact = torch.tensor([1e6 ** (-2 * i / 128) for i in range(64)], dtype=torch.float64)
    frequencies = language.model.rotary_emb.inv_freq
    assert isinstance(frequencies, Tensor)
    torch.testing.assert_close(frequencies.double(), exact, atol=0, rtol=1e-6)
    assert 850 * (exact.bfloat16().double() - exact).abs().max() > 0.5, "radians at position 850, if rounded"


@pytest.mark.skipif(is_flash_attn_2_available(), reason="flash-attn can run here")
def test_flash_attention_that_cannot_run_is_a_clear_error():
    with pytest.raises(UserError, match="flash-attn") as caught:
        Backbone(toy_config().eagle_cfg, "flash_attention_2")
    assert caught.value.key == "actor.model.attn_implementation"
    assert "sdpa" in str(caught.value.fix)


@pytest.mark.skipif(not is_flash_attn_2_available(), reason="needs a GPU and the package flash-attn")
@torch.no_grad()
def test_flash_attention_gives_the_same_features():
    config = toy_config()
    inputs = toy_processor(config).prepare(toy_observation(3)).to("cuda")
    assert (inputs["input_ids"][:, 0] == 0).any()
    features = []
    for attention in ("sdpa", "flash_attention_2"):
        with seeded(1):
            backbone = Backbone(config.eagle_cfg, attention).eval().to("cuda", torch.bfloat16)
        features.append(backbone(inputs["images"], inputs["input_ids"]).float())
    torch.testing.assert_close(*features, atol=0.05, rtol=0.05)


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
def test_what_is_known_of_padding_is_that_of_the_weights_there_are():
    config = toy_config()
    processor = toy_processor(config)
    inputs = processor.prepare(toy_observation(2))
    images, words = inputs["images"], inputs["input_ids"]
    backbone, other = (build(config).requires_grad_(False) for _ in range(2))
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.1
    expected = other(images, words)
    assert torch.equal(other(images, words), expected)
    assert not torch.equal(backbone(images, words), expected)
    backbone.load_state_dict(other.state_dict())
    assert torch.equal(backbone(images, words), expected)
    backbone.requires_grad_(True)
    with torch.no_grad():
        for weight in backbone.parameters():
            weight += 0.1
        for weight in other.parameters():
            weight += 0.1
    assert torch.equal(backbone(images, words), other.to(torch.float32)(images, words)), "once it learns, nothing is"


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
    first_view = slice(TEXT_LENGTH, TEXT_LENGTH + 4)
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
