"""OpenVLA checkpoints in the published layout, scaled down: plain dictionaries and safetensors, none of our code.

Keys and shapes are written out from the published architecture; `PUBLISHED` are the sizes of the 7 B model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

Shapes = dict[str, tuple[int, ...]]
INSTRUCTION = "pick up the red cube"
KEY = "toy_robot"
EMPTY = "▁"


@dataclass(frozen=True)
class Tower:
    width: int
    layers: int
    heads: int
    mlp: int


@dataclass(frozen=True)
class Sizes:
    """What the shapes depend on."""

    dino: Tower = Tower(1024, 24, 16, 4096)
    siglip: Tower = Tower(1152, 27, 16, 4304)
    patch: int = 14
    image: int = 224
    width: int = 4096
    mlp: int = 11008
    layers: int = 32
    heads: int = 32
    key_heads: int = 32
    vocabulary: int = 32064
    padding: int = 64


PUBLISHED = Sizes()
SMALL = Sizes(
    dino=Tower(16, 3, 2, 32),
    siglip=Tower(12, 3, 3, 20),
    image=28,
    width=24,
    mlp=32,
    layers=2,
    heads=4,
    key_heads=4,
    vocabulary=464,
    padding=64,
)


def linear(name: str, out: int, inside: int) -> Shapes:
    return {f"{name}.weight": (out, inside), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def tower_shapes(name: str, tower: Tower, s: Sizes, *, dino: bool) -> Shapes:
    width, patches = tower.width, (s.image // s.patch) ** 2
    shapes: Shapes = {
        f"{name}.pos_embed": (1, patches, width),
        f"{name}.patch_embed.proj.weight": (width, 3, s.patch, s.patch),
        f"{name}.patch_embed.proj.bias": (width,),
        **norm(f"{name}.norm", width),
    }
    if dino:
        shapes |= {f"{name}.cls_token": (1, 1, width), f"{name}.reg_token": (1, 4, width)}
    else:
        pool = f"{name}.attn_pool"
        shapes |= {
            f"{pool}.latent": (1, 1, width),
            **linear(f"{pool}.q", width, width),
            **linear(f"{pool}.kv", 2 * width, width),
            **linear(f"{pool}.proj", width, width),
            **norm(f"{pool}.norm", width),
            **linear(f"{pool}.mlp.fc1", tower.mlp, width),
            **linear(f"{pool}.mlp.fc2", width, tower.mlp),
        }
    for i in range(tower.layers):
        block = f"{name}.blocks.{i}"
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= linear(f"{block}.attn.qkv", 3 * width, width) | linear(f"{block}.attn.proj", width, width)
        shapes |= linear(f"{block}.mlp.fc1", tower.mlp, width) | linear(f"{block}.mlp.fc2", width, tower.mlp)
        if dino:
            shapes |= {f"{block}.ls{k}.scale_factor": (width,) for k in (1, 2)}
    return shapes


def language_shapes(s: Sizes) -> Shapes:
    model, keys = "language_model.model", s.width // s.heads * s.key_heads
    shapes: Shapes = {
        f"{model}.embed_tokens.weight": (s.vocabulary, s.width),
        f"{model}.norm.weight": (s.width,),
        "language_model.lm_head.weight": (s.vocabulary, s.width),
    }
    for i in range(s.layers):
        layer = f"{model}.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (s.width,),
            f"{layer}.post_attention_layernorm.weight": (s.width,),
            f"{layer}.self_attn.q_proj.weight": (s.width, s.width),
            f"{layer}.self_attn.k_proj.weight": (keys, s.width),
            f"{layer}.self_attn.v_proj.weight": (keys, s.width),
            f"{layer}.self_attn.o_proj.weight": (s.width, s.width),
            f"{layer}.mlp.gate_proj.weight": (s.mlp, s.width),
            f"{layer}.mlp.up_proj.weight": (s.mlp, s.width),
            f"{layer}.mlp.down_proj.weight": (s.width, s.mlp),
        }
    return shapes


def published_shapes(s: Sizes) -> Shapes:
    fused = s.dino.width + s.siglip.width
    return {
        **tower_shapes("vision_backbone.featurizer", s.dino, s, dino=True),
        **tower_shapes("vision_backbone.fused_featurizer", s.siglip, s, dino=False),
        **linear("projector.fc1", 4 * fused, fused),
        **linear("projector.fc2", s.width, 4 * fused),
        **linear("projector.fc3", s.width, s.width),
        **language_shapes(s),
    }


def published_config(norm_stats: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the 7 B model, without what nothing here reads."""
    return {
        "arch_specifier": "no-align+fused-gelu-mlp",
        "architectures": ["OpenVLAForActionPrediction"],
        "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"},
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [224, 224],
        "llm_backbone_id": "llama2-7b-pure",
        "llm_max_length": 2048,
        "model_type": "openvla",
        "n_action_bins": 256,
        "norm_stats": dict(norm_stats),
        "output_projector_states": False,
        "pad_to_multiple_of": 64,
        "pad_token_id": 32000,
        "text_config": {"model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": 32064},
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "timm_override_act_layers": [None, None],
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_fused_vision_backbone": True,
        "vision_backbone_id": "dinosiglip-vit-so-224px",
    }


