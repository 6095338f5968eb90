"""States outside the demonstrations are counted, once for each decision, and reported once."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from regrasp.envs.contract import STATE, Observation
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.models.normalization import Statistics
from regrasp.rollout.inference import Inference
from regrasp.rollout.state_watch import StateWatch
from rl_toys import groot_policy

DEMONSTRATED = torch.tensor([[0.0, -10.0, 5.0], [1.0, 10.0, 5.0]])
"""Ranges: 1, 20, a constant."""


def policy(*, demonstrated: bool = True) -> MlpPolicy:
    statistics = Statistics.of(DEMONSTRATED) if demonstrated else None
    return MlpPolicy(state_dim=3, action_dim=2, hidden=(4,), state=statistics)


def seen(*states: tuple[float, float, float]) -> Observation:
    return Observation(images={}, state={STATE: torch.tensor(states)}, instruction=["go"] * len(states))


def counted(observation: Observation, caplog: pytest.LogCaptureFixture, **kind: bool) -> list[str]:
    watch = StateWatch()
    watch.see(policy(**kind), observation)
    with caplog.at_level(logging.WARNING):
        watch.report()
        watch.report()
    return caplog.messages


@pytest.mark.parametrize(
    "state",
    [(0.5, 0, 5), (1.9, 0, 5), (-0.9, 0, 5), (0, 29, 5), (0, -29, 5), (0, 0, 5.04)],
    ids=["inside", "above", "below", "wide_above", "wide_below", "constant"],
)
def test_up_to_its_width_beyond_a_range_nothing_is_said(
    state: tuple[float, float, float], caplog: pytest.LogCaptureFixture
) -> None:
    assert counted(seen(state), caplog) == []


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ((2.1, 0, 5), "state[0] was 2.1, in the demonstrations 0 to 1"),
        ((-1.1, 0, 5), "state[0] was -1.1, in the demonstrations 0 to 1"),
        ((0, 31, 5), "state[1] was 31, in the demonstrations -10 to 10"),
        ((0, 0, 5.1), "state[2] was 5.1, in the demonstrations 5 to 5"),
    ],
)
def test_what_is_further_out_is_reported_once_with_its_range(
    state: tuple[float, float, float], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (line,) = counted(seen((0.5, 0, 5), state, (0, 99, 99)), caplog)
    assert line.startswith("2 of 3 decisions")
    assert text in line


def test_a_policy_without_demonstrations_has_nothing_to_leave(caplog: pytest.LogCaptureFixture) -> None:
    assert counted(seen((99, 99, 99)), caplog, demonstrated=False) == []


@pytest.mark.parametrize("in_blocks", [True, False])
def test_decisions_are_counted_and_not_what_fills_a_block_up(in_blocks: bool, caplog: pytest.LogCaptureFixture) -> None:
    watch = StateWatch()
    inference = Inference(policy(), 0, "eval", device=torch.device("cpu"), keep_features=True, watch=watch)
    observed, keys = seen((9, 0, 5), (0, 0, 5), (0, 0, 5)), [(row, 0, 0) for row in range(3)]
    for _ in range(2):
        inference.act_in_blocks(observed, keys, 32) if in_blocks else inference.decide(observed, keys)
    watch.report()
    assert caplog.messages[0].startswith("2 of 6 decisions")


def test_parts_of_a_state_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model, watch = policy(), StateWatch()
    known = model.state_range
    assert known is not None
    model.state_range = replace(known, parts=(("arm", 2), ("hand", 1)))
    named = {"hand": torch.tensor([[9.0]]), "arm": torch.tensor([[0.5, 0.0]]), STATE: torch.zeros(1, 3)}
    watch.see(model, Observation(images={}, state=named, instruction=["go"]))
    watch.report()
    assert "hand[0] was 9, in the demonstrations 5 to 5" in caplog.text
    assert groot_policy().state_range is None, "nothing was demonstrated to it"
