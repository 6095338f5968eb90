"""Decisions that several ranks took together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    ranks: Ranks
    """Among which a minibatch is divided evenly."""

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
        """This rank's share of them, in as many parts as the largest share has; all ranks call this.

        Shares are nearly equal: a rank that took more of these decisions than its share sends what others need of them.
        """
        moves = plan(self.owner, self.ranks.count)
        largest = -(-len(self) // self.ranks.count)
        parts = list(self._share(moves).split(size))
        yield from parts
        for _ in range(-(-largest // size) - len(parts)):
            yield self._idle()

    def _share(self, moves: Sequence[Move]) -> Decisions:
        """This rank's share: its own decisions that stay, and those that come."""
        me = self.ranks.index
        sent = {move.target: self._stored(self.place[move.rows]) for move in moves if move.source == me}
        incoming = {move.source: move.rows for move in moves if move.target == me}
        leaves = torch.cat([move.rows for move in moves if move.source == me] or [torch.zeros(0, dtype=torch.long)])
        here = torch.nonzero(self.owner == me).flatten()
        here = here[~torch.isin(here, leaves)]
        if not moves:
            return self._with_inputs(self.record[send(here, self["log_probs"].device)], self.place[here])
        stays = self._stored(self.place[here])
        came = self.ranks.swap(sent, {rank: len(rows) for rank, rows in incoming.items()}, stays)
        stored = TensorDict.cat([stays, *came]) if came else stays
        record = self.record[send(torch.cat([here, *incoming.values()]), self["log_probs"].device)]
        return Decisions(stored["inputs"], record.copy().update({"trace": stored["trace"]}), self.are_encoded)

    def _stored(self, place: Tensor) -> TensorDict:
        """What this rank alone has of its decisions, on the device of the record."""
        device = self["log_probs"].device
        there = send(place, device)
        inputs = self.inputs[place].to(device) if isinstance(self.inputs, HostRows) else self.inputs[there]
        return TensorDict({"inputs": inputs, "trace": self.traces[there]}, batch_size=[len(place)])

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
    order = _order(record["column"] // num_envs, record["time"], record["is_final"].int(), record["column"])
    return SharedDecisions(
        inputs=decisions.inputs,
        record=record[order],
        are_encoded=decisions.are_encoded,
        traces=decisions.trace,
        place=place[order],
        owner=owner[order],
        ranks=ranks,
    )


@dataclass(frozen=True)
class Move:
    """Decisions that another rank computes than the one that took them."""

    source: int
    target: int
    rows: Tensor
    """(N,) int64, of the minibatch."""


def plan(owner: Tensor, num_ranks: int) -> list[Move]:
    """What to move so that each rank computes as many decisions as any other, or one fewer.

    Args:
        owner: (B,) int64, the rank that took each decision.
        num_ranks: Ranks.

    Returns:
        At most one move for each pair of ranks, and as few decisions as can be, alike on every rank.
    """
    counts = owner.bincount(minlength=num_ranks)
    shares = torch.full_like(counts, len(owner) // num_ranks)
    shares[torch.argsort(counts, descending=True, stable=True)[: len(owner) % num_ranks]] += 1
    surplus = (counts - shares).tolist()
    gives = [rank for rank, number in enumerate(surplus) for _ in range(number)]
    takes = [rank for rank, number in enumerate(surplus) for _ in range(-number)]
    moves: list[Move] = []
    for source in dict.fromkeys(gives):
        # The last ones that the rank took: those before them keep their order.
        rows = torch.nonzero(owner == source).flatten()[-surplus[source] :]
        targets = torch.tensor([target for giver, target in zip(gives, takes, strict=True) if giver == source])
        moves += [Move(source, target, rows[targets == target]) for target in dict.fromkeys(targets.tolist())]
    return moves


def _order(*keys: Tensor) -> Tensor:
    """What sorts rows by the first key, equal ones by the next, and so on."""
    order = torch.arange(len(keys[0]))
    for key in reversed(keys):
        order = order[torch.argsort(key[order], stable=True)]
    return order
