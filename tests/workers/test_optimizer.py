"""Optimizer steps that can be called off."""

from __future__ import annotations

import copy

import pytest
import torch

from regrasp.config.load import load_config
from regrasp.workers.optimizer import adamw, reader, step_unless

CPU = torch.device("cpu")


@pytest.mark.parametrize("forbidden", [False, True])
def test_a_forbidden_step_changes_neither_weights_nor_moments(forbidden: bool) -> None:
    weight, value = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = adamw([weight], [value], load_config("pick_cube_ppo_groot").config.actor.optim, CPU)
    for parameter in (weight, value):
        parameter.grad = torch.tensor([1.0, -2.0, 0.5])
    step_unless(optimizer, torch.tensor(False))
    before = [copy.deepcopy(x) for x in (weight.data, value.data, optimizer.state_dict()["state"])]
    step_unless(optimizer, torch.tensor(forbidden))
    after = [weight.data, value.data, optimizer.state_dict()["state"]]
    assert torch.equal(before[0], after[0]) == forbidden
    assert torch.equal(before[1], after[1]) == forbidden
    assert after[2][0]["step"] == (1 if forbidden else 2)
    assert torch.equal(before[2][0]["exp_avg_sq"], after[2][0]["exp_avg_sq"]) == forbidden


def test_numbers_are_those_of_the_tensor() -> None:
    assert reader(torch.tensor([1.0, 2.5]))() == [1.0, 2.5]
