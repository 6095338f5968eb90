"""GR00T N1.5 checkpoints in the published layout, scaled down: plain dictionaries and safetensors, none of our code.

Keys and shapes are written out from the published architecture; `PUBLISHED` are the sizes of the 3 B model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from eagle_tokenizer import special_ids, trained_vocabulary, write_eagle_tokenizer
from safetensors.torch import save_file
from torch import Tensor

from regrasp.models.inputs import InputNames

EMBEDDING = "backbone.eagle_model.language_model.model.embed_tokens.weight"
OUTPUT_LAYER = "backbone.eagle_model.language_model.lm_head.weight"
VISION = "backbone.eagle_model.vision_model.vision_model."
INSTRUCTION = "pick up the red cube"

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes:
    """What the shapes depend on."""

    vision_width: int = 1152
    vision_mlp: int = 4304
    vision_layers: int = 27
    vision_heads: int = 16
    patch: int = 14
    image: int = 224
    text_width: int = 2048
    text_mlp: int = 6144
    text_layers: int = 12
    whole_text_layers: int = 28
    query_heads: int = 16
    key_heads: int = 8
    text_head_dim: int = 128
    vocabulary: int = 151680
    context_layers: int = 4
    context_heads: int = 32
    dit_layers: int = 16
    dit_heads: int = 32
    dit_head_dim: int = 48
    hidden: int = 1024
    horizon: int = 16
    future_tokens: int = 32
    slots: int = 32
    state: int = 64
    action: int = 32
    positions: int = 1024

    @property
    def dit_width(self) -> int:
        return self.dit_heads * self.dit_head_dim


PUBLISHED = Sizes()
SMALL = Sizes(
    vision_width=16,
    vision_mlp=24,
    vision_layers=2,
    vision_heads=2,
    image=28,
    text_width=24,
    text_mlp=40,
    text_layers=2,
    whole_text_layers=3,
    query_heads=4,
    key_heads=2,
    text_head_dim=6,
    vocabulary=384,
    context_layers=2,
    context_heads=3,
    dit_layers=3,
    dit_heads=2,
    dit_head_dim=10,
    hidden=12,
    horizon=5,
    future_tokens=3,
)

VIEWS = ("ego_view", "wrist_view")
WIDTHS = {"state": {"arm": 4, "gripper": 1}, "action": {"arm": 4, "gripper": 1}}
GR1_WIDTHS = {"left_arm": 7, "right_arm": 7, "left_hand": 6, "right_hand": 6, "waist": 3}
INPUTS = InputNames(
    embodiment_tag="new_embodiment",
    data_config={
        "video": list(VIEWS),
        "state": [{"key": "arm", "mode": "min_max"}, {"key": "gripper", "mode": "min_max"}],
        "action": [{"key": "arm", "mode": "min_max"}, {"key": "gripper", "mode": "min_max"}],
    },
)


def linear(name: str, out: int, inside: int) -> Shapes:
    return {f"{name}.weight": (out, inside), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def vision_shapes(s: Sizes) -> Shapes:
    """SigLIP without its pooling head."""
    width, embeddings = s.vision_width, f"{VISION}embeddings"
    shapes: Shapes = {
        f"{embeddings}.patch_embedding.weight": (width, 3, s.patch, s.patch),
        f"{embeddings}.patch_embedding.bias": (width,),
        f"{embeddings}.position_embedding.weight": ((s.image // s.patch) ** 2, width),
    }
    for i in range(s.vision_layers):
        layer = f"{VISION}encoder.layers.{i}"
        shapes |= norm(f"{layer}.layer_norm1", width) | norm(f"{layer}.layer_norm2", width)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{layer}.self_attn.{part}", width, width)
        shapes |= linear(f"{layer}.mlp.fc1", s.vision_mlp, width) | linear(f"{layer}.mlp.fc2", width, s.vision_mlp)
    return shapes | norm(f"{VISION}post_layernorm", width)


def pooling_shapes(s: Sizes) -> Shapes:
    """SigLIP's pooling head, which the files hold and nobody uses."""
    width, head = s.vision_width, f"{VISION}head"
    return {
        f"{head}.probe": (1, 1, width),
        f"{head}.attention.in_proj_weight": (3 * width, width),
        f"{head}.attention.in_proj_bias": (3 * width,),
        **linear(f"{head}.attention.out_proj", width, width),
        **norm(f"{head}.layernorm", width),
        **linear(f"{head}.mlp.fc1", s.vision_mlp, width),
        **linear(f"{head}.mlp.fc2", width, s.vision_mlp),
    }


