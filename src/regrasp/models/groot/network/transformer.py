"""The two transformers of the action head: self-attention over the context, and the diffusion transformer (DiT)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regrasp.models.groot.config import DiffusionConfig, TransformerConfig
from regrasp.models.groot.kernels.few_queries import KeysValues, attend, keys_values

NORM_EPS = 1e-5
OUTPUT_NORM_EPS = 1e-6
TIME_CHANNELS = 256


def sinusoids(time: Tensor, exponents: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of `time` (...) at angular frequencies 10000^-exponents (F,), each (..., F)."""
    angles = time.unsqueeze(-1).float() * torch.exp(-math.log(10_000) * exponents)
    return angles.sin(), angles.cos()


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Dtype of products with `weight`: autocast's, where it is on, else the weight's own."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def pack(layers: Sequence[nn.Module]) -> tuple[Tensor, Tensor]:
    """Weight and bias of several linear layers as one layer's; the layers' own become parts of them."""
    packed = []
    for name in ("weight", "bias"):
        own = [layer.get_parameter(name) for layer in layers]
        whole = torch.cat([parameter.detach() for parameter in own])
        for parameter, part in zip(own, whole.split([len(parameter) for parameter in own]), strict=True):
            parameter.data = part
        packed.append(whole)
    return packed[0], packed[1]


def dropout(p: float) -> nn.Module:
    """Dropout, or nothing at p = 0."""
    return nn.Dropout(p) if p > 0 else nn.Identity()


class Attention(nn.Module):
    """Layers of multi-head attention; what attends to other tokens gets their keys and values from elsewhere."""

    def __init__(self, width: int, context_width: int, num_heads: int, p: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(context_width, width)
        self.to_v = nn.Linear(context_width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width), dropout(p)])
        self._packed: tuple[Tensor, Tensor] | None = None

    def pack(self) -> None:
        """Make one product of the three of self-attention, for a copy that only acts."""
        self._packed = pack([self.to_q, self.to_k, self.to_v])

    def forward(self, x: Tensor) -> Tensor:
        """Attend from x (B, N, width) to x itself."""
        return self.project_out(F.scaled_dot_product_attention(*self.queries_keys_values(x)))

    def queries(self, x: Tensor) -> Tensor:
        """(B, heads, N, head_dim) of tokens (B, N, width)."""
        return self._split(self.to_q(x))

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of self-attention among tokens (B, N, width), each (B, heads, N, head_dim)."""
        if self._packed is None:
            keys, values = self._split(self.to_k(x)), self._split(self.to_v(x))
            return self.queries(x), keys, values
        queries, keys, values = map(self._split, F.linear(x, *self._packed).chunk(3, dim=-1))
        return queries, keys, values

    def project_out(self, attended: Tensor) -> Tensor:
        """What is attended to (B, heads, N, head_dim) to (B, N, width)."""
        projection, drop = self.to_out
        return drop(projection(attended.transpose(1, 2).flatten(2)))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class GeluProjection(nn.Module):
    """Linear layer and tanh-approximated GELU, under the published key `net.0.proj`."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width_in) to (..., width_out)."""
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Two-layer MLP, four times as wide inside."""

    def __init__(self, width: int, p: float) -> None:
        super().__init__()
        self.net = nn.Sequential(GeluProjection(width, 4 * width), dropout(p), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        return self.net(x)


class ContextBlock(nn.Module):
    """Pre-norm self-attention block over context tokens."""

    def __init__(self, config: TransformerConfig, p: float) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn1 = Attention(width, width, config.num_attention_heads, p)
        self.norm3 = nn.LayerNorm(width, eps=NORM_EPS)
        self.ff = FeedForward(width, p)
        self.final_dropout = dropout(p if config.final_dropout else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, width) to the same."""
        x = x + self.final_dropout(self.attn1(self.norm1(x)))
        return x + self.final_dropout(self.ff(self.norm3(x)))


class ContextTransformer(nn.Module):
    """`vl_self_attention`: unmasked self-attention over the backbone's features."""

    def __init__(self, config: TransformerConfig, p: float) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList(ContextBlock(config, p) for _ in range(config.num_layers))

    def forward(self, features: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Features (B, S, width) to the same, in the dtype of its products, after `norm`, the published `vlln`."""
        x = norm(features.to(norm.weight.dtype))
        if self.transformer_blocks:
            x = x.to(compute_dtype(self.transformer_blocks[0].get_parameter("attn1.to_q.weight")))
        for block in self.transformer_blocks:
            x = block(x)
        return x


class AdaptiveNorm(nn.Module):
    """Layer norm whose scale and shift, in this order, are `linear` of the time embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Normalise x (B, N, width) and apply `modulation` (B, 2 width)."""
        scale, shift = modulation.unsqueeze(1).chunk(2, dim=-1)
        return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


class DiffusionBlock(nn.Module):
    """DiT block: attention to the context or among the tokens themselves, then a feed-forward layer."""

    COMPILED = ("before_attention", "after_attention")
    """All of `forward` but the attention itself."""

    def __init__(self, config: DiffusionConfig, p: float, *, attends_to_context: bool) -> None:
        super().__init__()
        width = config.width
        context_width = config.cross_attention_dim if attends_to_context else width
        self.attends_to_context = attends_to_context
        self.norm1 = AdaptiveNorm(width)
        self.attn1 = Attention(width, context_width, config.num_attention_heads, p)
        self.ff = FeedForward(width, p)
        self.final_dropout = dropout(p if config.final_dropout else 0.0)

    def forward(self, x: Tensor, modulation: Tensor, context: KeysValues | None) -> Tensor:
        """(B, N, width) to the same; `context` None is self-attention."""
        queries, own = self.before_attention(x, modulation)
        keys_values = context if own is None else KeysValues(*own)
        assert keys_values is not None
        return self.after_attention(x, attend(queries, keys_values))

    def before_attention(self, x: Tensor, modulation: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Queries, and among the tokens themselves also keys and values, each (B, heads, N, head_dim)."""
        x = self.norm1(x, modulation)
        if self.attends_to_context:
            return self.attn1.queries(x), None
        queries, keys, values = self.attn1.queries_keys_values(x)
        return queries, (keys, values)

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's tokens (B, N, width), from those that came in and what they attend to."""
        x = x + self.final_dropout(self.attn1.project_out(attended))
        return x + self.final_dropout(self.ff(F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)))


