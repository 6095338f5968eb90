"""Decisions that others have taken arrive at the ranks that train on them, each once."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from regrasp.engine.handover import join, receivers, split
from regrasp.engine.ray.wire import PackedPart
from regrasp.ranks import Ranks
from regrasp.rollout.decisions import Decisions, HostRows
from regrasp.rollout.shared import SharedDecisions

COUNT = 13


class Rank(Ranks):
    """One of several, alone."""

    def __init__(self, index: int, count: int) -> None:
        self.index = index
        self.count = count


def record() -> TensorDict:
    number = torch.arange(COUNT)
    return TensorDict({"number": number, "log_probs": number[:, None] / 7, "ends": number % 3 == 0}, batch_size=[COUNT])


def taken_by(rank: int, num_ranks: int) -> Decisions:
    """What a rollout rank has, whose inputs and traces tell the number of each decision."""
    owner = torch.arange(COUNT) * 5 % COUNT % num_ranks
    own = torch.nonzero(owner == rank).flatten()
    place = torch.full((COUNT,), -1)
    place[own] = torch.arange(len(own))
    inputs = TensorDict({"seen": own.to(torch.bfloat16)}, batch_size=[len(own)])
    traces = TensorDict({"chain": own.double()}, batch_size=[len(own)])
    if num_ranks == 1:
        return Decisions(inputs, record().update({"trace": traces}), are_encoded=True)
    return SharedDecisions(inputs, record(), True, traces=traces, place=place, owner=owner, ranks=Rank(rank, num_ranks))


@pytest.mark.parametrize("device", [torch.device("cpu"), None], ids=["on the device", "on the host"])
@pytest.mark.parametrize(("num_rollouts", "num_actors"), [(1, 1), (1, 3), (2, 2), (4, 2), (2, 4), (3, 1)])
def test_every_decision_arrives_once(num_rollouts: int, num_actors: int, device: torch.device | None) -> None:
    given: dict[int, list[PackedPart]] = {actor: [] for actor in range(num_actors)}
    for rollout in range(num_rollouts):
        parts = split(taken_by(rollout, num_rollouts), rollout, num_rollouts, num_actors)
        for actor, part in zip(receivers(rollout, num_rollouts, num_actors), parts, strict=True):
            given[actor].append(PackedPart.of(part))
    arrived = []
    for actor, parts in given.items():
        decisions = join([part.unpack() for part in parts], Rank(actor, num_actors), device)
        assert isinstance(decisions.inputs, HostRows) == (device is None)
        assert decisions.are_encoded
        mine = torch.arange(COUNT)
        if isinstance(decisions, SharedDecisions):
            mine = torch.nonzero(decisions.owner == actor).flatten()
            assert torch.equal(torch.nonzero(decisions.place >= 0).flatten(), mine)
        assert all(torch.equal(decisions[name], record()[name]) for name in ("number", "log_probs", "ends"))
        own = decisions.to(torch.device("cpu"))
        assert own["number"].tolist() == own.table["seen"].tolist() == own.trace["chain"].tolist() == mine.tolist()
        assert own.table["seen"].dtype == torch.bfloat16
        arrived += mine.tolist()
    assert sorted(arrived) == list(range(COUNT))