def small_config(s: Sizes, norm_stats: Mapping[str, Any]) -> dict[str, Any]:
    """The same with sizes of its own."""
    return published_config(norm_stats) | {
        "image_sizes": [s.image, s.image],
        "pad_to_multiple_of": s.padding,
        "pad_token_id": s.vocabulary - s.padding,
        "text_config": {
            "model_type": "llama",
            "vocab_size": s.vocabulary,
            "hidden_size": s.width,
            "intermediate_size": s.mlp,
            "num_hidden_layers": s.layers,
            "num_attention_heads": s.heads,
            "num_key_value_heads": s.key_heads,
            "pad_token_id": s.vocabulary - s.padding,
        },
        "tower_sizes": [{**vars(tower), "patch_size": s.patch} for tower in (s.dino, s.siglip)],
    }


def statistics(width: int, mask: list[bool] | None = None) -> dict[str, Any]:
    """An entry of `norm_stats`."""
    row = {"min": -2.0, "max": 2.0, "mean": 0.1, "std": 0.5, "q01": -1.0, "q99": 1.5}
    action = {name: [value + 0.25 * i for i in range(width)] for name, value in row.items()}
    action["mask"] = mask or [True] * (width - 1) + [False]  # pyright: ignore[reportArgumentType]
    return {"action": action, "num_trajectories": 3, "num_transitions": 90}


def preprocessor_config(image: int) -> dict[str, Any]:
    means, stds = [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]], [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]]
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, image, image], [3, image, image]],
        "interpolations": ["bicubic", "bicubic"],
        "means": means,
        "processor_class": "PrismaticProcessor",
        "stds": stds,
        "use_fused_vision_backbone": True,
    }


def write_tokenizer(folder: Path) -> None:
    """Words of some prompts, with Llama's first ids and its token of a single space."""
    prompt = "In: What action should the robot take to pick up the red green blue cube? push it?\nOut:"
    words = ["<unk>", "<s>", "</s>", EMPTY, *dict.fromkeys(prompt.split())]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", words.index("<s>"))]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def random_weights(shapes: Shapes, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        is_gain = name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "scale_factor"))
        scale = 0.1 if len(shape) < 2 else 0.5 * shape[-1] ** -0.5
        weights[name] = (torch.randn(shape, generator=generator) * scale + float(is_gain)).to(dtype)
    return weights


def write_openvla(
    folder: Path,
    sizes: Sizes = SMALL,
    *,
    action_dim: int = 7,
    num_shards: int = 2,
    dtype: torch.dtype = torch.bfloat16,
    norm_stats: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Write a checkpoint in shards; returns its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    stats = {KEY: statistics(action_dim)} if norm_stats is None else norm_stats
    (folder / "config.json").write_text(json.dumps(small_config(sizes, stats), indent=2))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor_config(sizes.image)))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    write_tokenizer(folder)
    weights = random_weights(published_shapes(sizes), dtype, seed)
    names = sorted(weights)
    shards = [names[i::num_shards] for i in range(num_shards)]
    weight_map = {}
    for number, part in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{num_shards:05d}.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in weights.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weights


def write_regression_head(folder: Path) -> None:
    """The published file of OFT's regression head, for `SMALL`, beside a model."""
    generator = torch.Generator().manual_seed(4)
    shapes = {"layer_norm1": (7 * SMALL.width,), "fc1": (SMALL.width, 7 * SMALL.width), "layer_norm2": (SMALL.width,)}
    shapes |= {"fc2": (7, SMALL.width)}
    for block in range(2):
        shapes |= {f"mlp_resnet_blocks.{block}.ffn.0": (SMALL.width,)}
        shapes |= {f"mlp_resnet_blocks.{block}.ffn.1": (SMALL.width, SMALL.width)}
    weights = {}
    for name, shape in shapes.items():
        weights[f"module.model.{name}.weight"] = torch.randn(shape, generator=generator) * 0.2 + (len(shape) == 1)
        weights[f"module.model.{name}.bias"] = torch.randn(shape[:1], generator=generator) * 0.1
    torch.save(weights, folder / "action_head--5000_checkpoint.pt")
