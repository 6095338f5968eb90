"""Sums of gradients over the ranks that are made while the backward pass computes the next ones."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from regrasp.ranks import BUCKET_BYTES, Ranks


class SumsInPass:
    """Sums the gradients of a backward pass over the ranks, a bucket as soon as all of it is computed.

    All ranks compute the same losses, so they fill the same buckets in the same order. Where a pass is recorded as a
    CUDA graph, the sums are a part of it.

    Args:
        parameters: Those that gradients are computed of.
        ranks: Those that train together.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
        self._ranks = ranks
        self._is_open = False
        self._ready: dict[torch.dtype, list[nn.Parameter]] = defaultdict(list)
        self._ready_bytes: dict[torch.dtype, int] = defaultdict(int)
        self._under_way: list[tuple[list[nn.Parameter], Tensor, Callable[[], object]]] = []
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._add)

    @contextlib.contextmanager
    def of_pass(self) -> Iterator[None]:
        """Around one backward pass: at its end every gradient is the sum of all ranks'."""
        self._ready.clear()
        self._ready_bytes.clear()
        self._under_way.clear()
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False
        for dtype in [*self._ready]:
            self._begin(dtype)
        for bucket, flat, wait in self._under_way:
            wait()
            parts = flat.split([parameter.numel() for parameter in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                parameter.grad = part.view_as(parameter)

    def _add(self, parameter: Tensor) -> None:
        """Hear that a parameter's gradient is computed."""
        if not self._is_open:
            return
        assert isinstance(parameter, nn.Parameter)
        self._ready[parameter.dtype].append(parameter)
        self._ready_bytes[parameter.dtype] += parameter.nbytes
        if self._ready_bytes[parameter.dtype] >= BUCKET_BYTES:
            self._begin(parameter.dtype)

    def _begin(self, dtype: torch.dtype) -> None:
        bucket = self._ready.pop(dtype)
        del self._ready_bytes[dtype]
        flat = torch.cat([parameter.grad.flatten() for parameter in bucket if parameter.grad is not None])
        for parameter in bucket:
            parameter.grad = None
        self._under_way.append((bucket, flat, self._ranks.begin_add(flat)))
