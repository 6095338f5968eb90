"""What a rollout or a replay is gathered in: decisions, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.models.contract import Action
from regrasp.rollout.decisions import Decisions, HostRows

Storage = Literal["device", "host"]


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


class RolloutBuffer:
    """Gathers decisions on a grid of time (decision within the rollout) by column (environment and rollout epoch).

    Args:
        capacity: Decisions expected at most; more is not wrong, only slower.
        storage: Where their inputs are kept, see `FeatureStore`.
        holds_features: Whether the inputs are features.
    """

    def __init__(self, capacity: int = 1, storage: Storage = "device", *, holds_features: bool = True) -> None:
        self._parts: list[dict[str, Tensor]] = []
        self._inputs = FeatureStore(capacity, storage)
        self._holds_features = holds_features
        self._traces: list[dict[str, Tensor]] = []

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
        success: Tensor | None = None,
        decision: Tensor | None = None,
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
            success: (B,) bool, the task's success signal was seen in this chunk; None: it was not.
            decision: (B,) int64, the number of the decision within its episode; None: that within the rollout.
        """
        self._inputs.add(inputs)
        self._traces.append({str(name): value.cpu() for name, value in action.trace.items()})
        part = {
            "time": torch.full_like(columns, time),
            "column": columns,
            "log_probs": action.log_probs.cpu(),
            "rewards": rewards,
            "num_executed": num_executed,
            "ends": ends,
            "success": torch.zeros_like(ends) if success is None else success,
            "decision": torch.full_like(columns, time) if decision is None else decision,
            "is_final": torch.zeros_like(ends),
            "versions": torch.full_like(columns, version),
        }
        if action.values is not None:
            values = action.values.cpu()
            part |= {
                "values": values,
                "is_bootstrapped": torch.zeros_like(ends),
                "next_values": torch.zeros_like(values),
            }
        self._parts.append(part)

    def add_final(
        self, time: int, columns: Tensor, inputs: TensorDict, action: Action, decision: Tensor, version: int
    ) -> None:
        """Add what the policy would do on the last observations of B episodes that the step limit cut, see `add`."""
        nothing = torch.zeros_like(columns)
        rewards = torch.zeros(action.log_probs.shape[:2])
        is_end = torch.ones_like(columns, dtype=torch.bool)
        self.add(time, columns, inputs, action, rewards, nothing, is_end, version, decision=decision)
        self._parts[-1]["is_final"] = is_end

    def bootstrap(self, time: int, columns: Tensor, values: Tensor) -> None:
        """Give the value (B,) of the observation after decision `time`, where it was truncated or the rollout cut."""
        part = next(part for part in reversed(self._parts) if self._meets(part, time, columns))
        rows = torch.nonzero(torch.isin(part["column"], columns)).flatten()
        assert torch.equal(part["column"][rows], columns), "columns ascend, as they were added"
        part["is_bootstrapped"][rows] = True
        part["next_values"][rows] = values.cpu()

    def build(self) -> Decisions:
        """Everything added, in its order."""
        size = [sum(len(part["time"]) for part in self._parts)]
        record = TensorDict(_joined(self._parts), batch_size=size)
        record["trace"] = TensorDict(_joined(self._traces), batch_size=size)
        return Decisions(self._inputs.rows(), record, self._holds_features)

    @staticmethod
    def _meets(part: dict[str, Tensor], time: int, columns: Tensor) -> bool:
        return int(part["time"][0]) == time and bool(torch.isin(columns, part["column"]).all())


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