class TimestepEmbedder(nn.Module):
    """Two linear layers on sinusoids of the time bucket."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(TIME_CHANNELS, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, bucket: Tensor) -> Tensor:
        """(B,) int64 to (B, width)."""
        half = TIME_CHANNELS // 2
        sine, cosine = sinusoids(bucket, torch.arange(half, device=bucket.device) / (half - 1))
        channels = torch.cat([cosine, sine], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(channels)))


class TimestepEncoder(nn.Module):
    """Holds the embedder under the published key `timestep_encoder.timestep_embedder`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(width)

    def forward(self, bucket: Tensor) -> Tensor:
        """(B,) int64 to (B, width)."""
        return self.timestep_embedder(bucket)


class DiffusionTransformer(nn.Module):
    """DiT: even blocks attend to the context, odd blocks among the tokens."""

    def __init__(self, config: DiffusionConfig, p: float) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_attention_heads
        self.timestep_encoder = TimestepEncoder(width)
        self.transformer_blocks = nn.ModuleList(
            DiffusionBlock(config, p, attends_to_context=index % 2 == 0) for index in range(config.num_layers)
        )
        self.proj_out_1 = nn.Linear(width, 2 * width)
        self.proj_out_2 = nn.Linear(width, config.output_dim)
        self._packed_keys_values: tuple[Tensor, Tensor] | None = None

    def pack(self) -> None:
        """Make one layer each of products with the same input, for a copy that only acts."""
        self._packed_keys_values = pack(self._keys_values_layers)
        for block in self.transformer_blocks:
            assert isinstance(block, DiffusionBlock)
            if not block.attends_to_context:
                block.attn1.pack()

    @property
    def _keys_values_layers(self) -> list[nn.Module]:
        names = [f"{index}.attn1.to_{part}" for index in range(0, len(self.transformer_blocks), 2) for part in "kv"]
        return [self.transformer_blocks.get_submodule(name) for name in names]

    def context_keys_values(self, context: Tensor) -> tuple[KeysValues, ...]:
        """Keys and values of the context for every even block, from context tokens (B, S, cross_attention_dim)."""
        layers = self._keys_values_layers
        if self._packed_keys_values is None:
            dtype = compute_dtype(layers[0].get_parameter("weight"))
            weight, bias = (
                torch.cat([layer.get_parameter(name).to(dtype) for layer in layers]) for name in ("weight", "bias")
            )
        else:
            weight, bias = self._packed_keys_values
        return tuple(keys_values(context, weight, bias, self.num_heads, len(layers) // 2))

    def modulations(self, bucket: Tensor) -> tuple[Tensor, ...]:
        """Scales and shifts (B, 2 width) of every block's first norm and of the last one, at discrete times (B,)."""
        time = F.silu(self.timestep_encoder(bucket))
        layers = [
            self.transformer_blocks.get_submodule(f"{i}.norm1.linear") for i in range(len(self.transformer_blocks))
        ]
        return tuple(layer(time) for layer in (*layers, self.proj_out_1))

    def forward(
        self, x: Tensor, modulations: tuple[Tensor, ...], context: tuple[KeysValues, ...], num_outputs: int
    ) -> Tensor:
        """Outputs (B, num_outputs, output_dim) of the last tokens.

        Args:
            x: Tokens (B, N, width).
            modulations: As `modulations` gives them.
            context: As `context_keys_values` gives it.
            num_outputs: Trailing tokens whose output is wanted.
        """
        *of_blocks, of_output = modulations
        for index, (block, modulation) in enumerate(zip(self.transformer_blocks, of_blocks, strict=True)):
            x = block(x, modulation, context[index // 2] if block.attends_to_context else None)
        x = x[:, -num_outputs:]
        shift, scale = of_output.unsqueeze(1).chunk(2, dim=-1)
        return self.proj_out_2(F.layer_norm(x, x.shape[-1:], eps=OUTPUT_NORM_EPS) * (1 + scale) + shift)
