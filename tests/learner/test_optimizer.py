"""Optimizer steps that can be called off."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch

from regrasp.experiment.load import load_config
from regrasp.learner.optimizer import Steps, adamw, reader, step_unless
from regrasp.ranks import Ranks

CPU = torch.device("cpu")


@pytest.mark.parametrize("forbidden", [False, True])
def test_a_forbidden_step_changes_neither_weights_nor_moments(forbidden: bool) -> None:
    weight, value = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = adamw(
        {"actor": [weight], "critic": [value]}, load_config("pick_cube_ppo_groot").config.actor.optim, CPU
    )
    for parameter in (weight, value):
        parameter.grad = torch.tensor([1.0, -2.0, 0.5])
    step_unless(optimizer, torch.tensor(False))
    weights, state = [weight.detach().clone(), value.detach().clone()], copy.deepcopy(optimizer.state)
    step_unless(optimizer, torch.tensor(forbidden))
    for parameter, before in zip((weight, value), weights, strict=True):
        assert torch.equal(parameter, before) == forbidden
    for before, after in zip(state.values(), optimizer.state.values(), strict=True):
        assert torch.equal(before["exp_avg_sq"], after["exp_avg_sq"]) == forbidden
        assert after["step"] == (1 if forbidden else 2)


def test_numbers_are_those_of_the_tensor() -> None:
    assert reader(torch.tensor([1.0, 2.5]))() == [1.0, 2.5]


class Twins(Ranks):
    """Two ranks with the same gradients."""

    count = 2

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        for tensor in tensors:
            tensor.mul_(2)


@pytest.mark.parametrize("gathers", [False, True])
def test_gradients_are_summed_over_the_ranks_in_the_format_that_they_are_in(gathers: bool) -> None:
    weight, own = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    half = torch.nn.Parameter(weight.detach().bfloat16())
    optimizer = adamw({"actor": [weight], "critic": [own]}, load_config("pick_cube_ppo_groot").config.actor.optim, CPU)
    steps = Steps(optimizer, {weight: half}, 1.0)
    half.grad, own.grad = torch.ones(3, dtype=torch.bfloat16), torch.ones(3)
    if gathers:
        steps.gather()
    steps.add_up(Twins())
    summed = weight.grad if gathers else half.grad
    assert summed is not None
    assert (half.grad is None) == gathers
    assert summed.tolist() == own.grad.tolist() == [2.0, 2.0, 2.0]
    assert summed.dtype == (torch.float32 if gathers else torch.bfloat16)
