"""Sums of gradients over the ranks that are made while the backward pass computes the next ones."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from regrasp.ranks import Ranks

BUCKET_BYTES = 256 * 2**20
"""Gradients are summed in groups of about this size: on two H200, 1 to 2 % of an update faster than 64 MiB."""


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
        self._ready: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        self._ready_bytes: dict[torch.dtype, int] = defaultdict(int)
        self._under_way: list[Callable[[], object]] = []
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
        for wait in self._under_way:
            wait()

    def _add(self, parameter: Tensor) -> None:
        """Hear that a parameter's gradient is computed."""
        if not self._is_open:
            return
        assert parameter.grad is not None
        self._ready[parameter.dtype].append(parameter.grad)
        self._ready_bytes[parameter.dtype] += parameter.nbytes
        if self._ready_bytes[parameter.dtype] >= BUCKET_BYTES:
            self._begin(parameter.dtype)

    def _begin(self, dtype: torch.dtype) -> None:
        del self._ready_bytes[dtype]
        self._under_way.append(self._ranks.begin_add(self._ready.pop(dtype)))
