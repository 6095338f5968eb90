"""Taking and replacing rows of an observation."""

from __future__ import annotations

import pytest
import torch

from regrasp.envs.contract import Observation


def observation(first: int, count: int, extra: bool = True) -> Observation:
    numbers = torch.arange(first, first + count)
    return Observation(
        main_images=numbers.to(torch.uint8)[:, None, None, None].expand(-1, 2, 3, 3).clone(),
        states=numbers.float()[:, None].expand(-1, 5).clone(),
        task_descriptions=[f"do {i}" for i in numbers.tolist()],
        extra_view_images=numbers.to(torch.uint8)[:, None, None, None, None].expand(-1, 2, 2, 3, 3) if extra else None,
    )


def numbers(value: Observation) -> list[int]:
    """The number that every part of each row carries."""
    rows = value.states[:, 0].int().tolist()
    assert value.main_images[:, 0, 0, 0].tolist() == rows
    assert value.task_descriptions == [f"do {i}" for i in rows]
    if value.extra_view_images is not None:
        assert value.extra_view_images[:, 1, 1, 1, 1].tolist() == rows
    return rows


@pytest.mark.parametrize("extra", [True, False])
@pytest.mark.parametrize("index", [[2, 0], [1, 1, 1], [], range(3), torch.tensor([2])])
def test_rows_are_those_asked_for_in_their_order(index, extra):
    taken = observation(10, 3, extra).rows(index)
    assert numbers(taken) == [10 + int(i) for i in index]
    assert len(taken) == len(index)
    assert taken.main_images.dtype == torch.uint8
    assert (taken.extra_view_images is not None) == extra


def test_rows_are_copies():
    source = observation(0, 3)
    taken = source.rows([0, 1, 2])
    taken.main_images[:] = 99
    taken.states[:] = 99
    assert numbers(source) == [0, 1, 2]


@pytest.mark.parametrize("extra", [True, False])
def test_updated_replaces_the_given_rows_only_and_leaves_the_original(extra):
    source = observation(0, 4, extra)
    merged = source.updated([3, 1], observation(50, 2, extra))
    assert numbers(merged) == [0, 51, 2, 50]
    assert numbers(source) == [0, 1, 2, 3]


def test_updating_no_row_is_a_plain_copy():
    assert numbers(observation(0, 2).updated([], observation(0, 0))) == [0, 1]


def test_a_mask_is_refused_instead_of_being_read_as_row_numbers():
    with pytest.raises(AssertionError, match="mask"):
        observation(0, 2).rows(torch.tensor([True, False]))


def test_updating_with_another_number_of_rows_is_refused():
    with pytest.raises(AssertionError):
        observation(0, 3).updated([0, 1], observation(9, 1))
