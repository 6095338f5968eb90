"""Noise aliasing: critics of noise learn from critics of chunks, and the actor climbs them."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.algorithms.base import ACTOR, Minibatch
from regrasp.algorithms.sac import CRITIC, LATENT_CRITIC, Sac
from regrasp.algorithms.sac_config import EntropyTuningConfig, SacConfig
from regrasp.models.config import QHeadConfig
from regrasp.models.groot.dsrl_config import DsrlConfig
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.q_head import QHead
from regrasp.rollout.decisions import Decisions
from regrasp.seeding import KeyedNoise
from rl_toys import groot_policy, observation

ROWS, CHUNK = 8, 2


def begun(**settings: Any) -> tuple[GrootPolicy, Sac, list[Minibatch]]:
    """An algorithm with the minibatches of an update on episodes of one decision each."""
    policy = groot_policy(
        proposal="dsrl",
        dsrl=DsrlConfig(hidden=(8,), pairs=2),
        add_q_head=True,
        add_value_head=False,
        q_head=QHeadConfig(hidden=(8,), num_q_heads=3),
        num_action_chunks=CHUNK,
    )
    with torch.no_grad():
        features = policy.encode(policy.prepare(observation(ROWS)))
        trace = policy.act(features, KeyedNoise(5, "train", [(row, 0, 0) for row in range(ROWS)])).trace
    zeros = torch.zeros(ROWS, dtype=torch.long)
    record = TensorDict(
        {
            "column": torch.arange(ROWS),
            "time": zeros,
            "decision": zeros,
            "rewards": torch.arange(ROWS * CHUNK).view(ROWS, CHUNK) / 10,
            "num_executed": zeros + CHUNK,
            "ends": torch.ones(ROWS, dtype=torch.bool),
            "success": torch.zeros(ROWS, dtype=torch.bool),
            "is_final": torch.zeros(ROWS, dtype=torch.bool),
            "trace": trace,
        },
        batch_size=[ROWS],
    )
    algorithm = SacConfig(**{"update_epoch": 1, **settings}).build()
    algorithm.parameters(policy, "head")
    prepared = algorithm.prepare(Decisions(features, record, are_encoded=True))
    return policy, algorithm, list(algorithm.minibatches(prepared, 16, torch.Generator().manual_seed(3)))


def judged(critics: QHead, batch: Decisions, actions: Tensor) -> Tensor:
    """(E, B), one row after the other."""
    rows = [
        critics(batch.table[[row]], batch.trace[[row]], batch["decision"][[row]], actions[[row]])
        for row in range(len(actions))
    ]
    return torch.cat(rows, dim=1)


def test_critics_of_noise_learn_what_critics_of_chunks_say() -> None:
    policy, algorithm, (minibatch, _) = begun()
    assert minibatch.groups == (CRITIC, LATENT_CRITIC)
    batch = minibatch.decisions
    loss, metrics = algorithm.loss(policy, batch, torch.ones(1), minibatch.groups)
    assert policy.q_head is not None
    assert policy.latent_head is not None
    latents, chunks = batch.trace["latents"], batch.trace["chunks"]
    errors = [
        judged(policy.latent_head, batch, latents[:, n]) - judged(policy.q_head, batch, chunks[:, n]) for n in range(3)
    ]
    expected = torch.stack(errors).square().mean()
    torch.testing.assert_close(metrics["sac/latent_loss"], expected.detach(), rtol=1e-4, atol=1e-6)
    loss.backward()
    own = [weight.grad for weight in policy.latent_head.parameters()]
    for weight in policy.latent_head.parameters():
        weight.grad = None
    (3 * expected).backward(inputs=list(policy.latent_head.parameters()))
    for found, weight in zip(own, policy.latent_head.parameters(), strict=True):
        assert found is not None
        assert weight.grad is not None
        torch.testing.assert_close(found, weight.grad, rtol=1e-3, atol=1e-5)
    assert all(parameter.grad is None for _, parameter in policy.trainable("proposal"))


def test_the_actor_climbs_the_critics_of_noise() -> None:
    tuning = EntropyTuningConfig(alpha_type="fixed_alpha", initial_alpha=0.2)
    policy, algorithm, (_, minibatch) = begun(entropy_tuning=tuning, agg_q="mean")
    assert minibatch.groups == (ACTOR,)
    batch = minibatch.decisions
    loss, _ = algorithm.loss(policy, batch, torch.ones(1), minibatch.groups)
    assert policy.latent_head is not None
    proposal = policy.propose_latent(batch.table, batch["noise"])
    values = judged(policy.latent_head, batch, proposal.actions).mean(0)
    torch.testing.assert_close(loss, (0.2 * proposal.log_probs - values).mean(), rtol=1e-4, atol=1e-5)
    loss.backward()
    for part in (policy.latent_head, policy.q_head):
        assert part is not None
        assert all(parameter.grad is None for parameter in part.parameters())
