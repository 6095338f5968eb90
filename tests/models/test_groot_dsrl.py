"""An actor of a GR00T's initial noise: what it draws, what its chunks are, and that it stays with the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch.distributions import Normal, TanhTransform

from regrasp.errors import UserError
from regrasp.models.config import ExportOptions, QHeadConfig
from regrasp.models.contract import Action
from regrasp.models.groot.checkpoint import load_groot
from regrasp.models.groot.dsrl_config import DsrlConfig
from regrasp.models.groot.export import export
from regrasp.models.groot.noise_actor import CHUNKS, LATENTS, NoiseActor
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.steering import ACTIONS
from regrasp.models.registry import load_policy
from regrasp.seeding import KeyedNoise
from rl_toys import ACTION_DIM, CHUNK, groot_policy, observation

BATCH = 5


def with_noise_actor(**changes: Any) -> GrootPolicy:
    """A tiny GR00T whose noise an actor with weights that are not zero chooses."""
    config = dataclasses.replace(DsrlConfig(hidden=(8,), pairs=2), **changes)
    heads = QHeadConfig(hidden=(8,), num_q_heads=3)
    return groot_policy(dsrl=config, proposal="dsrl", add_q_head=True, add_value_head=False, q_head=heads)


def features_of(policy: GrootPolicy) -> TensorDict:
    with torch.no_grad():
        return policy.encode(policy.prepare(observation(BATCH)))


def acted(policy: GrootPolicy, *, deterministic: bool = False, update: int = 9) -> Action:
    policy.begin_update(update)
    noise = KeyedNoise(5, "train", [(row, 0, 0) for row in range(BATCH)])
    with torch.no_grad():
        return policy.act(features_of(policy), noise, deterministic)


def actor_of(policy: GrootPolicy) -> NoiseActor:
    assert policy.noise_actor is not None
    return policy.noise_actor


@pytest.mark.parametrize("is_shared", [True, False])
def test_every_chunk_is_what_its_noise_denoises_to(is_shared: bool) -> None:
    policy = with_noise_actor(is_shared=is_shared, bound=1.7)
    head = policy.config.action_head_cfg
    shape = (head.action_horizon, head.max_action_dim)
    trace = acted(policy).trace
    assert trace[LATENTS].shape == (BATCH, 3, shape[1] if is_shared else shape[0] * shape[1])
    assert trace[LATENTS].abs().max() <= 1
    assert trace[ACTIONS].equal(trace[CHUNKS][:, 0])
    assert trace[LATENTS].std(1).min() > 0
    for latents, chunks in zip(trace[LATENTS].unbind(1), trace[CHUNKS].unbind(1), strict=True):
        given = latents if not is_shared else latents.repeat(1, shape[0])
        with torch.no_grad():
            expected = policy.decode(features_of(policy), 1.7 * given.view(BATCH, *shape))
        found = policy.processor.unnormalize_actions(chunks.view(BATCH, CHUNK, ACTION_DIM))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_without_exploration_the_noise_is_the_mean_and_no_further_noise_is_denoised() -> None:
    policy = with_noise_actor()
    trace = acted(policy, deterministic=True).trace
    with torch.no_grad():
        mean, _ = actor_of(policy).distribution(features_of(policy))
    torch.testing.assert_close(trace[LATENTS], mean.tanh()[:, None])


def test_the_base_policys_own_noise_comes_first_and_a_fresh_actor_is_close_to_it() -> None:
    policy = with_noise_actor(bound=2.0, base_updates=2)
    first = acted(policy, update=1).trace[LATENTS][:, 0]
    keyed = KeyedNoise(5, "train", [(row, 0, 0) for row in range(BATCH)]).normal("latent", policy.proposal_width)
    torch.testing.assert_close(first, (keyed / 2).clamp(-1, 1))
    assert not acted(policy, update=2).trace[LATENTS][:, 0].equal(first)
    actor = actor_of(policy)
    actor.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, log_std = actor.distribution(features_of(policy))
    assert mean.abs().max() == 0
    torch.testing.assert_close(log_std, torch.zeros_like(log_std), atol=1e-6, rtol=0)


def test_a_proposal_has_the_density_of_its_noise_and_gradients_reach_the_actor_through_the_flow() -> None:
    policy = with_noise_actor()
    noise = torch.randn(BATCH, policy.proposal_width, generator=torch.Generator().manual_seed(1))
    proposal = policy.propose(features_of(policy), acted(policy).trace, noise)
    mean, log_std = actor_of(policy).distribution(features_of(policy))
    normal = Normal(mean, log_std.exp())
    before = normal.mean + normal.stddev * noise
    latent = before.tanh()
    density = (normal.log_prob(before) - TanhTransform().log_abs_det_jacobian(before, latent)).sum(-1)
    torch.testing.assert_close(proposal.log_probs, density, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(policy.propose_latent(features_of(policy), noise).actions, latent)
    assert proposal.actions.shape == (BATCH, CHUNK * ACTION_DIM)
    policy.requires_grad_(False)
    for _, parameter in policy.trainable("proposal"):
        parameter.requires_grad_(True)
    proposal = policy.propose(features_of(policy), acted(policy).trace, noise)
    proposal.actions.square().sum().backward()
    moved = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert moved == {name for name, _ in policy.trainable("proposal")}


def test_without_noise_aliasing_critics_judge_the_noise() -> None:
    policy = with_noise_actor(noise_aliasing=False)
    trace = acted(policy).trace
    assert policy.latent_head is None
    assert trace[LATENTS].shape[1] == 1
    assert policy.stored_actions(trace).equal(trace[LATENTS][:, 0])
    noise = torch.zeros(BATCH, policy.proposal_width)
    proposal = policy.propose(features_of(policy), trace, noise)
    torch.testing.assert_close(proposal.actions, policy.propose_latent(features_of(policy), noise).actions)


def test_it_is_saved_with_the_model_and_always_acts(tmp_path: Path) -> None:
    policy = with_noise_actor(bound=1.25)
    policy.save(tmp_path / "model")
    again = load_policy(tmp_path / "model")
    assert isinstance(again, GrootPolicy)
    assert actor_of(again).config.bound == 1.25
    assert again.q_head is None
    assert again.latent_head is None
    assert acted(again, deterministic=True).actions.equal(acted(policy, deterministic=True).actions)
    plain = again.student()
    assert plain is not None
    assert plain.steering is None
    with pytest.raises(UserError, match="beside its head"):
        export(ExportOptions(tmp_path / "model", tmp_path / "out"))


def test_another_way_of_acting_does_not_begin_from_it(tmp_path: Path) -> None:
    policy = with_noise_actor()
    policy.save(tmp_path / "model")
    settings = dataclasses.replace(policy.settings, proposal="residual")
    with pytest.raises(UserError, match="an actor of its noise") as refusal:
        load_groot(tmp_path / "model", settings)
    assert refusal.value.key == "actor.model.proposal"
