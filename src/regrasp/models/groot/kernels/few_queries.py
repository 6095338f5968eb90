"""Attention of a few queries to many keys, and a product that makes the keys and values of several layers.

The kernels that torch brings are made for many queries. Here, on a GPU, one program has all queries of a head, see
`few_queries_kernel`, and the gradients of all layers' keys and values are written side by side, as the product's
backward pass reads them. For the DiT's 49 tokens and a context of 850 it takes 3 ms of 92 off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from regrasp.device import HAS_TRITON

_MAX_QUERIES, _MAX_HEAD_DIM = 64, 64
"""What a program keeps at a time, in 74 kB of shared memory: all GPUs that have bfloat16 have more."""
_BFLOAT16_SINCE = (8, 0)
"""Compute capability."""
_MIN_BLOCK = 16
"""Of a product in Triton."""
_TUNING = {"BLOCK_KEYS": 64, "num_warps": 4, "num_stages": 3}
"""The fastest on an H100 for 49 queries of 32 heads and 850 keys, and within 5 % of it for other batches."""


@dataclass(frozen=True)
class KeysValues:
    """Of one layer."""

    keys: Tensor
    """(B, heads, S, head_dim)."""
    values: Tensor
    """Of the same shape."""
    room: Room | None = None
    """Where their gradients are written, if not into tensors of their own."""

    def rows(self, index: Tensor) -> KeysValues:
        """Of the batch rows in `index` (R,), which may repeat."""
        return KeysValues(self.keys[index], self.values[index])


def attend(queries: Tensor, to: KeysValues) -> Tensor:
    """Scaled dot-product attention of queries (B, heads, N, head_dim), in that shape."""
    if (
        _computes(queries)
        and queries.shape[2] <= _MAX_QUERIES
        and queries.shape[3] <= _MAX_HEAD_DIM
        and to.keys.dtype == to.values.dtype == queries.dtype
    ):
        return _Attention.apply(queries, to.keys, to.values, to.room)  # pyright: ignore[reportReturnType]
    return F.scaled_dot_product_attention(queries, to.keys, to.values)


def keys_values(context: Tensor, weight: Tensor, bias: Tensor, num_heads: int, num_layers: int) -> list[KeysValues]:
    """Keys and values of every layer as one product, whose gradient for the context is one product too.

    Args:
        context: (B, S, C).
        weight: (2 num_layers width, C): of the first layer's keys, its values, the second layer's keys, ...
        bias: (2 num_layers width).
        num_heads: Which `width` is divided into.
        num_layers: Of them.
    """
    packs = torch.is_grad_enabled() and _computes(context) and weight.dtype == context.dtype
    gradient = PackedGradient(num_layers) if packs else None
    if gradient is None:
        parts = F.linear(context, weight, bias).chunk(2 * num_layers, dim=-1)
    else:
        parts = _Product.apply(context, weight, bias, gradient)
    heads = [part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in parts]  # pyright: ignore
    rooms = [None if gradient is None else Room(gradient, layer) for layer in range(num_layers)]
    return [KeysValues(*own) for own in zip(heads[::2], heads[1::2], rooms, strict=True)]


def _computes(x: Tensor) -> bool:
    """Whether the kernels are for `x`."""
    fits = x.is_cuda and x.dtype == torch.bfloat16 and HAS_TRITON
    return fits and torch.cuda.get_device_capability(x.device) >= _BFLOAT16_SINCE


class PackedGradient:
    """Gradients of the keys and values of several layers, side by side, written in the course of a backward pass."""

    def __init__(self, num_layers: int) -> None:
        self.num_parts = 2 * num_layers
        self._begin()

    def _begin(self) -> None:
        self._whole: Tensor | None = None
        self._sums: Tensor | None = None
        self._uses = [0] * (self.num_parts // 2)

    def take(self, layer: int, keys: Tensor) -> tuple[Tensor, ...] | None:
        """Where to write the gradients of a layer's keys and values, and their sums over keys; None if it was taken."""
        self._uses[layer] += 1
        if self._uses[layer] > 1:
            return None
        batch, heads, num_keys, head_dim = keys.shape
        if self._whole is None:
            self._whole = keys.new_empty(batch, num_keys, self.num_parts, heads, head_dim)
            self._sums = keys.new_empty(batch, self.num_parts, heads, head_dim, dtype=torch.float32)
        assert self._sums is not None
        parts = (2 * layer, 2 * layer + 1)
        return *(self._whole[:, :, i].transpose(1, 2) for i in parts), *(self._sums[:, i] for i in parts)

    def finish(self, parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The whole gradient (B, S, all widths) and its sum (all widths), from what autograd gives for the parts."""
        whole, sums, uses = self._whole, self._sums, self._uses
        self._begin()
        if whole is not None and sums is not None and uses == [1] * len(uses):
            own = [whole[:, :, i].flatten(2) for i in range(self.num_parts)]
            if all(a.data_ptr() == b.data_ptr() and a.stride() == b.stride() for a, b in zip(own, parts, strict=True)):
                return whole.flatten(2), sums.sum(0).flatten()
        packed = torch.cat(parts, dim=-1)
        return packed, packed.sum((0, 1), dtype=torch.float32)


@dataclass(frozen=True)
class Room:
    """A layer's part of a `PackedGradient`."""

    gradient: PackedGradient
    layer: int

    def take(self, keys: Tensor) -> tuple[Tensor, ...] | None:
        """See `PackedGradient.take`."""
        return self.gradient.take(self.layer, keys)


class _Product(torch.autograd.Function):
    """A linear layer whose output is handed out in parts."""

    @staticmethod
    def forward(
        ctx: Any, context: Tensor, weight: Tensor, bias: Tensor, gradient: PackedGradient
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(context, weight)
        ctx.gradient = gradient
        return F.linear(context, weight, bias).chunk(gradient.num_parts, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *parts: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor, None]:
        context, weight = ctx.saved_tensors
        whole, sums = ctx.gradient.finish(parts)
        rows = whole.flatten(0, 1)
        for_context = (rows @ weight).view_as(context) if ctx.needs_input_grad[0] else None
        return for_context, rows.T @ context.flatten(0, 1), sums.to(weight.dtype), None


class _Attention(torch.autograd.Function):
    """The kernels."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, room: Room | None) -> Tensor:
        attended, log_sums = attention(queries, keys, values)
        ctx.save_for_backward(queries, keys, values, attended, log_sums)
        ctx.room = room
        return attended

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, upstream: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, attended, log_sums = ctx.saved_tensors
        return *attention_gradient(queries, keys, values, attended, log_sums, upstream, ctx.room), None


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """What is attended to (B, heads, N, head_dim), and logarithms to base 2 of the softmaxes' sums (B, heads, N)."""
    from regrasp.models.groot.kernels.few_queries_kernel import attention_kernel

    queries, keys, values = map(_with_dense_rows, (queries, keys, values))
    attended = _empty(queries)
    log_sums = queries.new_empty(queries.shape[:3], dtype=torch.float32)
    strides = _strides(queries, keys, values, attended)
    with torch.cuda.device_of(queries):
        kernel = attention_kernel[_programs(queries)]  # pyright: ignore[reportIndexIssue]
        kernel(
            queries, keys, values, attended, log_sums, *strides, *_sizes(queries, keys), **_blocks(queries), **_TUNING
        )
    return attended, log_sums


def attention_gradient(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    attended: Tensor,
    log_sums: Tensor,
    upstream: Tensor,
    room: Room | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, the latter two in their `room` where there is one that is free."""
    from regrasp.models.groot.kernels.few_queries_kernel import attention_gradient_kernel

    queries, keys, values, upstream = map(_with_dense_rows, (queries, keys, values, upstream))
    for_queries = _empty(queries)
    taken = None if room is None else room.take(keys)
    if taken is None:
        sums = keys.new_empty(2, len(keys), keys.shape[1], keys.shape[3], dtype=torch.float32)
        taken = (_empty(keys), _empty(values), *sums)
    for_keys, for_values, key_sums, value_sums = taken
    read, written = (queries, keys, values, attended), (for_queries, for_keys, for_values)
    strides = _strides(*read, upstream, *written)
    with torch.cuda.device_of(queries):
        kernel = attention_gradient_kernel[_programs(queries)]  # pyright: ignore[reportIndexIssue]
        tensors = (*read, log_sums, upstream, *written, key_sums, value_sums)
        kernel(*tensors, *strides, key_sums.stride(0), *_sizes(queries, keys), **_blocks(queries), **_TUNING)
    return for_queries, for_keys, for_values


def _with_dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _empty(like: Tensor) -> Tensor:
    """In the layout of a linear layer's output, (B, N, heads, head_dim)."""
    return like.new_empty(like.transpose(1, 2).shape).transpose(1, 2)


def _strides(*tensors: Tensor) -> list[tuple[int, ...]]:
    return [tensor.stride()[:3] for tensor in tensors]


def _programs(queries: Tensor) -> tuple[int]:
    return (queries.shape[0] * queries.shape[1],)


def _sizes(queries: Tensor, keys: Tensor) -> tuple[int, int, int, float]:
    _, num_heads, num_queries, head_dim = queries.shape
    return num_heads, num_queries, keys.shape[2], 1 / math.sqrt(head_dim)


def _blocks(queries: Tensor) -> dict[str, int]:
    *_, num_queries, head_dim = queries.shape
    dim, block = (max(_MIN_BLOCK, 1 << (n - 1).bit_length()) for n in (head_dim, num_queries))
    return {"HEAD_DIM": head_dim, "BLOCK_DIM": dim, "BLOCK_QUERIES": block}
