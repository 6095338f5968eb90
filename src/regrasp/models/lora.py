"""Low-rank adapters on the linear layers of a part of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

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
