"""The processes that train one policy together: each has a share of the environments, and all make the same steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor

_BUCKET_BYTES = 64 * 2**20
"""Gradients are summed in pieces of about this size."""


class Ranks:
    """One process alone, for which there is nothing to exchange."""

    index = 0
    count = 1

    def share(self, total: int) -> slice:
        """This rank's part of `total` things, which ranks have in order."""
        return slice(self.index * total // self.count, (self.index + 1) * total // self.count)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, which give tensors of the same shapes."""

    def largest(self, tensor: Tensor) -> None:
        """Replace each element by the largest of all ranks."""

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank."""
        return flag

    def gather(self, table: TensorDict) -> list[TensorDict]:
        """The tables (B_r,) of all ranks, in their order, of the same columns and any number of rows."""
        return [table]


class ProcessGroupRanks(Ranks):
    """The ranks of a process group of torch's, which has been initialized.

    Args:
        device: Where small numbers are exchanged; tensors given are exchanged where they are.
        group: The group; None for the default one.
    """

    def __init__(self, device: torch.device, group: dist.ProcessGroup | None = None) -> None:
        self.index = dist.get_rank(group)
        self.count = dist.get_world_size(group)
        self._device = device
        self._group = group

    def add(self, tensors: Sequence[Tensor]) -> None:
        """See `Ranks.add`; one exchange for every 64 MiB."""
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            dist.all_reduce(flat, group=self._group)
            for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def largest(self, tensor: Tensor) -> None:
        """See `Ranks.largest`."""
        dist.all_reduce(tensor, dist.ReduceOp.MAX, self._group)

    def any(self, flag: bool) -> bool:
        """See `Ranks.any`."""
        found = torch.tensor(int(flag), device=self._device)
        self.largest(found)
        return bool(found)

    def gather(self, table: TensorDict) -> list[TensorDict]:
        """See `Ranks.gather`."""
        mine = torch.tensor([len(table)], device=self._device)
        lengths = [torch.zeros_like(mine) for _ in range(self.count)]
        dist.all_gather(lengths, mine, self._group)
        counts = [int(length) for length in lengths]
        columns = {str(name): self._gather(table[name], counts) for name in sorted(map(str, table.keys()))}
        return [
            TensorDict({name: parts[rank] for name, parts in columns.items()}, batch_size=[count])
            for rank, count in enumerate(counts)
        ]

    def _gather(self, column: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """A column of all ranks, on the device that it comes from."""
        rows = column.to(self._device, torch.uint8 if column.dtype == torch.bool else column.dtype)
        padded = rows.new_zeros((max(counts), *column.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, self._group)
        return [part[:count].to(column.device, column.dtype) for part, count in zip(parts, counts, strict=True)]


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors of one dtype and about `_BUCKET_BYTES` each, in order."""
    buckets: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if not buckets or tensor.nbytes > room or tensor.dtype != buckets[-1][0].dtype:
            buckets.append([])
            room = _BUCKET_BYTES
        buckets[-1].append(tensor)
        room -= tensor.nbytes
    return buckets
