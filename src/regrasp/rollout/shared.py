"""Decisions that several ranks took together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.device import send
from regrasp.ranks import Ranks
from regrasp.rollout.decisions import Decisions, HostRows


@dataclass(frozen=True)
class SharedDecisions(Decisions):
    """B decisions of all ranks: every rank has the whole record, and of its own decisions the inputs and traces.

    What an algorithm makes of the record, advantages and minibatches, is therefore the same on every rank, and the same
    as in one process; the bulk of the data stays where it was gathered.
    """

    traces: TensorDict
    """This rank's, as many as `inputs`; the record has none."""
    place: Tensor
    """(B,) int64, the row of each decision in `inputs` and `traces`; -1 for one of another rank."""
    owner: Tensor
    """(B,) int64, the rank of each decision."""

    @property
    def trace(self) -> TensorDict:
        """Only of `micro_batches`."""
        raise AttributeError("traces are with the ranks that took the decisions")

    def rows(self, index: Tensor) -> SharedDecisions:
        """See `Decisions.rows`."""
        record = self.record[send(index, self["log_probs"].device)]
        return replace(self, record=record, place=self.place[index], owner=self.owner[index])

    def record_to(self, device: torch.device) -> SharedDecisions:
        """See `Decisions.record_to`."""
        return replace(self, record=self.record.to(device), traces=self.traces.to(device))

    def to(self, device: torch.device) -> Decisions:
        """This rank's own on `device`."""
        return self._own().to(device)

    def micro_batches(self, size: int) -> Iterator[Decisions]:
        """This rank's decisions, in as many parts as the rank with the most of them has."""
        parts = list(self._own().split(size)) if (self.place >= 0).any() else []
        yield from parts
        for _ in range(-(-int(self.owner.bincount().max()) // size) - len(parts)):
            yield self._idle()

    def _own(self) -> Decisions:
        here = torch.nonzero(self.place >= 0).flatten()
        return self._with_inputs(self.record[send(here, self["log_probs"].device)], self.place[here])

    def _idle(self) -> Decisions:
        """A decision of this rank under the numbers of another one that executed nothing."""
        record = self.record[:1].copy()
        record["num_executed"] = torch.zeros_like(record["num_executed"])
        return replace(self._with_inputs(record, torch.zeros(1, dtype=torch.long)), is_idle=True)

    def _with_inputs(self, record: TensorDict, place: Tensor) -> Decisions:
        there = send(place, self["log_probs"].device)
        inputs = self.inputs[place if isinstance(self.inputs, HostRows) else there]
        return Decisions(inputs, record.copy().update({"trace": self.traces[there]}), self.are_encoded)


def share(decisions: Decisions, ranks: Ranks, num_envs: int) -> Decisions:
    """The decisions of all ranks, in the order in which one process would have gathered them.

    Args:
        decisions: This rank's.
        ranks: All of them call this.
        num_envs: Of all ranks: so many columns are one rollout epoch.
    """
    if ranks.count == 1:
        return decisions
    parts = ranks.gather(TensorDict(decisions.columns, batch_size=[len(decisions)]))
    record = TensorDict.cat(parts)
    owner = torch.cat([torch.full((len(part),), rank) for rank, part in enumerate(parts)])
    place = torch.cat(
        [
            torch.arange(len(part)) if rank == ranks.index else torch.full((len(part),), -1)
            for rank, part in enumerate(parts)
        ]
    )
    order = _order(record["column"] // num_envs, record["time"], record["column"])
    return SharedDecisions(
        inputs=decisions.inputs,
        record=record[order],
        are_encoded=decisions.are_encoded,
        traces=decisions.trace,
        place=place[order],
        owner=owner[order],
    )


def _order(*keys: Tensor) -> Tensor:
    """What sorts rows by the first key, equal ones by the next, and so on."""
    order = torch.arange(len(keys[0]))
    for key in reversed(keys):
        order = order[torch.argsort(key[order], stable=True)]
    return order