def text_shapes(s: Sizes) -> Shapes:
    """Qwen3, cut."""
    width, model = s.text_width, "backbone.eagle_model.language_model.model"
    queries, keys = s.query_heads * s.text_head_dim, s.key_heads * s.text_head_dim
    shapes: Shapes = {EMBEDDING: (s.vocabulary, width), f"{model}.norm.weight": (width,)}
    for i in range(s.text_layers):
        layer = f"{model}.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (width,),
            f"{layer}.post_attention_layernorm.weight": (width,),
            f"{layer}.self_attn.q_proj.weight": (queries, width),
            f"{layer}.self_attn.k_proj.weight": (keys, width),
            f"{layer}.self_attn.v_proj.weight": (keys, width),
            f"{layer}.self_attn.o_proj.weight": (width, queries),
            f"{layer}.self_attn.q_norm.weight": (s.text_head_dim,),
            f"{layer}.self_attn.k_norm.weight": (s.text_head_dim,),
            f"{layer}.mlp.gate_proj.weight": (s.text_mlp, width),
            f"{layer}.mlp.up_proj.weight": (s.text_mlp, width),
            f"{layer}.mlp.down_proj.weight": (width, s.text_mlp),
        }
    return shapes


def connector_shapes(s: Sizes) -> Shapes:
    return linear("backbone.eagle_model.mlp1.0", s.text_width, s.vision_width)


def block_shapes(name: str, width: int, context: int) -> Shapes:
    """Attention and feed-forward layer, common to both transformers of the head."""
    return {
        **linear(f"{name}.attn1.to_q", width, width),
        **linear(f"{name}.attn1.to_k", width, context),
        **linear(f"{name}.attn1.to_v", width, context),
        **linear(f"{name}.attn1.to_out.0", width, width),
        **linear(f"{name}.ff.net.0.proj", 4 * width, width),
        **linear(f"{name}.ff.net.2", width, 4 * width),
    }


def context_shapes(s: Sizes) -> Shapes:
    shapes: Shapes = {}
    for i in range(s.context_layers):
        block = f"action_head.vl_self_attention.transformer_blocks.{i}"
        shapes |= block_shapes(block, s.text_width, s.text_width)
        shapes |= norm(f"{block}.norm1", s.text_width) | norm(f"{block}.norm3", s.text_width)
    return shapes


def dit_shapes(s: Sizes) -> Shapes:
    width, model = s.dit_width, "action_head.model"
    shapes = linear(f"{model}.timestep_encoder.timestep_embedder.linear_1", width, 256)
    shapes |= linear(f"{model}.timestep_encoder.timestep_embedder.linear_2", width, width)
    for i in range(s.dit_layers):
        block = f"{model}.transformer_blocks.{i}"
        shapes |= block_shapes(block, width, width if i % 2 else s.text_width)
        shapes |= linear(f"{block}.norm1.linear", 2 * width, width)
    return shapes | linear(f"{model}.proj_out_1", 2 * width, width) | linear(f"{model}.proj_out_2", s.hidden, width)


def projector_shapes(s: Sizes) -> Shapes:
    """The per-embodiment layers."""
    layers = {
        "state_encoder.layer1": (s.state, s.hidden),
        "state_encoder.layer2": (s.hidden, s.dit_width),
        "action_encoder.W1": (s.action, s.dit_width),
        "action_encoder.W2": (2 * s.dit_width, s.dit_width),
        "action_encoder.W3": (s.dit_width, s.dit_width),
        "action_decoder.layer1": (s.hidden, s.hidden),
        "action_decoder.layer2": (s.hidden, s.action),
    }
    shapes: Shapes = {}
    for name, (inside, out) in layers.items():
        shapes |= {f"action_head.{name}.W": (s.slots, inside, out), f"action_head.{name}.b": (s.slots, out)}
    return shapes


