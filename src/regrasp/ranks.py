"""The processes that train one policy together: each has a share of the environments, and all make the same steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

BUCKET_BYTES = 64 * 2**20
"""Gradients and weights are exchanged in pieces of about this size."""
SHARD = "shard"
"""The dimension of a mesh along which weights are divided."""


class Ranks:
    """One process alone, for which there is nothing to exchange."""

    index = 0
    count = 1

    def share(self, total: int) -> slice:
        """This rank's part of `total` things, which ranks have in order."""
        return slice(self.index * total // self.count, (self.index + 1) * total // self.count)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, which give tensors of the same shapes."""

    def begin_add(self, tensors: Sequence[Tensor]) -> Callable[[], object]:
        """Begin to replace tensors of one format by their sums over all ranks; what is returned waits for them."""
        return lambda: None

    def largest(self, tensor: Tensor) -> None:
        """Replace each element by the largest of all ranks."""

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank."""
        return flag

    def gather(self, table: TensorDict) -> list[TensorDict]:
        """The tables (B_r,) of all ranks, in their order, of the same columns and any number of rows."""
        return [table]

    def swap(self, sent: Mapping[int, TensorDict], received: Mapping[int, int], like: TensorDict) -> list[TensorDict]:
        """Send rows to other ranks and receive theirs, all at the same time.

        Args:
            sent: By rank.
            received: How many rows come from which rank, as those say that send them.
            like: A table of the same columns, on the device where rows are exchanged; it may be nested.

        Returns:
            What came, in the order of `received`.
        """
        assert not sent, "one rank"
        assert not received, "one rank"
        return []

    def mesh(self, num_shards: int) -> DeviceMesh:
        """The ranks as copies of `num_shards` ranks that follow each other, among which weights are divided."""
        raise AssertionError("one rank has nothing to divide")


class ProcessGroupRanks(Ranks):
    """The ranks of a process group of torch's, which has been initialized.

    Args:
        device: The rank's own: small numbers are exchanged there, and tensors given where they are. A GPU is the
            current one, and the process group has a backend for it.
        group: The group; None for the default one.
    """

    def __init__(self, device: torch.device, group: dist.ProcessGroup | None = None) -> None:
        self.index = dist.get_rank(group)
        self.count = dist.get_world_size(group)
        self._device = device
        self._group = group

    def add(self, tensors: Sequence[Tensor]) -> None:
        """See `Ranks.add`; one exchange for every 64 MiB."""
        for bucket in buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            dist.all_reduce(flat, group=self._group)
            for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def begin_add(self, tensors: Sequence[Tensor]) -> Callable[[], object]:
        """See `Ranks.begin_add`; on a GPU, one kernel sums them where they are, and `wait` is of the calling stream."""
        group = self._group or dist.group.WORLD
        assert group is not None, "the process group has been initialized"
        return group.allreduce_coalesced([*tensors]).wait

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

    def swap(self, sent: Mapping[int, TensorDict], received: Mapping[int, int], like: TensorDict) -> list[TensorDict]:
        """See `Ranks.swap`; one message for each pair of ranks."""
        outgoing = {rank: _packed(table) for rank, table in sent.items()}
        row_bytes = sum(_row_bytes(column) for column in _columns(like).values())
        incoming = {
            rank: torch.empty(count * row_bytes, dtype=torch.uint8, device=self._device)
            for rank, count in received.items()
        }
        members = self._members()
        work = [dist.P2POp(dist.isend, message, members[rank], self._group) for rank, message in outgoing.items()]
        work += [dist.P2POp(dist.irecv, message, members[rank], self._group) for rank, message in incoming.items()]
        for request in dist.batch_isend_irecv(work) if work else ():
            request.wait()
        return [_unpacked(message, received[rank], like) for rank, message in incoming.items()]

    def mesh(self, num_shards: int) -> DeviceMesh:
        """See `Ranks.mesh`; two dimensions where there are several copies."""
        grid = torch.tensor(self._members()).view(-1, num_shards)
        kind = self._device.type
        if len(grid) == 1:
            return DeviceMesh.from_group(self._group or group_of(self._members()), kind, mesh_dim_names=(SHARD,))
        copy, shard = divmod(self.index, num_shards)
        groups = [group_of(members.tolist()) for members in (grid[:, shard], grid[copy])]
        return DeviceMesh.from_group(groups, kind, mesh=grid, mesh_dim_names=("replicate", SHARD))

    def _members(self) -> list[int]:
        """The number that each rank has among all processes."""
        return dist.get_process_group_ranks(self._group)

    def _gather(self, column: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """A column of all ranks, on the device that it comes from."""
        rows = column.to(self._device, torch.uint8 if column.dtype == torch.bool else column.dtype)
        padded = rows.new_zeros((max(counts), *column.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, self._group)
        return [part[:count].to(column.device, column.dtype) for part, count in zip(parts, counts, strict=True)]


def group_of(members: Sequence[int]) -> dist.ProcessGroup:
    """A group of some processes, by their numbers among all; its members make it together."""
    return cast(dist.ProcessGroup, dist.new_group(list(members), use_local_synchronization=True))


def _columns(table: TensorDict) -> dict[str, Tensor]:
    """The columns of a table and of the tables in it, those of wide numbers first: each begins at a multiple of its."""
    flat = {str(name): column for name, column in table.flatten_keys(".").items() if isinstance(column, Tensor)}
    return dict(sorted(flat.items(), key=lambda item: (-item[1].itemsize, item[0])))


def _row_bytes(column: Tensor) -> int:
    return column.shape[1:].numel() * column.itemsize


def _packed(table: TensorDict) -> Tensor:
    """All columns as one row of bytes."""
    return torch.cat([column.contiguous().flatten().view(torch.uint8) for column in _columns(table).values()])


def _unpacked(message: Tensor, count: int, like: TensorDict) -> TensorDict:
    columns = _columns(like)
    parts = message.split([count * _row_bytes(column) for column in columns.values()])
    found = {
        name: part.view(column.dtype).view(count, *column.shape[1:])
        for part, (name, column) in zip(parts, columns.items(), strict=True)
    }
    return TensorDict(found, batch_size=[count]).unflatten_keys(".")


def buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype and about `BUCKET_BYTES` each, in order; a tensor is asked for when its turn comes."""
    bucket: list[Tensor] = []
    room = BUCKET_BYTES
    for tensor in tensors:
        if bucket and (tensor.nbytes > room or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, room = [], BUCKET_BYTES
        bucket.append(tensor)
        room -= tensor.nbytes
    if bucket:
        yield bucket
