"""How decisions of a minibatch are divided among ranks."""

from __future__ import annotations

import pytest
import torch

from regrasp.rollout.shared import plan


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 4, 15, 64])
def test_shares_are_equal_and_no_more_is_moved_than_has_to_be(num_ranks: int, length: int) -> None:
    generator = torch.Generator().manual_seed(num_ranks)
    for _ in range(20):
        # Ranks of unequal speed: the higher its number, the more a rank has taken.
        owner = (num_ranks * torch.rand(length, generator=generator).sqrt()).long()
        taken = owner.bincount(minlength=num_ranks)
        computed, pairs = owner.clone(), set()
        for move in plan(owner, num_ranks):
            assert torch.equal(owner[move.rows], torch.full_like(move.rows, move.source))
            assert len(move.rows)
            computed[move.rows] = move.target
            pairs.add((move.source, move.target))
        shares = computed.bincount(minlength=num_ranks)
        assert shares.max() - shares.min() <= 1
        assert len(pairs) == len(plan(owner, num_ranks))
        fewest = sum(max(0, int(count) - -(-length // num_ranks)) for count in taken)
        assert fewest <= int((computed != owner).sum()) <= fewest + length % num_ranks
        assert int((computed != owner).sum()) == int((taken - shares).clamp(min=0).sum())


def test_what_is_divided_evenly_stays_where_it_is() -> None:
    assert plan(torch.tensor([1, 0, 0, 1, 1]), 2) == []
