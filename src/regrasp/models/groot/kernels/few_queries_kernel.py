"""The Triton kernels of `regrasp.models.groot.kernels.few_queries`; imported on a GPU only.

A program has all queries of one head of one batch row, and goes through the head's keys and values once.
"""

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _tile(tensor, strides, batch, head, rows, columns):
    """Addresses of rows and columns of one head; the last dimension is dense."""
    start = tensor + batch * strides[0] + head * strides[1]
    return start + rows[:, None] * strides[2] + columns[None, :]


@triton.jit
def attention_kernel(
    queries,
    keys,
    values,
    attended,
    log_sums,
    query_strides,
    key_strides,
    value_strides,
    attended_strides,
    num_heads,
    num_queries,
    num_keys,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """softmax(scale QK')V, and the logarithms to base 2 of the softmaxes' denominators."""
    program = tl.program_id(0).to(tl.int64)
    batch, head = program // num_heads, program % num_heads
    n, s, d = tl.arange(0, BLOCK_QUERIES), tl.arange(0, BLOCK_KEYS), tl.arange(0, BLOCK_DIM)
    of_head = (d < HEAD_DIM)[None, :]
    is_query = (n < num_queries)[:, None] & of_head
    query = tl.load(_tile(queries, query_strides, batch, head, n, d), mask=is_query, other=0.0)
    key_tile = _tile(keys, key_strides, batch, head, s, d)
    value_tile = _tile(values, value_strides, batch, head, s, d)
    highest = tl.full([BLOCK_QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    result = tl.zeros([BLOCK_QUERIES, BLOCK_DIM], tl.float32)
    for start in range(0, num_keys, BLOCK_KEYS):
        inside = start + s < num_keys
        key = tl.load(key_tile, mask=inside[:, None] & of_head, other=0.0)
        value = tl.load(value_tile, mask=inside[:, None] & of_head, other=0.0)
        score = tl.dot(query, tl.trans(key)) * (scale * LOG2_E)
        score = tl.where(inside[None, :], score, -float("inf"))
        raised = tl.maximum(highest, tl.max(score, 1))
        weight = tl.exp2(score - raised[:, None])
        earlier = tl.exp2(highest - raised)
        total = total * earlier + tl.sum(weight, 1)
        result = result * earlier[:, None] + tl.dot(weight.to(value.dtype), value)
        highest = raised
        key_tile += BLOCK_KEYS * key_strides[2]
        value_tile += BLOCK_KEYS * value_strides[2]
    result = result / total[:, None]
    to = _tile(attended, attended_strides, batch, head, n, d)
    tl.store(to, result.to(attended.dtype.element_ty), mask=is_query)
    tl.store(log_sums + program * num_queries + n, highest + tl.log2(total), mask=n < num_queries)


@triton.jit
def attention_gradient_kernel(
    queries,
    keys,
    values,
    attended,
    log_sums,
    upstream,
    query_gradient,
    key_gradient,
    value_gradient,
    key_sums,
    value_sums,
    query_strides,
    key_strides,
    value_strides,
    attended_strides,
    upstream_strides,
    query_gradient_strides,
    key_gradient_strides,
    value_gradient_strides,
    sums_stride,
    num_heads,
    num_queries,
    num_keys,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """Gradients for queries, keys and values, and the sums over all keys of those for keys and values."""
    program = tl.program_id(0).to(tl.int64)
    batch, head = program // num_heads, program % num_heads
    n, s, d = tl.arange(0, BLOCK_QUERIES), tl.arange(0, BLOCK_KEYS), tl.arange(0, BLOCK_DIM)
    of_head = (d < HEAD_DIM)[None, :]
    is_query = (n < num_queries)[:, None] & of_head
    query = tl.load(_tile(queries, query_strides, batch, head, n, d), mask=is_query, other=0.0)
    result = tl.load(_tile(attended, attended_strides, batch, head, n, d), mask=is_query, other=0.0)
    gradient = tl.load(_tile(upstream, upstream_strides, batch, head, n, d), mask=is_query, other=0.0)
    inner = tl.sum(gradient.to(tl.float32) * result.to(tl.float32), 1)
    # A missing query has no weight on any key. A missing key has some, but its row is zero, and it is not written.
    log_sum = tl.load(log_sums + program * num_queries + n, mask=n < num_queries, other=float("inf"))
    key_tile = _tile(keys, key_strides, batch, head, s, d)
    value_tile = _tile(values, value_strides, batch, head, s, d)
    to_key = _tile(key_gradient, key_gradient_strides, batch, head, s, d)
    to_value = _tile(value_gradient, value_gradient_strides, batch, head, s, d)
    of_query = tl.zeros([BLOCK_QUERIES, BLOCK_DIM], tl.float32)
    key_sum, value_sum = tl.zeros([BLOCK_DIM], tl.float32), tl.zeros([BLOCK_DIM], tl.float32)
    for start in range(0, num_keys, BLOCK_KEYS):
        inside = (start + s < num_keys)[:, None]
        key = tl.load(key_tile, mask=inside & of_head, other=0.0)
        value = tl.load(value_tile, mask=inside & of_head, other=0.0)
        score = tl.dot(key, tl.trans(query)) * (scale * LOG2_E)
        weight = tl.exp2(score - log_sum[None, :])
        of_value = tl.where(inside, tl.dot(weight.to(gradient.dtype), gradient), 0.0)
        of_weight = tl.dot(value, tl.trans(gradient))
        of_score = (weight * (of_weight - inner[None, :]) * scale).to(query.dtype)
        of_key = tl.where(inside, tl.dot(of_score, query), 0.0)
        of_query += tl.dot(tl.trans(of_score), key)
        key_sum += tl.sum(of_key, 0)
        value_sum += tl.sum(of_value, 0)
        tl.store(to_key, of_key.to(key_gradient.dtype.element_ty), mask=inside & of_head)
        tl.store(to_value, of_value.to(value_gradient.dtype.element_ty), mask=inside & of_head)
        key_tile += BLOCK_KEYS * key_strides[2]
        value_tile += BLOCK_KEYS * value_strides[2]
        to_key += BLOCK_KEYS * key_gradient_strides[2]
        to_value += BLOCK_KEYS * value_gradient_strides[2]
    to_query = _tile(query_gradient, query_gradient_strides, batch, head, n, d)
    tl.store(to_query, of_query.to(query_gradient.dtype.element_ty), mask=is_query)
    sums = batch * sums_stride + head * HEAD_DIM + d
    tl.store(key_sums + sums, key_sum, mask=d < HEAD_DIM)
    tl.store(value_sums + sums, value_sum, mask=d < HEAD_DIM)
