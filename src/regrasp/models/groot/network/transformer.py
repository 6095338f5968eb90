"""The two transformers of the action head: self-attention over the context, and the diffusion transformer (DiT)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

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
    cast = device != "meta" and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if cast else weight.dtype


def joined(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """Weight and bias of several linear layers with the same input, as those of one, in the dtype of their product."""
    dtype = compute_dtype(layers[0].weight)
    weights, biases = ([getattr(layer, name).to(dtype) for layer in layers] for name in ("weight", "bias"))
    return torch.cat(weights), torch.cat(biases)


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

    def pack(self, *layers: nn.Linear) -> None:
        """Keep the weights of several layers as one; for a copy that only acts, whenever its weights have changed.

        They take part in gradients as the layers' own do, so that what is compiled of them is the same.
        """
        packed = joined(layers)
        if self._packed is None:
            learns = layers[0].weight.requires_grad
            self._packed = (packed[0].requires_grad_(learns), packed[1].requires_grad_(learns))
            return
        for kept, new in zip(self._packed, packed, strict=True):
            kept.copy_(new)  # a recorded CUDA graph reads it where it is

    def forward(self, x: Tensor) -> Tensor:
        """Attend from x (B, N, width) to x itself."""
        return self.project_out(F.scaled_dot_product_attention(*self.queries_keys_values(x)))

    def queries(self, x: Tensor) -> Tensor:
        """(B, heads, N, head_dim) of tokens (B, N, width)."""
        return self._split(self.to_q(x))

    def packed(self, *layers: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weights and biases of these layers as one: those that were packed, or what they are now."""
        return joined(layers) if self._packed is None else self._packed

    def queries_keys_values(
        self, x: Tensor, packed: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of self-attention among tokens (B, N, width), each (B, heads, N, head_dim); by one product, if `packed`."""
        if packed is None:
            keys, values = self._split(self.to_k(x)), self._split(self.to_v(x))
            return self.queries(x), keys, values
        queries, keys, values = map(self._split, F.linear(x, *packed).chunk(3, dim=-1))
        return queries, keys, values

    def keys_values(self, context: Tensor) -> KeysValues:
        """Of context tokens (B, S, context_width)."""
        weight, bias = self.packed(self.to_k, self.to_v)
        return keys_values(context, weight, bias, self.num_heads, num_layers=1)[0]

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
        """(B, S, width) to the same, in the dtype of its products."""
        x = x.to(compute_dtype(self.attn1.to_q.weight))
        x = x + self.final_dropout(self.attn1(self.norm1(x)))
        return x + self.final_dropout(self.ff(self.norm3(x)))


class ContextTransformer(nn.Module):
    """`vl_self_attention`: unmasked self-attention over the backbone's features."""

    def __init__(self, config: TransformerConfig, p: float) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList(ContextBlock(config, p) for _ in range(config.num_layers))

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Features x (B, S, width) to the same, after `norm`, the published `vlln`."""
        x = norm(x)
        for block in self.transformer_blocks:
            x = block(x)
        return x


class AdaptiveNorm(nn.Module):
    """Layer norm whose scale and shift, in this order, are `linear` of the time embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)

    def modulation(self, time: Tensor) -> Tensor:
        """Scale and shift (B, 2 width), of an embedding (B, width), or as they are, if they are known ahead."""
        return time if time.shape[-1] == self.linear.out_features else self.linear(time)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Normalise x (B, N, width)."""
        scale, shift = modulation.unsqueeze(1).chunk(2, dim=-1)
        return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


class ContextCache:
    """What all denoising steps of a decision share.

    Args:
        prefix: (B, 1 + F, width): the state token and the future tokens.
        context: (B, S, D): what the DiT attends to.
    """

    def __init__(self, prefix: Tensor, context: Tensor) -> None:
        self.prefix = prefix
        self.context = context
        self._index: Tensor | None = None
        self._known: dict[nn.Module, KeysValues] = {}

    def rows(self, index: Tensor) -> ContextCache:
        """The cache of the decisions in `index` (R,) int64, which may repeat."""
        assert self._index is None, "rows of rows"
        chosen = ContextCache(self.prefix[index], self.context)
        chosen._index, chosen._known = index, self._known
        return chosen

    def keys_values(self, layer: Attention, context: Tensor) -> KeysValues:
        """Keys and values of the context, row by row, which a layer computes when it first attends to it.

        Args:
            layer: Whose.
            context: That of the cache, as it came into the layer's block, which may be sharded.
        """
        if layer not in self._known:
            self._known[layer] = layer.keys_values(context)
        known = self._known[layer]
        return known if self._index is None else known.rows(self._index)


class DiffusionBlock(nn.Module):
    """DiT block: attention to the context or among the tokens themselves, then a feed-forward layer."""

    COMPILED = ("before_attention", "after_attention")
    """All of `forward` but the attention itself, and but what an acting copy knows ahead."""

    def __init__(self, config: DiffusionConfig, p: float, *, attends_to_context: bool) -> None:
        super().__init__()
        width = config.width
        context_width = config.cross_attention_dim if attends_to_context else width
        self.attends_to_context = attends_to_context
        self.norm1 = AdaptiveNorm(width)
        self.attn1 = Attention(width, context_width, config.num_attention_heads, p)
        self.ff = FeedForward(width, p)
        self.final_dropout = dropout(p if config.final_dropout else 0.0)

    def pack(self) -> None:
        """See `Attention.pack`."""
        self.attn1.pack(*self._packed_layers)

    @property
    def _packed_layers(self) -> tuple[nn.Linear, ...]:
        """Those whose input is the same."""
        attention = self.attn1
        own = () if self.attends_to_context else (attention.to_q,)
        return (*own, attention.to_k, attention.to_v)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None, cache: ContextCache) -> Tensor:
        """(B, N, width) to the same.

        Args:
            x: Tokens (B, N, width).
            time: See `AdaptiveNorm.modulation`.
            context: That of `cache`, where the block attends to it.
            cache: Where it keeps the context's keys and values for the denoising steps that follow.
        """
        packed = None if self.attends_to_context else self.attn1.packed(*self._packed_layers)
        queries, own = self.before_attention(x, self.norm1.modulation(time), packed)
        if own is not None:
            return self.after_attention(x, attend(queries, KeysValues(*own)))
        assert context is not None
        return self.after_attention(x, attend(queries, cache.keys_values(self.attn1, context)))

    def before_attention(
        self, x: Tensor, modulation: Tensor, packed: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Queries, and among the tokens themselves also keys and values, each (B, heads, N, head_dim)."""
        x = self.norm1(x, modulation)
        if packed is None:
            return self.attn1.queries(x), None
        queries, keys, values = self.attn1.queries_keys_values(x, packed)
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
        self.timestep_encoder = TimestepEncoder(width)
        self.transformer_blocks = nn.ModuleList(
            DiffusionBlock(config, p, attends_to_context=index % 2 == 0) for index in range(config.num_layers)
        )
        self.proj_out_1 = nn.Linear(width, 2 * width)
        self.proj_out_2 = nn.Linear(width, config.output_dim)

    def pack(self) -> None:
        """See `Attention.pack`."""
        for block in self._blocks:
            block.pack()

    def modulations(self, bucket: Tensor) -> tuple[Tensor, ...]:
        """Scales and shifts (B, 2 width) of every block's first norm and of the last one, at discrete times (B,)."""
        time = self.embed_time(bucket)
        return tuple(layer(time) for layer in (*(block.norm1.linear for block in self._blocks), self.proj_out_1))

    def embed_time(self, bucket: Tensor) -> Tensor:
        """What every block makes its modulation of (B, width), of discrete times (B,)."""
        return F.silu(self.timestep_encoder(bucket))

    def forward(
        self,
        x: Tensor,
        bucket: Tensor,
        cache: ContextCache,
        num_outputs: int,
        modulations: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """Outputs (B, num_outputs, output_dim) of the last tokens.

        Args:
            x: Tokens (B, N, width).
            bucket: (B,) int64, discrete times.
            cache: Of B rows.
            num_outputs: Trailing tokens whose output is wanted.
            modulations: As the method of that name gives them for `bucket`, where they are known ahead.
        """
        time = self.embed_time(bucket) if modulations is None else None
        for index, block in enumerate(self._blocks):
            own = time if modulations is None else modulations[index]
            x = block(x, own, cache.context if block.attends_to_context else None, cache)
        x = x[:, -num_outputs:]
        modulation = self.proj_out_1(time) if modulations is None else modulations[-1]
        shift, scale = modulation.unsqueeze(1).chunk(2, dim=-1)
        return self.proj_out_2(F.layer_norm(x, x.shape[-1:], eps=OUTPUT_NORM_EPS) * (1 + scale) + shift)

    @property
    def _blocks(self) -> Iterator[DiffusionBlock]:
        for block in self.transformer_blocks:
            assert isinstance(block, DiffusionBlock)
            yield block
