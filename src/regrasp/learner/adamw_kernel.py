"""The Triton kernel of `regrasp.learner.fused_adamw`; imported on a GPU only."""

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def adamw_kernel(
    table,
    blocks,
    step_sizes,
    roots,
    coefficient,
    allowed,
    decay,
    mean_rest,
    square_beta,
    square_rest,
    eps,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Step one block of one tensor, see `FusedAdamW.step`; nothing is read or written where `allowed` is 0."""
    if tl.load(allowed) > 0:
        block = blocks + 2 * tl.program_id(0)
        tensor = tl.load(block)
        row = table + 6 * tensor
        size = tl.load(row)
        weights = tl.load(row + 1).to(tl.pointer_type(tl.float32))
        rounded = tl.load(row + 2).to(tl.pointer_type(tl.bfloat16))
        gradients = tl.load(row + 3).to(tl.pointer_type(tl.bfloat16))
        means = tl.load(row + 4).to(tl.pointer_type(tl.float32))
        squares = tl.load(row + 5).to(tl.pointer_type(tl.float32))
        if ALIGNED:
            size = tl.multiple_of(size, 16)
            weights = tl.multiple_of(weights, 16)
            rounded = tl.multiple_of(rounded, 16)
            gradients = tl.multiple_of(gradients, 16)
            means = tl.multiple_of(means, 16)
            squares = tl.multiple_of(squares, 16)
        index = tl.load(block + 1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = index < size
        gradient = tl.load(gradients + index, mask=inside).to(tl.float32) * tl.load(coefficient)
        mean = tl.load(means + index, mask=inside)
        square = tl.load(squares + index, mask=inside)
        weight = tl.load(weights + index, mask=inside)
        mean = mean + mean_rest * (gradient - mean)
        square = square_beta * square + square_rest * gradient * gradient
        scale = tl.div_rn(tl.sqrt_rn(square), tl.load(roots + tensor)) + eps
        weight = decay * weight - tl.div_rn(tl.load(step_sizes + tensor) * mean, scale)
        tl.store(means + index, mean, mask=inside)
        tl.store(squares + index, square, mask=inside)
        tl.store(weights + index, weight, mask=inside)
        tl.store(rounded + index, weight.to(tl.bfloat16), mask=inside)
