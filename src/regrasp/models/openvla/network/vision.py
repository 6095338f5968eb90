"""The fused vision backbone: DINOv2 with registers and SigLIP side by side, with the names that timm gives them.

The feature of a patch is the output of the second-to-last block of each tower, without the last norm (prismatic-vlms,
`prismatic/models/backbones/vision/dinosiglip_vit.py`). What follows it is in every published file and never used; it
is kept so that a file is written back as it was read.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regrasp.models.openvla.config import TowerConfig

NUM_REGISTERS = 4
_EPS = 1e-6


class Attention(nn.Module):
    """Self-attention with one product for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, W) to the same."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with an exact GELU between them, in both towers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) to the same."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned gain on a residual branch; timm's `gamma`, which the published files call `scale_factor`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) to the same."""
        return x * self.scale_factor


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: TowerConfig, *, layer_scale: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, _EPS)
        self.attn = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, _EPS)
        self.mlp = Mlp(config.width, config.mlp)
        self.ls1 = LayerScale(config.width) if layer_scale else None
        self.ls2 = LayerScale(config.width) if layer_scale else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, W) to the same."""
        x = x + _scaled(self.ls1, self.attn(self.norm1(x)))
        return x + _scaled(self.ls2, self.mlp(self.norm2(x)))


class AttentionPool(nn.Module):
    """SigLIP's pooling head: in every file, and without use here."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width = config.width
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, _EPS)
        self.mlp = Mlp(width, config.mlp)


class PatchEmbedding(nn.Module):
    """Image to patch tokens."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, N, width), row by row."""
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Tower(nn.Module):
    """A vision transformer; DINOv2 has a class token, registers and layer scales, SigLIP the pooling head.

    Args:
        config: Sizes.
        image_size: Height and width of an image, pixels.
        dino: Which of the two.
    """

    def __init__(self, config: TowerConfig, image_size: int, *, dino: bool) -> None:
        super().__init__()
        self.num_extra = 1 + NUM_REGISTERS if dino else 0
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width)) if dino else None
        self.reg_token = nn.Parameter(torch.zeros(1, NUM_REGISTERS, config.width)) if dino else None
        self.pos_embed = nn.Parameter(torch.zeros(1, (image_size // config.patch_size) ** 2, config.width))
        self.patch_embed = PatchEmbedding(config)
        self.blocks = nn.ModuleList(Block(config, layer_scale=dino) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, _EPS)
        self.attn_pool = None if dino else AttentionPool(config)

    @property
    def used_blocks(self) -> list[nn.Module]:
        """All but the last one."""
        return list(self.blocks)[:-1]

    def unused(self) -> list[str]:
        """Beginnings of the names of what no feature depends on."""
        return [f"blocks.{len(self.blocks) - 1}.", "norm.", "attn_pool."]

    def forward(self, pixels: Tensor) -> Tensor:
        """Patch features (B, N, width) of normalised images (B, 3, H, W)."""
        x = self.patch_embed(pixels) + self.pos_embed
        if self.cls_token is not None and self.reg_token is not None:
            extra = torch.cat([self.cls_token, self.reg_token], dim=1).expand(len(x), -1, -1)
            x = torch.cat([extra.to(x.dtype), x], dim=1)
        for block in self.used_blocks:
            x = block(x)
        return x[:, self.num_extra :]


class VisionBackbone(nn.Module):
    """Both towers on the same images, each with its own normalisation."""

    def __init__(self, towers: tuple[TowerConfig, TowerConfig], image_size: int) -> None:
        super().__init__()
        self.featurizer = Tower(towers[0], image_size, dino=True)
        self.fused_featurizer = Tower(towers[1], image_size, dino=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features (B, N, W1 + W2) of images (B, 6, H, W): three channels for DINOv2, then three for SigLIP."""
        first, second = pixels.split(3, dim=1)
        return torch.cat([self.featurizer(first), self.fused_featurizer(second)], dim=-1)

    def towers(self) -> tuple[Tower, Tower]:
        """DINOv2 and SigLIP."""
        return self.featurizer, self.fused_featurizer

    def unused(self) -> tuple[str, ...]:
        """Beginnings of the names of what no feature depends on."""
        names = ("featurizer", "fused_featurizer")
        return tuple(f"{name}.{part}" for name in names for part in cast(Tower, getattr(self, name)).unused())


def _scaled(scale: LayerScale | None, x: Tensor) -> Tensor:
    return x if scale is None else scale(x)
