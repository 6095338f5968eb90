"""The decisions of one update: gathered step by step, then turned into advantages and one flat batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.algorithms.advantages import RewardType, chunk_rewards, gae, normalize
from regrasp.device import send
from regrasp.models.contract import Action

Storage = Literal["device", "host"]


@dataclass
class Rollout:
    """B decisions, each with everything its update needs; all but `inputs` is on the CPU until it is trained on."""

    inputs: TensorDict | HostRows
    """Backbone features, or prepared observations where features are recomputed."""
    trace: TensorDict
    log_probs: Tensor
    """(B, T, A) of the policy that acted."""
    values: Tensor
    """(B,)."""
    advantages: Tensor
    """(B,), normalised over the whole update if so configured."""
    returns: Tensor
    """(B,)."""
    num_executed: Tensor
    """(B,) int64."""
    versions: Tensor
    """(B,) int64, number of updates that the acting policy had seen."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def table(self) -> TensorDict:
        """The `inputs` of decisions whose rows `to` has put on a device."""
        assert isinstance(self.inputs, TensorDict), "inputs that are still in host memory"
        return self.inputs

    def rows(self, index: Tensor) -> Rollout:
        """The decisions in `index` (B,) int64, on the CPU; the host waits for no GPU."""
        device = self.values.device
        own = send(index, device)
        return Rollout(**{n: value[index if isinstance(value, HostRows) else own] for n, value in vars(self).items()})

    def decisions_to(self, device: torch.device) -> Rollout:
        """All but `inputs`, which is the bulk of it, on `device`."""
        return replace(self, **{n: value.to(device) for n, value in vars(self).items() if n != "inputs"})

    def to(self, device: torch.device) -> Rollout:
        """The decisions on `device`."""
        return Rollout(**{name: value.to(device) for name, value in vars(self).items()})

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[Rollout]:
        """One pass over all decisions in a random order, in nearly equal parts of at most `size`."""
        order = torch.randperm(len(self), generator=generator)
        for index in torch.tensor_split(order, -(-len(self) // size)):
            yield self.rows(index)

    def split(self, size: int) -> Iterator[Rollout]:
        """The decisions in their order, in parts of at most `size`, which share memory with the whole."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield Rollout(**{name: value[part] for name, value in vars(self).items()})


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


class FeatureStore:
    """What the decisions of a rollout were taken on, gathered without a second copy of it all.

    Args:
        capacity: Rows to make room for at first; the store doubles when it is full.
        where: `device` keeps rows on the device they come from, `host` in host memory, pinned for a GPU.
    """

    def __init__(self, capacity: int = 1, where: Storage = "device") -> None:
        self._capacity = capacity
        self._where: Storage = where
        self._table: dict[str, Tensor] = {}
        self._count = 0

    def add(self, rows: TensorDict) -> None:
        """Append copies of `rows`; from a GPU to the host, the copies are complete when the GPU gets there."""
        start, self._count = self._count, self._count + len(rows)
        if self._count > self._capacity:
            self._capacity = max(2 * self._capacity, self._count)
        for name in map(str, rows.keys()):
            value = rows[name]
            table = self._table.get(name)
            if table is None or len(table) < self._capacity:
                self._table[name] = grown = self._empty(value)
                if table is not None:
                    if table.is_pinned():
                        torch.cuda.current_stream().synchronize()
                    grown[:start] = table[:start]
            self._table[name][start : self._count].copy_(value, non_blocking=True)

    def rows(self) -> TensorDict | HostRows:
        """Everything added, in its order."""
        filled = {name: value[: self._count] for name, value in self._table.items()}
        table = TensorDict(filled, batch_size=[self._count])
        return table if self._where == "device" else HostRows(table, torch.arange(self._count))

    def _empty(self, like: Tensor) -> Tensor:
        shape = (self._capacity, *like.shape[1:])
        if self._where == "device":
            return like.new_empty(shape)
        return torch.empty(shape, dtype=like.dtype, pin_memory=like.is_cuda)


class RolloutBuilder:
    """Gathers decisions on a grid of time (decision within the rollout) by column (environment and rollout epoch).

    Args:
        capacity: Decisions expected at most; more is not wrong, only slower.
        storage: Where their inputs are kept, see `FeatureStore`.
    """

    def __init__(self, capacity: int = 1, storage: Storage = "device") -> None:
        self._parts: list[dict[str, Tensor]] = []
        self._inputs = FeatureStore(capacity, storage)
        self._traces: list[TensorDict] = []
        self._bootstraps: list[tuple[int, Tensor, Tensor]] = []

    def add(
        self,
        time: int,
        columns: Tensor,
        inputs: TensorDict,
        action: Action,
        rewards: Tensor,
        num_executed: Tensor,
        ends: Tensor,
        version: int,
    ) -> None:
        """Add the decisions that B environments took at one time.

        Args:
            time: Decision index within the rollout.
            columns: (B,) int64.
            inputs: What the update evaluates the policy on.
            action: What the policy decided.
            rewards: (B, T), one per environment step, 0 where none was executed.
            num_executed: (B,).
            ends: (B,) bool, the episode ended in this chunk, however.
            version: Number of updates that the acting policy had seen.
        """
        self._inputs.add(inputs)
        self._traces.append(action.trace.cpu())
        self._parts.append(
            {
                "time": torch.full_like(columns, time),
                "column": columns,
                "log_probs": action.log_probs.cpu(),
                "values": action.values.cpu(),
                "rewards": rewards,
                "num_executed": num_executed,
                "ends": ends,
                "versions": torch.full_like(columns, version),
            }
        )

    def bootstrap(self, time: int, columns: Tensor, values: Tensor) -> None:
        """Give the value (B,) of the observation after decision `time`, where it was truncated or the rollout cut."""
        self._bootstraps.append((time, columns, values.cpu()))

    def build(self, *, reward_type: RewardType, gamma: float, lam: float, normalize_advantages: bool) -> Rollout:
        """Compute advantages and returns over the grid and flatten it."""
        flat = {name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}
        time, column = flat["time"], flat["column"]
        shape = (int(time.max()) + 1, int(column.max()) + 1)

        def grid(values: Tensor) -> Tensor:
            return values.new_zeros(shape).index_put((time, column), values)

        rewards, discounts = chunk_rewards(flat["rewards"], flat["num_executed"], reward_type=reward_type, gamma=gamma)
        valid = grid(torch.ones_like(time, dtype=torch.bool))
        values = grid(flat["values"])
        ends, next_values = self._successors(grid(flat["ends"]), values, valid)
        advantages, returns = gae(
            grid(rewards), values, next_values, ends, valid=valid, discounts=grid(discounts), lam=lam
        )
        if normalize_advantages:
            advantages = normalize(advantages, valid)
        return Rollout(
            inputs=self._inputs.rows(),
            trace=TensorDict.cat(self._traces),
            log_probs=flat["log_probs"],
            values=flat["values"],
            advantages=advantages[time, column],
            returns=returns[time, column],
            num_executed=flat["num_executed"],
            versions=flat["versions"],
        )

    def _successors(self, ends: Tensor, values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Where the trace is cut, and the value of the next observation of the same episode."""
        follows = torch.zeros_like(valid)
        follows[:-1] = valid[1:]
        ends = ends | (valid & ~follows)
        next_values = torch.zeros_like(values)
        next_values[:-1] = values[1:]
        next_values[ends] = 0.0
        for time, columns, bootstrap in self._bootstraps:
            next_values[time, columns] = bootstrap
        return ends, next_values
