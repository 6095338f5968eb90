"""Log-probabilities that an update computes again before its first step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from regrasp.learner.log_probs import log_probs_anew
from regrasp.learner.precision import apply_precision
from regrasp.ranks import Ranks
from rl_toys import groot_policy, never, rollout_of, weights, worker

SIZE = 7
MICRO = 3
"""Which does not divide it."""
CPU = torch.device("cpu")


@pytest.mark.parametrize("keep_features", [True, False])
def test_they_are_those_that_a_policy_of_the_same_arithmetic_acted_with(keep_features: bool) -> None:
    policy = groot_policy()
    decisions = rollout_of(policy, SIZE, keep_features=keep_features)
    acted = decisions["log_probs"]
    asked = decisions.with_columns(log_probs=torch.full_like(acted, 9.0))
    found = log_probs_anew(policy, asked, MICRO, CPU, Ranks())
    torch.testing.assert_close(found, acted, rtol=1e-5, atol=1e-5)
    assert not found.requires_grad


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_ratio_is_one_whatever_acted(precision: str) -> None:
    policy, other = groot_policy(), groot_policy()
    for one in (policy, other):
        apply_precision(one, SimpleNamespace(precision=precision, trainable="head"), CPU)  # pyright: ignore[reportArgumentType]
    decisions = rollout_of(policy, SIZE)
    drift = 0.25 * torch.rand(decisions["log_probs"].shape, generator=torch.Generator().manual_seed(0))
    decisions = decisions.with_columns(log_probs=decisions["log_probs"] + drift)
    settings: dict[str, Any] = {"batch": MICRO, "precision": precision, "normalize_advantages": False}
    plain, anew = worker(other, **settings), worker(policy, **settings)
    anew.recomputes_log_probs = True
    assert plain.update(decisions, 0, never)["actor/first_ratio_error"] > 0.1
    metrics = anew.update(decisions, 0, never)
    assert metrics["actor/first_ratio_error"] < (1e-6 if precision == "fp32" else 1e-2)
    assert metrics["actor/acting_log_prob_error"] == pytest.approx(float(drift.max()), rel=0.1)


def test_without_it_nothing_is_told_of_it_and_the_weights_are_what_they_were() -> None:
    first, second = (worker(groot_policy(), batch=MICRO) for _ in range(2))
    decisions = rollout_of(groot_policy(), SIZE)
    assert "actor/acting_log_prob_error" not in first.update(decisions, 0, never)
    second.update(decisions, 0, never)
    torch.testing.assert_close(weights(first.policy), weights(second.policy), rtol=0, atol=0)
