"""AdamW in one pass: clips bfloat16 gradients, steps float32 weights and moments, and writes the bfloat16 weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from regrasp.device import HAS_TRITON, send

_ALIGNMENT = 16
"""Bytes and elements: what is a multiple of it is read and written in the widest instructions."""
_BLOCK, _WARPS = 2048, 8
"""Elements and warps of a program of the kernel: eight elements, 16 bytes of bfloat16, for a thread."""


@dataclass(frozen=True)
class Bfloat16Weights:
    """N float32 weights of one optimizer group, what AdamW keeps of them, and the bfloat16 weights that compute."""

    weights: list[Tensor]
    rounded: list[Tensor]
    gradients: list[Tensor]
    """Of `rounded`, bfloat16."""
    means: list[Tensor]
    """AdamW's `exp_avg`, float32."""
    squares: list[Tensor]
    """AdamW's `exp_avg_sq`, float32."""
    steps: list[Tensor]
    """Step counts (), float32."""


class FusedAdamW:
    """The step of torch.optim.AdamW on `Bfloat16Weights`.

    On a GPU it is a Triton kernel over all tensors, found by their addresses: 28 bytes are read and written for a
    weight. torch.compile would make a launch with its checks for each of hundreds of tensors, or compile one graph of
    them all. Without Triton the tensors are stepped one by one, and the host waits for `forbidden`.
    """

    def __init__(self) -> None:
        self._addresses = _Addresses()

    @torch.no_grad()
    def step(self, batch: Bfloat16Weights, group: Mapping[str, Any], coefficient: Tensor, forbidden: Tensor) -> None:
        """Step, unless `forbidden`: then weights, moments and step counts stay as they are.

        Args:
            batch: What to step.
            group: The optimizer's, with its settings.
            coefficient: (), float32, that gradients are multiplied by.
            forbidden: (), bool; on a GPU the host does not wait for it.
        """
        allowed = (~forbidden).float()
        # One addend for each: with a single tensor the host would wait for its value.
        torch._foreach_add_(batch.steps, [allowed] * len(batch.steps))  # pyright: ignore[reportPrivateImportUsage]
        first, second = group["betas"]
        counts = torch.stack(batch.steps).double()  # (N,); 1 - beta^count is small, and a float32 one inexact
        step_sizes = (group["lr"] / _bias_correction(first, counts)).float()
        roots = _bias_correction(second, counts).sqrt().float()
        numbers = (1 - group["lr"] * group["weight_decay"], 1 - first, second, 1 - second, group["eps"])
        if forbidden.is_cuda and HAS_TRITON:
            self._launch(batch, numbers, step_sizes, roots, coefficient, allowed)
        elif not forbidden:
            _step_each(batch, numbers, step_sizes, roots, coefficient)

    def _launch(self, batch: Bfloat16Weights, numbers: tuple[float, ...], *tensors: Tensor) -> None:
        """Run the kernel; see `regrasp.learner.adamw_kernel` for the numbers and tensors, in its order."""
        from regrasp.learner.adamw_kernel import adamw_kernel

        table, blocks = self._addresses.of(batch)
        with torch.cuda.device_of(table):
            for aligned, own in blocks.items():
                kernel = adamw_kernel[(len(own),)]  # pyright: ignore[reportIndexIssue]
                kernel(table, own, *tensors, *numbers, ALIGNED=aligned, BLOCK=_BLOCK, num_warps=_WARPS)


def _bias_correction(beta: float, counts: Tensor) -> Tensor:
    """1 - beta^counts; beta**counts would send beta to the GPU, and wait for that."""
    return -torch.expm1(math.log(beta) * counts) if beta else torch.ones_like(counts)


def _step_each(
    batch: Bfloat16Weights, numbers: tuple[float, ...], step_sizes: Tensor, roots: Tensor, coefficient: Tensor
) -> None:
    """The same arithmetic, tensor by tensor."""
    decay, mean_rest, square_beta, square_rest, eps = numbers
    for index, (weight, half) in enumerate(zip(batch.weights, batch.rounded, strict=True)):
        mean, square = batch.means[index], batch.squares[index]
        gradient = batch.gradients[index].float() * coefficient
        mean.lerp_(gradient, mean_rest)
        square.mul_(square_beta).addcmul_(gradient, gradient, value=square_rest)
        weight.mul_(decay).sub_(step_sizes[index] * mean / (square.sqrt() / roots[index] + eps))
        half.copy_(weight)


@dataclass
class _Addresses:
    """Sizes and addresses of tensors on their device, which are sent there when they change."""

    rows: list[tuple[int, ...]] = field(default_factory=list)
    layout: list[tuple[int, bool]] = field(default_factory=list)
    table: Tensor = field(default_factory=lambda: torch.empty(0))
    blocks: dict[bool, Tensor] = field(default_factory=dict)

    def of(self, batch: Bfloat16Weights) -> tuple[Tensor, dict[bool, Tensor]]:
        """(N, 6) int64: size and addresses; and, for aligned and other tensors, (P, 2) int32: tensor and block."""
        tensors = (batch.weights, batch.rounded, batch.gradients, batch.means, batch.squares)
        assert all(tensor.is_contiguous() for tensor in chain(*tensors))
        rows = [(own[0].numel(), *(tensor.data_ptr() for tensor in own)) for own in zip(*tensors, strict=True)]
        device = batch.weights[0].device
        if rows != self.rows:
            self.rows, self.table = rows, send(torch.tensor(rows), device)
        layout = [(row[0], all(number % _ALIGNMENT == 0 for number in row)) for row in rows]
        if layout != self.layout:
            self.layout = layout
            self.blocks = {aligned: send(_blocks(layout, aligned), device) for aligned in {own for _, own in layout}}
        return self.table, self.blocks


def _blocks(layout: list[tuple[int, bool]], aligned: bool) -> Tensor:
    """(P, 2) int32: the blocks of every tensor that is `aligned` or not."""
    counts = torch.tensor([-(-size // _BLOCK) if own == aligned else 0 for size, own in layout])
    tensors = torch.arange(len(layout)).repeat_interleave(counts)
    first = (counts.cumsum(0) - counts)[tensors]
    return torch.stack([tensors, torch.arange(len(tensors)) - first], dim=1).int()
