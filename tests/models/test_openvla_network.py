"""The network of OpenVLA: transformers' own towers and Llama under a key map, and the published names and shapes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from openvla_layout import (
    PUBLISHED,
    SMALL,
    published_config,
    published_shapes,
    random_weights,
    small_config,
    statistics,
)
from torch import Tensor
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from regrasp.models.openvla.checkpoint import published_layout
from regrasp.models.openvla.config import OpenVlaConfig
from regrasp.models.openvla.network.language import LanguageModel
from regrasp.models.openvla.network.vision import VisionBackbone

FILE = Path("config.json")
CONFIG = OpenVlaConfig.read(small_config(SMALL, {"toy": statistics(7)}), FILE)
WEIGHTS = random_weights(published_shapes(SMALL), torch.float32)


def part(prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in WEIGHTS.items() if name.startswith(prefix)}


def split_qkv(name: str, tensor: Tensor, names: tuple[str, str, str]) -> dict[str, Tensor]:
    stem, kind = name.rsplit("qkv.", 1)
    return {f"{stem}{other}.{kind}": piece for other, piece in zip(names, tensor.chunk(3), strict=True)}


DINO_NAMES = (
    (r"patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^reg_token$", "embeddings.register_tokens"),
    (r"^blocks\.", "encoder.layer."),
    (r"attn\.proj", "attention.o_proj"),
    (r"ls(\d)\.scale_factor", r"layer_scale\1.lambda1"),
    (r"^norm\.", "layernorm."),
)
SIGLIP_NAMES = (
    (r"patch_embed\.proj", "embeddings.patch_embedding"),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"attn\.proj", "self_attn.out_proj"),
    (r"^norm\.", "post_layernorm."),
)


def renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def library_dino() -> Dinov2WithRegistersModel:
    tower = SMALL.dino
    model = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=tower.width,
            num_hidden_layers=tower.layers,
            num_attention_heads=tower.heads,
            mlp_ratio=tower.mlp // tower.width,
            image_size=SMALL.image,
            patch_size=SMALL.patch,
            num_register_tokens=4,
            layer_norm_eps=1e-6,
            hidden_act="gelu",
        )
    )
    state = {"embeddings.mask_token": torch.zeros(1, tower.width)}
    for name, tensor in part("vision_backbone.featurizer.").items():
        if name == "pos_embed":  # timm adds no position to the class token, and none to registers
            state["embeddings.position_embeddings"] = torch.cat([torch.zeros(1, 1, tower.width), tensor], dim=1)
        elif ".qkv." in name:
            renamed_stem = renamed(name, DINO_NAMES).replace("attn.qkv", "attention.qkv")
            state |= split_qkv(renamed_stem, tensor, ("q_proj", "k_proj", "v_proj"))
        else:
            state[renamed(name, DINO_NAMES)] = tensor
    model.load_state_dict(state)
    return model.eval()


def library_siglip() -> SiglipVisionModel:
    tower = SMALL.siglip
    config = SiglipVisionConfig(
        hidden_size=tower.width,
        num_hidden_layers=tower.layers,
        num_attention_heads=tower.heads,
        intermediate_size=tower.mlp,
        image_size=SMALL.image,
        patch_size=SMALL.patch,
        hidden_act="gelu",
        vision_use_head=False,
    )
    model = SiglipVisionModel(config)
    state: dict[str, Tensor] = {}
    for name, tensor in part("vision_backbone.fused_featurizer.").items():
        if name == "pos_embed":
            state["embeddings.position_embedding.weight"] = tensor[0]
        elif ".qkv." in name:
            renamed_stem = renamed(name, SIGLIP_NAMES).replace("attn.qkv", "self_attn.qkv")
            state |= split_qkv(renamed_stem, tensor, ("q_proj", "k_proj", "v_proj"))
        elif not name.startswith("attn_pool."):
            state[renamed(name, SIGLIP_NAMES)] = tensor
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def test_the_towers_are_those_of_transformers_up_to_the_second_to_last_block() -> None:
    backbone = VisionBackbone(CONFIG.towers, CONFIG.image_size)
    backbone.load_state_dict(part("vision_backbone."))
    pixels = torch.randn(3, 6, SMALL.image, SMALL.image, generator=torch.Generator().manual_seed(1))
    dino = library_dino()(pixels[:, :3], output_hidden_states=True).hidden_states[-2][:, 5:]
    siglip = library_siglip()(pixels[:, 3:], output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(backbone(pixels), torch.cat([dino, siglip], dim=-1), atol=1e-5, rtol=1e-5)
    unused = backbone.unused()
    for name, parameter in backbone.named_parameters():
        if name.startswith(unused):
            parameter.fill_(float("nan"))
    assert backbone(pixels).isfinite().all()


def language() -> tuple[LanguageModel, LlamaForCausalLM]:
    own = LanguageModel(CONFIG.language)
    own.load_state_dict(part("language_model."))
    library = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SMALL.vocabulary,
            hidden_size=SMALL.width,
            intermediate_size=SMALL.mlp,
            num_hidden_layers=SMALL.layers,
            num_attention_heads=SMALL.heads,
            num_key_value_heads=SMALL.key_heads,
        )
    )
    library.load_state_dict(part("language_model."))
    return own.eval(), library.eval()


@torch.no_grad()
def test_the_language_model_is_transformers_llama() -> None:
    own, library = language()
    ids = torch.randint(0, SMALL.vocabulary, (3, 9), generator=torch.Generator().manual_seed(2))
    hidden = own.model.norm(own.whole(own.embed(ids)))
    torch.testing.assert_close(own.logits(hidden, 0, SMALL.vocabulary), library(ids).logits, atol=1e-5, rtol=1e-5)
    first, stop = CONFIG.action_ids
    torch.testing.assert_close(own.logits(hidden, first, stop), library(ids).logits[..., first:stop])


@torch.no_grad()
def test_both_ways_attention_is_transformers_llama_with_a_mask_of_its_own() -> None:
    own, library = language()
    ids = torch.randint(0, SMALL.vocabulary, (2, 7), generator=torch.Generator().manual_seed(3))
    visible = torch.tensor([[True] * 7, [True] * 5 + [False] * 2])
    mask = visible[:, None, None, :].expand(2, 1, 7, 7)
    hidden = own.model.norm(own.whole(own.embed(ids), visible))
    expected = library.model(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(hidden[visible], expected[visible], atol=1e-5, rtol=1e-5)
    causal = own.model.norm(own.whole(own.embed(ids)))
    assert (hidden - causal)[:, 0].abs().max() > 1e-3


def test_every_published_name_and_shape_is_there() -> None:
    config = OpenVlaConfig.read(published_config({"bridge_orig": statistics(7)}), FILE)
    found = {name: tuple(tensor.shape) for name, tensor in published_layout(config).items()}
    assert found == published_shapes(PUBLISHED)
    assert config.action_ids == (31744, 32000)
    assert config.tokens_per_image == 256
    assert config.vision_width == 2176
    # Sums of the published shapes: 303.2 M and 427.7 M of the towers, 71.4 M, and Llama's 6738.9 M with 64 more words.
    assert sum(torch.Size(shape).numel() for shape in found.values()) == 7_541_237_184


@pytest.mark.parametrize("image", [28, 42])
def test_a_feature_has_a_place_for_every_patch(image: int) -> None:
    backbone = VisionBackbone(CONFIG.towers, image)
    assert backbone(torch.zeros(2, 6, image, image)).shape == (2, (image // 14) ** 2, 28)
