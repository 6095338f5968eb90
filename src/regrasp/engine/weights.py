"""Weights on their way from the ranks that train to those that act."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from regrasp.errors import RegraspError
from regrasp.ranks import buckets

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes of a number."""


class WeightSync:
    """Broadcasts trained weights from one process to others.

    Args:
        group: The sender and all receivers.
        source: The sender's rank in the default group.
        device: Where the weights are.
    """

    def __init__(self, group: dist.ProcessGroup, source: int, device: torch.device) -> None:
        self._group = group
        self._source = source
        self._device = device

    def send(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Send weights, in the order in which the receivers have them."""
        sums: list[Tensor] = []
        for bucket in buckets(tensor for _, tensor in weights):
            flat = torch.cat([tensor.detach().flatten() for tensor in bucket])
            dist.broadcast(flat, self._source, self._group)
            sums.append(_checksum(flat))
        dist.broadcast(torch.stack(sums), self._source, self._group)

    @torch.no_grad()
    def receive(self, weights: Mapping[str, Tensor]) -> None:
        """Overwrite weights by those sent.

        Raises:
            RegraspError: They did not arrive as they were sent.
        """
        sums: list[Tensor] = []
        for bucket in buckets(weights.values()):
            flat = torch.empty(sum(own.numel() for own in bucket), dtype=bucket[0].dtype, device=self._device)
            dist.broadcast(flat, self._source, self._group)
            sums.append(_checksum(flat))
            for own, part in zip(bucket, flat.split([own.numel() for own in bucket]), strict=True):
                own.copy_(part.view_as(own))
        found = torch.stack(sums)
        expected = torch.empty_like(found)
        dist.broadcast(expected, self._source, self._group)
        if not torch.equal(found, expected):
            raise RegraspError("The weights that the processes act with did not arrive as they were sent.")


def _checksum(flat: Tensor) -> Tensor:
    """The sum of all bits taken as integers."""
    return flat.view(_INTEGERS[flat.itemsize]).sum(dtype=torch.int64)
