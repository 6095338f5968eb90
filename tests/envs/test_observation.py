"""Taking and keeping rows of an observation."""

from __future__ import annotations

import pytest
import torch

from regrasp.envs.contract import Observation


def observation(first: int, count: int) -> Observation:
    numbers = torch.arange(first, first + count)
    images = numbers.to(torch.uint8)[:, None, None, None].expand(-1, 2, 3, 3)
    state = numbers.float()[:, None].expand(-1, 5).clone()
    return Observation(
        images={"main": images.clone(), "extra_0": images.clone()},
        state={"state": state, "arm": state[:, 1:3]},
        instruction=[f"do {i}" for i in numbers.tolist()],
    )


def numbers(value: Observation) -> list[int]:
    """The number that every part of each row carries."""
    rows = value.state["state"][:, 0].int().tolist()
    assert list(value.images) == ["main", "extra_0"]
    assert all(images[:, 1, 1, 1].tolist() == rows for images in value.images.values())
    assert all(images.dtype == torch.uint8 for images in value.images.values())
    assert value.state["arm"][:, 1].int().tolist() == rows
    assert value.instruction == [f"do {i}" for i in rows]
    return rows


@pytest.mark.parametrize("index", [[2, 0], [1, 1, 1], [], range(3), [1, 2], torch.tensor([2])])
def test_rows_are_those_asked_for_in_their_order(index):
    taken = observation(10, 3).rows(index)
    assert numbers(taken) == [10 + int(i) for i in index]
    assert len(taken) == len(index)


@pytest.mark.parametrize(("index", "shares"), [([0, 1, 2], True), ([1, 2], True), ([0, 2], False), ([2, 1, 0], False)])
def test_consecutive_rows_share_memory_and_others_are_copies(index: list[int], shares: bool):
    source = observation(0, 3)
    taken = source.rows(index)
    source.images["main"][:] = 99
    assert (taken.images["main"] == 99).all() == shares


def test_a_clone_has_memory_of_its_own():
    source = observation(0, 3)
    kept = source.clone()
    source.images["extra_0"][:] = 99
    source.state["state"][:] = 99
    assert numbers(kept) == [0, 1, 2]


def test_a_mask_is_refused_instead_of_being_read_as_row_numbers():
    with pytest.raises(AssertionError, match="mask"):
        observation(0, 2).rows(torch.tensor([True, False]))
