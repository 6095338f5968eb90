"""`loss_weighting: trajectory` against the form that RLinf has: padded trajectories, each divided by its length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.algorithms.grpo import GrpoConfig
from regrasp.algorithms.policy_gradient import PolicyGradient, PolicyGradientConfig
from regrasp.algorithms.ppo import PpoConfig
from regrasp.algorithms.reinforce import ReinforceConfig
from regrasp.models.contract import Evaluation
from regrasp.rollout.decisions import Decisions

LENGTHS = (1, 4, 2, 3)
"""Decisions of each trajectory."""
LONGEST, CHUNK, WIDTH = 5, 2, 3
"""Decisions that there is room for, and the shape of an action chunk."""


def rollout(executed_last: int = CHUNK) -> Decisions:
    """Trajectories of different lengths, of which each may end within its last chunk."""
    generator = torch.Generator().manual_seed(0)
    count = sum(LENGTHS)
    ends = torch.cat([torch.arange(length) == length - 1 for length in LENGTHS])
    record = {
        "column": torch.cat([torch.full((length,), column) for column, length in enumerate(LENGTHS)]),
        "time": torch.cat([torch.arange(length) for length in LENGTHS]),
        "num_executed": torch.where(ends, executed_last, CHUNK),
        "rewards": torch.randn(count, CHUNK, generator=generator),
        "log_probs": torch.randn(count, CHUNK, WIDTH, generator=generator),
        "values": torch.randn(count, generator=generator),
        "ends": ends,
        "is_bootstrapped": torch.zeros(count, dtype=torch.bool),
        "next_values": torch.zeros(count),
        "trace": torch.zeros(count),
    }
    inputs = TensorDict({"row": torch.arange(count)}, [count])
    return Decisions(inputs, TensorDict(record, [count]), are_encoded=True)


def evaluation(decisions: Decisions) -> Evaluation:
    generator = torch.Generator().manual_seed(1)
    change = 0.3 * torch.randn(decisions["log_probs"].shape, generator=generator)
    values = torch.randn(len(decisions), generator=generator)
    return Evaluation(decisions["log_probs"] + change, values, None)


def objective(algorithm: PolicyGradient, decisions: Decisions) -> float:
    shares = algorithm.shares(decisions, decisions)
    return float(algorithm.objective(evaluation(decisions), decisions.columns, shares, None)[0])


def padded_mean(losses: Tensor, column: Tensor, time: Tensor) -> Tensor:
    """(values / (valid steps / possible steps) * mask).mean() over (decisions, trajectories)."""
    table, mask = torch.zeros(LONGEST, len(LENGTHS)), torch.zeros(LONGEST, len(LENGTHS))
    table[time, column], mask[time, column] = losses, 1.0
    ratio = mask.sum(0, keepdim=True) * CHUNK / (LONGEST * CHUNK)
    return (table / ratio * mask).mean()


def test_ppo_weighs_every_trajectory_as_rlinf_does() -> None:
    settings: dict[str, Any] = {"loss_weighting": "trajectory", "clip_ratio_c": 3.0, "huber_delta": 0.5}
    algorithm = PpoConfig(**settings).build()
    decisions = algorithm.prepare(rollout())
    looked_at = evaluation(decisions)
    assert looked_at.values is not None

    ratio = (looked_at.log_probs - decisions["log_probs"]).sum((1, 2)).exp()
    advantages = decisions["advantages"]
    surrogate = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))
    surrogate = torch.minimum(surrogate, 3.0 * advantages.abs())
    moved = decisions["values"] + (looked_at.values - decisions["values"]).clamp(-0.2, 0.2)
    errors = [(values - decisions["returns"]).abs() for values in (looked_at.values, moved)]
    huber = [torch.where(error < 0.5, error.square() / 2, 0.5 * (error - 0.25)) for error in errors]
    losses = surrogate + torch.maximum(*huber)
    expected = padded_mean(losses, decisions["column"], decisions["time"])
    assert objective(algorithm, decisions) == pytest.approx(float(expected), rel=1e-5)

    plain = PpoConfig(**{**settings, "loss_weighting": "decision"}).build()
    assert objective(plain, plain.prepare(rollout())) == pytest.approx(float(losses.mean()), rel=1e-5)


@pytest.mark.parametrize(
    "config",
    [GrpoConfig(group_size=2, loss_weighting="trajectory"), ReinforceConfig(loss_weighting="trajectory")],
    ids=["grpo", "reinpp"],
)
@pytest.mark.parametrize("executed_last", [CHUNK, 1])
def test_every_trajectory_weighs_the_same(config: PolicyGradientConfig, executed_last: int) -> None:
    algorithm = config.build()
    assert isinstance(algorithm, PolicyGradient)
    decisions = algorithm.prepare(rollout(executed_last))
    weights, steps = decisions["weights"], decisions["num_executed"]
    whole = torch.zeros(len(LENGTHS)).index_add(0, decisions["column"], weights * steps)
    torch.testing.assert_close(whole, torch.full((len(LENGTHS),), float(whole.mean())))
    assert float((weights * steps).sum() / steps.sum()) == pytest.approx(1.0)


def test_a_groups_decisions_that_are_dropped_weigh_nothing() -> None:
    decisions = rollout()
    decisions["rewards"][decisions["column"] < 2] = 0.0
    kept = GrpoConfig(group_size=2, loss_weighting="trajectory").build().prepare(decisions)
    assert sorted(set(kept["column"].tolist())) == [2, 3]
    steps = kept["num_executed"]
    assert float((kept["weights"] * steps).sum() / steps.sum()) == pytest.approx(1.0)


def test_without_it_there_are_no_weights() -> None:
    assert "weights" not in PpoConfig().build().prepare(rollout()).columns
