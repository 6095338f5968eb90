"""A residual on a GR00T's chunks: it begins as nothing, explores as it is told, and stays with the model."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regrasp.errors import UserError
from regrasp.models.config import ExportOptions, QHeadConfig
from regrasp.models.contract import Action
from regrasp.models.groot.export import export
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.residual import BASE
from regrasp.models.groot.residual_config import ResidualConfig
from regrasp.models.groot.steering import ACTIONS, DECISION
from regrasp.models.registry import load_policy
from regrasp.seeding import KeyedNoise
from rl_toys import ACTION_DIM, CHUNK, groot_policy, observation

BATCH = 6


def with_residual(**changes: Any) -> GrootPolicy:
    """A tiny GR00T with critics and a residual whose offsets are not zero."""
    config = dataclasses.replace(ResidualConfig(hidden=(8,)), **changes)
    heads = QHeadConfig(hidden=(8,), num_q_heads=3, num_decisions=4)
    return groot_policy(residual=config, add_q_head=True, add_value_head=False, q_head=heads)


def acted(policy: GrootPolicy, number: int = 0, deterministic: bool = False, update: int = 9) -> Action:
    """What the policy does at the decision `number` of six episodes."""
    policy.begin_update(update)
    features = policy.encode(policy.prepare(observation(BATCH)))
    features[DECISION] = torch.full((BATCH,), number)
    noise = KeyedNoise(5, "train", [(row, 0, number) for row in range(BATCH)])
    with torch.no_grad():
        return policy.act(features, noise, deterministic)


def offset(action: Action) -> Tensor:
    """(B, T, A), what was added."""
    return (action.trace[ACTIONS] - action.trace[BASE]).unflatten(1, (CHUNK, ACTION_DIM))


def test_a_fresh_residual_adds_nothing() -> None:
    policy = with_residual()
    assert policy.residual is not None
    policy.residual.reset_parameters(torch.Generator().manual_seed(1))
    assert offset(acted(policy, deterministic=True)).abs().max() == 0


def test_offsets_are_slow_cosines_within_their_scale() -> None:
    policy = with_residual(scale=(0.5, 0.25, 1.0))
    residual = policy.residual
    assert residual is not None
    base = torch.zeros(1, CHUNK * ACTION_DIM)
    constant = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]])
    assert (
        residual.add(base, constant).view(CHUNK, ACTION_DIM).allclose(torch.tensor([0.5, 0.25, 1.0]).expand(CHUNK, -1))
    )
    slope = torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]])
    expected = torch.tensor([0.25 * math.cos(math.pi * (t + 0.5) / CHUNK) for t in range(CHUNK)])
    assert residual.add(base, slope).view(CHUNK, ACTION_DIM)[:, 0].allclose(expected, atol=1e-6)


def test_a_sum_stays_within_the_limits_and_an_action_beyond_them_stays_what_it_is() -> None:
    residual = with_residual(scale=(1.0,)).residual
    assert residual is not None
    base = torch.full((1, CHUNK * ACTION_DIM), 0.75)
    up = torch.cat([torch.ones(1, ACTION_DIM), torch.zeros(1, ACTION_DIM)], 1)
    assert residual.add(base, up).allclose(torch.ones_like(base))
    beyond = base + 0.5
    assert residual.add(beyond, up).equal(beyond)


def test_exploration_is_the_base_alone_then_random_then_the_actors_own() -> None:
    policy = with_residual(base_updates=1, random_updates=1, random_range=0.5, scale=(0.2,))
    assert offset(acted(policy, update=0)).abs().max() == 0
    drawn = offset(acted(policy, update=1))
    assert 0 < drawn.abs().max() <= 0.5 * 0.2 * 1.5 + 1e-6
    assert not acted(policy, update=2).trace[ACTIONS].equal(acted(policy, deterministic=True).trace[ACTIONS])
    assert acted(policy, update=2).trace[ACTIONS].equal(acted(policy, update=7).trace[ACTIONS])


def test_a_drift_stays_over_an_episode_and_fresh_noise_does_not() -> None:
    def offsets(number: int, **changes: Any) -> Tensor:
        residual = with_residual(**changes).residual
        assert residual is not None
        residual.update = 9
        torch.nn.init.zeros_(residual.body[-1].weight)  # pyright: ignore[reportArgumentType]
        features = groot_policy().encode(groot_policy().prepare(observation(BATCH)))
        noise = KeyedNoise(5, "train", [(row, 0, number) for row in range(BATCH)])
        with torch.no_grad():
            return residual.explore(features, torch.zeros(BATCH, CHUNK * ACTION_DIM), noise, None)

    drifting, fresh = {"std": 1e-9, "drift_std": 0.3}, {"std": 0.3, "drift_std": 0.0}
    assert offsets(0, **drifting).allclose(offsets(1, **drifting), atol=1e-6)
    assert offsets(0, **drifting).std(0).min() > 0.01
    assert not offsets(0, **fresh).allclose(offsets(1, **fresh), atol=1e-2)


def test_the_critics_least_value_chooses_among_candidates() -> None:
    policy = with_residual(candidates=5)
    assert policy.q_head is not None
    features = policy.encode(policy.prepare(observation(BATCH)))
    features[DECISION] = torch.zeros(BATCH, dtype=torch.long)
    chosen, plain = acted(policy), acted(policy, deterministic=True)
    with torch.no_grad():
        judged = policy.q_head.read(features, plain.trace.select(BASE), features[DECISION])
        value = lambda done: policy.q_head.judge(judged, done).amin(0)  # noqa: E731  # pyright: ignore
        assert (value(chosen.trace[ACTIONS]) >= value(plain.trace[ACTIONS])).all()
        assert (value(chosen.trace[ACTIONS]) >= value(plain.trace[BASE])).all()
        assert (value(chosen.trace[ACTIONS]) > value(plain.trace[ACTIONS])).any()


def test_a_proposal_is_what_acting_does_and_only_the_residual_has_its_gradient() -> None:
    policy = with_residual()
    action = acted(policy, deterministic=True)
    with torch.no_grad():
        features = policy.encode(policy.prepare(observation(BATCH)))
    proposal = policy.propose(features, action.trace, torch.zeros(BATCH, policy.proposal_width))
    assert proposal.actions.allclose(action.trace[ACTIONS], atol=1e-6)
    proposal.actions.sum().backward()
    moved = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert moved == {name for name, _ in policy.trainable("proposal")}


def test_it_is_saved_with_the_model_and_always_acts(tmp_path: Path) -> None:
    policy = with_residual(scale=(0.5, 0.25, 1.0))
    policy.save(tmp_path / "model")
    again = load_policy(tmp_path / "model")
    assert isinstance(again, GrootPolicy)
    assert again.residual is not None
    assert again.q_head is None
    assert acted(again, deterministic=True).actions.equal(acted(policy, deterministic=True).actions)
    assert offset(acted(again, deterministic=True)).abs().max() > 0


def test_the_published_layout_has_no_place_for_it(tmp_path: Path) -> None:
    policy = with_residual()
    policy.save(tmp_path / "model")
    with pytest.raises(UserError, match="beside its head") as refusal:
        export(ExportOptions(tmp_path / "model", tmp_path / "out"))
    assert "distill" in str(refusal.value.fix)


def test_a_scale_of_another_width_is_refused() -> None:
    policy = with_residual()
    settings = dataclasses.replace(policy.settings, residual=ResidualConfig(scale=(0.5, 0.5)))
    assert [str(problem.key) for problem in settings.problems()] == ["actor.model.residual.scale"]