def official_shapes(s: Sizes) -> Shapes:
    """Every tensor that a policy uses, under its published name."""
    return {
        **vision_shapes(s),
        **connector_shapes(s),
        **text_shapes(s),
        **context_shapes(s),
        **dit_shapes(s),
        **projector_shapes(s),
        **norm("action_head.vlln", s.text_width),
        "action_head.future_tokens.weight": (s.future_tokens, s.dit_width),
        "action_head.position_embedding.weight": (s.positions, s.dit_width),
    }


def config_json(s: Sizes) -> dict[str, Any]:
    """As published, with these sizes."""
    return {
        "action_dim": s.action,
        "action_head_cfg": {
            "action_dim": s.action,
            "action_horizon": s.horizon,
            "add_pos_embed": True,
            "backbone_embedding_dim": s.text_width,
            "diffusion_model_cfg": {
                "attention_head_dim": s.dit_head_dim,
                "cross_attention_dim": s.text_width,
                "dropout": 0.2,
                "final_dropout": True,
                "interleave_self_attention": True,
                "norm_type": "ada_norm",
                "num_attention_heads": s.dit_heads,
                "num_layers": s.dit_layers,
                "output_dim": s.hidden,
                "positional_embeddings": None,
            },
            "hidden_size": s.hidden,
            "input_embedding_dim": s.dit_width,
            "max_action_dim": s.action,
            "max_state_dim": s.state,
            "model_dtype": "float32",
            "noise_beta_alpha": 1.5,
            "noise_beta_beta": 1.0,
            "noise_s": 0.999,
            "num_inference_timesteps": 4,
            "num_target_vision_tokens": s.future_tokens,
            "num_timestep_buckets": 1000,
            "tune_diffusion_model": True,
            "tune_projector": True,
            "use_vlln": True,
            "vl_self_attention_cfg": {
                "attention_head_dim": s.text_width // s.context_heads,
                "dropout": 0.2,
                "final_dropout": True,
                "num_attention_heads": s.context_heads,
                "num_layers": s.context_layers,
                "positional_embeddings": None,
            },
        },
        "action_horizon": s.horizon,
        "architectures": ["GR00T_N1_5"],
        "attn_implementation": None,
        "backbone_cfg": {
            "eagle_path": "NVEagle/eagle_er-qwen3_1_7B-Siglip2_400M_stage1_5_128gpu_er_v7_1mlp_nops",
            "load_bf16": False,
            "project_to_dim": None,
            "reproject_vision": False,
            "select_layer": s.text_layers,
            "tune_llm": False,
            "tune_visual": True,
            "use_flash_attention": True,
        },
        "hidden_size": s.text_width,
        "model_dtype": "float32",
        "model_type": "gr00t_n1_5",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.3",
    }


