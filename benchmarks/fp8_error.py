"""How far products in float8 move the features and actions of a GR00T whose towers are frozen, beside bfloat16's."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import groot_gpu
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.policy import GrootPolicy
from results_file import save

LARGEST = torch.finfo(torch.float8_e4m3fn).max
ARCHITECTURE: dict[str, Any] = groot_gpu.TINY_ARCHITECTURE | {
    "vision_width": 256,
    "vision_layers": 8,
    "vision_heads": 4,
    "vision_mlp": 768,
    "language_width": 256,
    "language_layers": 8,
    "language_heads": 4,
    "language_head_dim": 64,
    "language_mlp": 768,
    "head_width": 256,
    "head_layers": 4,
    "head_heads": 4,
}


def rounded(x: Tensor) -> Tensor:
    """To float8 (e4m3) and back to float32, with one scale per row, as scaled matrix products of GPUs take it."""
    scale = x.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (x.float() / scale).to(torch.float8_e4m3fn).float() * scale


class Float8Linear(nn.Module):
    """A linear layer whose factors are rounded to float8, and whose sums are float32."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(rounded(layer.weight), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return F.linear(rounded(x), self.weight, self.bias).to(x.dtype)


def in_float8(module: nn.Module) -> nn.Module:
    """Put `Float8Linear` in the place of every linear layer."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Float8Linear(child))
        else:
            in_float8(child)
    return module


def main() -> None:
    """Measure and save."""
    sizes = dataclasses.replace(groot_gpu.sizes_of(tiny=True), groot=GrootConfig.tiny(SimpleNamespace(**ARCHITECTURE)))
    exact = groot_gpu.random_policy(sizes, "head")
    inputs = groot_gpu.prepared(sizes, 8, seed=1)
    half, quarter = copy.deepcopy(exact), copy.deepcopy(exact)
    half.backbone.to(torch.bfloat16)
    in_float8(quarter.backbone)

    def found(policy: GrootPolicy) -> tuple[Tensor, Tensor]:
        features, action = groot_gpu.act(policy, inputs, deterministic=True)
        return features["context"].float(), action.actions

    features, actions = found(exact)
    rows = []
    for name, policy in (("bfloat16", half), ("float8, a scale per row", quarter)):
        own_features, own_actions = found(policy)
        errors = groot_gpu.relative_error(own_features, features), groot_gpu.relative_error(own_actions, actions)
        rows.append({"towers": name, "features": errors[0], "actions": errors[1]})
    save("fp8_error", "python benchmarks/fp8_error.py", rows)


if __name__ == "__main__":
    main()
