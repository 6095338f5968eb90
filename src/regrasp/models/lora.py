"""Low-rank adapters on the linear layers of a part of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regrasp.checkpoint.hub_folder import StoredTensor, list_file, read_stored
from regrasp.config import parse
from regrasp.errors import UserError
from regrasp.extras import install_command
from regrasp.models.initialization import seeded
from regrasp.models.lora_config import LoraConfig

LANGUAGE_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Attention and MLP projections of Qwen3 and of Llama."""
_DOWN, _UP, _BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."


def add_adapters(
    module: nn.Module, settings: LoraConfig, *, seed: int, targets: Sequence[str] = LANGUAGE_TARGETS
) -> None:
    """Wrap every projection in place; its weights are frozen, and the model computes what it did before.

    Adapters are float32 whatever the model is: small updates are lost in bfloat16.

    Args:
        module: What holds the layers.
        settings: Sizes.
        seed: Draws A; B is zero.
        targets: Names of the layers.

    Raises:
        UserError: The package peft is missing.
    """
    try:
        import peft
    except ImportError:
        raise UserError(
            "Adapters need the package peft",
            key="actor.model.is_lora",
            value=True,
            expected="peft to be installed",
            fix=f"{install_command('lora')}, or set actor.model.is_lora=false",
        ) from None
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets),
    )
    with seeded(seed):
        peft.inject_adapter_in_model(config, module)
    for _, parameter in adapters(module):
        parameter.data = parameter.data.float()


def are_adapters(name: str) -> bool:
    """Whether a tensor's name is that of an adapter."""
    return ".lora_" in name


def adapters(module: nn.Module) -> Sequence[tuple[str, nn.Parameter]]:
    """Named parameters of all adapters."""
    return [item for item in module.named_parameters() if item[0].endswith((_DOWN, _UP))]


def merge_adapters(state: Mapping[str, Tensor], settings: LoraConfig) -> dict[str, Tensor]:
    """The state of a model without adapters that computes the same: W + alpha / rank B A, summed in float32."""
    merged = {name.replace(_BASE, "."): tensor for name, tensor in state.items() if not name.endswith((_DOWN, _UP))}
    for name in (name for name in state if name.endswith(_DOWN)):
        layer = name.removesuffix(_DOWN)
        down, up = state[name].float(), state[layer + _UP].float()
        weight = merged[f"{layer}.weight"]
        merged[f"{layer}.weight"] = (weight + settings.alpha / settings.rank * (up @ down)).to(weight.dtype)
    return merged


ADAPTER_FILE = "adapter_config.json"
"""Says that a folder holds adapters that peft wrote, and their sizes."""
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."
_FIX = "merge the adapters with the program that trained them, and give the merged model"


@torch.no_grad()
def merge_folder(module: nn.Module, folder: Path, key: str) -> None:
    """Merge the adapters of a folder into the weights of a module, in place: W + scale B A, summed in float32.

    Args:
        module: With weights of the names that the adapters have.
        folder: Written by peft.
        key: What names the folder, for errors.

    Raises:
        UserError: The folder holds no such adapters, or they are those of another model.
    """
    scale, stored, layers = find_adapters(module, folder, key)
    found: dict[str, Tensor] = {name: tensor.float().clone() for name, tensor in read_stored(stored)}
    parameters = dict(module.named_parameters())
    for layer in layers:
        weight = parameters[f"{layer}.weight"]
        update = found[f"{layer}.lora_B.weight"] @ found[f"{layer}.lora_A.weight"]
        weight.copy_((weight.float() + scale * update).to(weight.dtype))


def find_adapters(module: nn.Module, folder: Path, key: str) -> tuple[float, dict[str, StoredTensor], list[str]]:
    """Check the adapters of a folder against a module, which may be on the meta device; their data is not read.

    Args:
        module: With weights of the names that the adapters have.
        folder: Written by peft.
        key: What names the folder, for errors.

    Returns:
        What the adapters' product is multiplied by, their tensors by name, and the layers that have one.

    Raises:
        UserError: The folder holds no such adapters, or they are those of another model.
    """
    file, weights = folder / ADAPTER_FILE, folder / _ADAPTER_WEIGHTS
    if not file.is_file() or not weights.is_file():
        expected = f"{ADAPTER_FILE} and {_ADAPTER_WEIGHTS}"
        fix = f"correct the path, or set {key}=null"
        raise UserError("No adapters in this folder", key=key, value=str(folder), expected=expected, fix=fix)
    settings = parse.read_json(file, fix="restore the file")
    rank: Any = settings.get("r")
    alpha: Any = settings.get("lora_alpha")
    plain = settings.get("peft_type") == "LORA" and not settings.get("use_dora")
    if not plain or type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise UserError("Adapters of a kind that is not supported", file=file, expected="LoRA by peft", fix=_FIX)
    for name in ("rank_pattern", "alpha_pattern", "modules_to_save"):
        if settings.get(name):
            raise UserError("Adapters that differ by layer", file=file, key=name, value=settings[name], fix=_FIX)
    scale = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
    stored = {tensor.name.removeprefix(_PEFT_PREFIX): tensor for tensor in list_file(weights)}
    parameters = dict(module.named_parameters())
    layers = sorted({name.partition(".lora_")[0] for name in stored})
    expected = {f"{layer}.lora_{part}.weight" for layer in layers for part in "AB"}
    unknown = [layer for layer in layers if f"{layer}.weight" not in parameters] or sorted(expected ^ stored.keys())
    if unknown or not layers:
        raise UserError(
            "Adapters of another model",
            file=weights,
            key=key,
            value=", ".join(unknown[:3]) or None,
            expected="adapters of layers that the base model has",
            fix="give as model_path the base model that they were trained on",
        )
    for layer in layers:
        up, down = (tuple(stored[f"{layer}.lora_{part}.weight"].shape) for part in "BA")
        if (*up[:1], *down[1:]) != tuple(parameters[f"{layer}.weight"].shape) or up[1:] != down[:1]:
            raise UserError("Adapters of another size", file=weights, key=layer, value=[*up, *down], fix=_FIX)
    return scale, stored, layers