def eagle_json(s: Sizes, image_token: int = 151669, pad_token: int = 151643) -> dict[str, Any]:
    """The vision-language model's own config.json, in the published layout."""
    return {
        "_attn_implementation": "flash_attention_2",
        "architectures": ["Eagle2_5_VLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": s.image,
        "image_token_index": image_token,
        "mlp_connector_layers": 1,
        "model_type": "eagle_2_5_vl",
        "select_layer": -1,
        "template": "qwen3-chat",
        "text_config": {
            "attention_bias": False,
            "bos_token_id": pad_token,
            "head_dim": s.text_head_dim,
            "hidden_act": "silu",
            "hidden_size": s.text_width,
            "intermediate_size": s.text_mlp,
            "max_position_embeddings": 40960,
            "model_type": "qwen3",
            "num_attention_heads": s.query_heads,
            "num_hidden_layers": s.whole_text_layers,
            "num_key_value_heads": s.key_heads,
            "pad_token_id": pad_token,
            "rms_norm_eps": 1e-6,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": s.vocabulary,
        },
        "use_pixel_shuffle": False,
        "use_thumbnail": True,
        "vision_config": {
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": s.vision_width,
            "image_size": s.image,
            "intermediate_size": s.vision_mlp,
            "layer_norm_eps": 1e-6,
            "model_type": "siglip_vision_model",
            "num_attention_heads": s.vision_heads,
            "num_channels": 3,
            "num_hidden_layers": s.vision_layers,
            "patch_size": s.patch,
        },
    }


def random_state(s: Sizes, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of every shape, norms included, small enough to keep the features finite."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=generator) * 0.2).to(dtype) for name, shape in official_shapes(s).items()
    }


def write_shards(folder: Path, state: Mapping[str, Tensor], num_shards: int) -> None:
    """The index and its shards, with neighbours in one shard as the published files have them."""
    names = sorted(state)
    size = -(-len(names) // num_shards)
    weight_map: dict[str, str] = {}
    for number in range(num_shards):
        file = f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        part = names[number * size : (number + 1) * size]
        save_file({name: state[name].contiguous() for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in state.values())
    write(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def embodiment(tag: str, widths: Mapping[str, Mapping[str, int]], views: tuple[str, ...]) -> dict[str, Any]:
    """One tag of metadata.json, with statistics that differ in every dimension."""
    statistics, modalities = {}, {}
    for kind, parts in widths.items():
        statistics[kind] = {
            key: {
                "max": [1.5 + i for i in range(width)],
                "min": [-0.5 - i for i in range(width)],
                "mean": [0.25 * i for i in range(width)],
                "std": [0.5 + 0.1 * i for i in range(width)],
                "q01": [-0.4 - i for i in range(width)],
                "q99": [1.4 + i for i in range(width)],
            }
            for key, width in parts.items()
        }
        modalities[kind] = {
            key: {"absolute": True, "rotation_type": None, "shape": [width], "continuous": True}
            for key, width in parts.items()
        }
    video = {view: {"resolution": [256, 256], "channels": 3, "fps": 20.0} for view in views}
    return {"statistics": statistics, "modalities": {"video": video, **modalities}, "embodiment_tag": tag}


def metadata_json() -> dict[str, Any]:
    return {
        "new_embodiment": embodiment("new_embodiment", WIDTHS, VIEWS),
        "gr1": embodiment("gr1", {"state": GR1_WIDTHS, "action": GR1_WIDTHS}, ("ego_view",)),
    }


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def write_official(
    folder: Path,
    *,
    sizes: Sizes = SMALL,
    dtype: torch.dtype = torch.bfloat16,
    num_shards: int = 2,
    embedding: Literal["embed_tokens", "lm_head", "both"] = "lm_head",
    nesting: int = 2,
    prefix: str = "",
    with_tokenizer: bool = True,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Write a checkpoint folder, and return what a policy must hold, in the file's dtype.

    Args:
        folder: Created if missing.
        sizes: Of the network.
        dtype: Of the file.
        num_shards: 1 writes one file without index.
        embedding: Under which keys the tied word embedding is stored.
        nesting: How often `vision_model.` stands in the vision tower's keys; published is 2.
        prefix: Before every key, as LeRobot's wrapper writes it.
        with_tokenizer: Put the tokenizer's files in too.
        seed: Draws the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = special_ids(trained_vocabulary()[0])
    write(folder / "config.json", config_json(sizes))
    write(folder / "eagle2_hg_model" / "config.json", eagle_json(sizes, ids["<IMG_CONTEXT>"], ids["<|endoftext|>"]))
    write(folder / "experiment_cfg" / "metadata.json", metadata_json())
    if with_tokenizer:
        write_eagle_tokenizer(folder, trained=True)
    state = random_state(sizes, dtype, seed)
    stored = {**state, **{name: torch.ones(shape, dtype=dtype) for name, shape in pooling_shapes(sizes).items()}}
    if embedding != "embed_tokens":
        stored[OUTPUT_LAYER] = stored[EMBEDDING].clone() if embedding == "both" else stored.pop(EMBEDDING)
    tower = "backbone.eagle_model." + "vision_model." * nesting
    stored = {prefix + name.replace(VISION, tower): tensor for name, tensor in stored.items()}
    if num_shards == 1:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        write_shards(folder, stored, num_shards)
    return state
