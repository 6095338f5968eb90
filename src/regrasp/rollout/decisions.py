"""The record of decisions: what a policy saw, did and got, as rollouts gather it and algorithms train on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.device import send

if TYPE_CHECKING:
    from regrasp.models.contract import Policy


@dataclass(frozen=True)
class Decisions:
    """B decisions; all but `inputs` is on the CPU until it is trained on."""

    inputs: TensorDict | HostRows
    """What they were taken on: features, or prepared observations."""
    record: TensorDict
    """(B,), by name: `trace`, what `evaluate` needs; `log_probs` (B, T, A) of the policy that acted; `rewards` (B, T),
    one per environment step, 0 where none was executed; `num_executed` (B,) int64; `ends` (B,) bool, the episode ended
    in this chunk; `success` (B,) bool, it was seen in this chunk; `time` (B,) int64, the decision within the rollout;
    `decision` (B,) int64, that within the episode; `column` (B,) int64, the environment and rollout epoch; `is_final`
    (B,) bool, nothing was decided: the step limit cut the episode there (`Bootstrap`); `versions` (B,) int64, updates
    that the acting policy had seen. Of a policy with a value head also `values` (B,), and `is_bootstrapped` (B,) bool
    and `next_values` (B,), the value of the observation reached, where asked for. Algorithms add more."""
    are_encoded: bool
    """Whether `inputs` are features."""
    is_idle: bool = field(default=False, kw_only=True)
    """Not of the minibatch: its gradient is to be zero, and keeps a rank in step that has none left of its own."""

    def __len__(self) -> int:
        return self.record.batch_size[0]

    def __getitem__(self, name: str) -> Tensor:
        return self.record[name]

    @property
    def trace(self) -> TensorDict:
        """What `Policy.evaluate` needs of them."""
        return self.record["trace"]

    @property
    def table(self) -> TensorDict:
        """The `inputs` of decisions whose rows `to` has put on a device."""
        assert isinstance(self.inputs, TensorDict), "inputs that are still in host memory"
        return self.inputs

    @property
    def columns(self) -> dict[str, Tensor]:
        """The record without `trace`."""
        return {str(name): value for name, value in self.record.items() if isinstance(value, Tensor)}

    def features(self, policy: Policy) -> TensorDict:
        """What `policy` sees in the inputs; stored features are those of any policy with the same backbone."""
        return self.table if self.are_encoded else policy.encode(self.table)

    def with_columns(self, **columns: Tensor) -> Decisions:
        """The same decisions with more columns."""
        return replace(self, record=self.record.copy().update(columns))

    def rows(self, index: Tensor) -> Decisions:
        """The decisions in `index` (B,) int64, on the CPU; the host waits for no GPU."""
        own = send(index, self["num_executed"].device)
        inputs = self.inputs[index if isinstance(self.inputs, HostRows) else own]
        return replace(self, inputs=inputs, record=self.record[own])

    def record_to(self, device: torch.device) -> Decisions:
        """All but `inputs`, which is the bulk of it, on `device`."""
        return replace(self, record=_sent(self.record, device))

    def to(self, device: torch.device) -> Decisions:
        """The decisions on `device`; the host waits for no GPU that they are sent to."""
        inputs = self.inputs.to(device) if isinstance(self.inputs, HostRows) else _sent(self.inputs, device)
        return replace(self, inputs=inputs, record=_sent(self.record, device))

    def clone(self) -> Decisions:
        """A copy that shares no memory; `inputs` are on a device."""
        return replace(self, inputs=self.table.clone(), record=self.record.clone())

    def filled(self, size: int) -> Decisions:
        """These, which are on a device, and copies of the first one up to `size`, of which nothing was executed."""
        place = torch.arange(size, device=self["num_executed"].device)
        is_own = place < len(self)
        index = torch.where(is_own, place, 0)
        whole = replace(self, inputs=self.table[index], record=self.record[index])
        return whole.with_columns(num_executed=torch.where(is_own, whole["num_executed"], 0))

    def copy_from(self, other: Decisions) -> None:
        """Overwrite tensors in place by those of as many decisions, as a recorded CUDA graph reads them."""
        self.table.copy_(other.table)
        self.record.copy_(other.record)

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[Decisions]:
        """One pass over all decisions in a random order, in nearly equal parts of at most `size`."""
        if not len(self):
            return
        order = torch.randperm(len(self), generator=generator)
        for index in torch.tensor_split(order, -(-len(self) // size)):
            yield self.rows(index)

    def micro_batches(self, size: int) -> Iterator[Decisions]:
        """What this process computes of a minibatch, in parts of at most `size`."""
        return self.split(size)

    def split(self, size: int) -> Iterator[Decisions]:
        """The decisions in their order, in parts of at most `size`, which share memory with the whole."""
        if 0 < len(self) <= size:
            yield self
            return
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield replace(self, inputs=self.inputs[part], record=self.record[part])

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries of tensors on the CPU, to be looked at."""
        cpu = self.to(torch.device("cpu"))
        return {"inputs": cpu.inputs.to_dict(), **cpu.record.to_dict()}


class HostRows:
    """Rows of a table in host memory, of which only those asked for are ever copied.

    Args:
        table: Named tensors of as many rows, pinned where a GPU reads them.
        index: (B,) int64, the rows meant.
    """

    def __init__(self, table: TensorDict, index: Tensor) -> None:
        self._table = table
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: Tensor | slice) -> HostRows:
        return HostRows(self._table, self._index[index])

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return list(map(str, self._table.keys()))

    def to(self, device: torch.device) -> TensorDict:
        """Copies of the rows on `device`; the host does not wait for them."""
        copies = {}
        for name in self.keys():
            rows = self._table[name]
            copy = torch.empty((len(self), *rows.shape[1:]), dtype=rows.dtype, device=device)
            for target, row in zip(copy.unbind(), self._index.tolist(), strict=True):
                target.copy_(rows[row], non_blocking=True)
            copies[name] = copy
        return TensorDict(copies, batch_size=[len(self)])

    def to_dict(self) -> dict[str, Tensor]:
        """Copies of the rows by name."""
        return self.to(torch.device("cpu")).to_dict()


def _sent(table: TensorDict, device: torch.device) -> TensorDict:
    """The table on `device`, see `send`."""
    found = table.apply(lambda value: send(value, device))
    assert found is not None
    return found
