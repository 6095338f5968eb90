"""Storage of a rollout's features against plain concatenation."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from regrasp.rollout.buffers import FeatureStore, HostRows, Storage

CPU = torch.device("cpu")


def block(rows: int, seed: int) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(rows, 5, 2, generator=generator).to(torch.bfloat16)
    return TensorDict({"context": context, "state": torch.randn(rows, 3, generator=generator)}, batch_size=[rows])


@pytest.mark.parametrize("where", ["device", "host"])
@pytest.mark.parametrize("capacity", [1, 4, 9, 20])
def test_a_store_holds_what_was_added_in_order(where: Storage, capacity: int) -> None:
    blocks = [block(rows, seed) for seed, rows in enumerate((3, 1, 5))]
    store = FeatureStore(capacity, where)
    for part in blocks:
        store.add(part)
    for part in blocks:  # what was added are copies
        part["state"].zero_()
    whole, stored = TensorDict.cat([block(rows, seed) for seed, rows in enumerate((3, 1, 5))]), store.rows()
    assert len(stored) == 9
    assert set(stored.keys()) == {"context", "state"}
    assert (whole == stored.to(CPU)).all()
    assert stored.to(CPU)["context"].dtype == torch.bfloat16


def test_rows_of_the_host_are_those_of_the_table() -> None:
    table = block(10, 0)
    rows = HostRows(table, torch.arange(10))
    index = torch.tensor([7, 1, 1, 9, 0])
    chosen = rows[index]
    assert len(chosen) == 5
    assert (chosen.to(CPU) == table[index]).all()
    assert (chosen[1:4].to(CPU) == table[index[1:4]]).all()
    assert (chosen[torch.tensor([4, 0])].to(CPU) == table[index[[4, 0]]]).all()
    assert torch.equal(chosen.to_dict()["state"], table["state"][index])
