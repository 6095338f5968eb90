"""How decisions reach the ranks that train on them, where others have taken them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.ranks import Ranks
from regrasp.rollout.decisions import Decisions, HostRows
from regrasp.rollout.shared import SharedDecisions


@dataclass(frozen=True)
class Part:
    """What one rollout rank gives to one rank of the actor."""

    record: TensorDict
    """Of all decisions of all ranks, without traces."""
    owner: Tensor
    """(B,) int64, the rank of the actor that gets each decision."""
    rows: Tensor
    """Which decisions these are, in their order."""
    inputs: TensorDict
    traces: TensorDict
    are_encoded: bool


def receivers(rollout: int, num_rollouts: int, num_actors: int) -> range:
    """The ranks of the actor that a rollout rank's decisions go to; one number is a multiple of the other."""
    if num_actors >= num_rollouts:
        each = num_actors // num_rollouts
        return range(rollout * each, (rollout + 1) * each)
    actor = rollout // (num_rollouts // num_actors)
    return range(actor, actor + 1)


def split(decisions: Decisions, rollout: int, num_rollouts: int, num_actors: int) -> list[Part]:
    """The parts of a rollout rank's decisions, one for each of its `receivers`.

    A rollout rank's decisions are dealt out in their order, so that all know the owner of each without asking.
    """
    if isinstance(decisions, SharedDecisions):
        owner, place, traces = decisions.owner, decisions.place, decisions.traces
    else:
        owner = torch.zeros(len(decisions), dtype=torch.long)
        place, traces = torch.arange(len(decisions)), decisions.trace
    record = TensorDict(decisions.columns, batch_size=[len(decisions)])
    new_owner = torch.empty_like(owner)
    for rank in range(num_rollouts):
        of_rank = torch.nonzero(owner == rank).flatten()
        targets = receivers(rank, num_rollouts, num_actors)
        for target, chosen in zip(targets, torch.tensor_split(of_rank, len(targets)), strict=True):
            new_owner[chosen] = target
    parts = []
    for target in receivers(rollout, num_rollouts, num_actors):
        rows = torch.nonzero((new_owner == target) & (owner == rollout)).flatten()
        there = place[rows]
        inputs = decisions.inputs[there].to(torch.device("cpu"))
        parts.append(Part(record, new_owner, rows, inputs, traces[there], decisions.are_encoded))
    return parts


def join(parts: Sequence[Part], ranks: Ranks, device: torch.device | None) -> Decisions:
    """The decisions of one rank of the actor, from all its rollout ranks in their order.

    Args:
        parts: Those that the rank was given.
        ranks: Those of the actor.
        device: Where inputs are kept; None: in host memory, from where a GPU reads them in parts.
    """
    first = parts[0]
    inputs = TensorDict.cat([part.inputs for part in parts])
    traces = TensorDict.cat([part.traces for part in parts])
    place = torch.full((len(first.record),), -1)
    rows = torch.cat([part.rows for part in parts])
    place[rows] = torch.arange(len(rows))
    if ranks.count == 1:
        record = first.record.copy().update({"trace": traces[place]})
        return Decisions(_kept(inputs, place, device), record, first.are_encoded)
    return SharedDecisions(
        inputs=_kept(inputs, torch.arange(len(inputs)), device),
        record=first.record,
        are_encoded=first.are_encoded,
        traces=traces,
        place=place,
        owner=first.owner,
        ranks=ranks,
    )


def _kept(inputs: TensorDict, rows: Tensor, device: torch.device | None) -> TensorDict | HostRows:
    if device is not None:
        return inputs[rows].to(device)
    return HostRows(inputs.pin_memory() if torch.cuda.is_available() else inputs, rows)
