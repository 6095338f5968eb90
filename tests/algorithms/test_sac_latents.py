"""What critics of chunks teach: critics of noise, which the actor climbs, and a head that imitates what they choose."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.algorithms.base import ACTOR, Minibatch
from regrasp.algorithms.sac import CRITIC, LATENT_CRITIC, Sac
from regrasp.algorithms.sac_config import EntropyTuningConfig, SacConfig
from regrasp.models.config import QHeadConfig
from regrasp.models.groot.dsrl_config import DsrlConfig
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.selection_config import SelectionConfig
from regrasp.models.q_head import QHead
from regrasp.rollout.decisions import Decisions
from regrasp.seeding import KeyedNoise
from rl_toys import groot_policy, observation

ROWS, CHUNK = 8, 2


DSRL = DsrlConfig(hidden=(8,), pairs=2)


def begun(
    proposal: Literal["dsrl", "sac_flow", "selection"] = "dsrl",
    dsrl: DsrlConfig = DSRL,
    **settings: Any,
) -> tuple[GrootPolicy, Sac, list[Minibatch]]:
    """An algorithm with the minibatches of an update on episodes of one decision each."""
    policy = groot_policy(
        proposal=proposal,
        dsrl=dsrl,
        selection=SelectionConfig(candidates=3),
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
    algorithm.check(policy)
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


NO_ENTROPY = EntropyTuningConfig(alpha_type="fixed_alpha", initial_alpha=0.0)


def test_the_head_imitates_what_critics_hold_better_by_a_margin_and_else_its_own() -> None:
    settings = {"entropy_tuning": NO_ENTROPY, "agg_q": "mean", "backup_entropy": False}
    policy, algorithm, (_, minibatch) = begun("selection", **settings, selection_margin=0.1)
    batch = minibatch.decisions
    assert policy.q_head is not None
    policy.q_head.critics.weights[-1].data.mul_(20)
    algorithm.parameters(policy, "head")  # target critics begin as the critics are
    loss, metrics = algorithm.loss(policy, batch, torch.ones(1), minibatch.groups)
    candidates = batch.trace["candidates"]
    with torch.no_grad():
        values = torch.stack([judged(policy.q_head, batch, c).mean(0) for c in candidates.unbind(1)], 1)
    targets = []
    for row, own in zip(candidates, values, strict=True):
        best = int(own.argmax())
        targets.append(row[best if own[best] - own[0] > 0.1 else 0])
    expected = policy.imitation_errors(batch.table, torch.stack(targets), batch["noise"][:, None]).mean()
    torch.testing.assert_close(loss, expected)
    changed = [not target.equal(row[0]) for target, row in zip(targets, candidates, strict=True)]
    assert 0 < sum(changed) < len(changed)
    assert float(metrics["actor/changed"]) == sum(changed) / len(changed)
    following = batch.record["following"]
    heads = batch.record["heads"][0]
    value = algorithm._value_of_following(policy, following, batch["following_noise"], heads)  # pyright: ignore[reportPrivateUsage]
    torch.testing.assert_close(value, values.amax(1), rtol=1e-4, atol=1e-5)


def test_a_flow_stays_near_the_policy_that_the_run_started_from() -> None:
    settings = {"entropy_tuning": NO_ENTROPY, "proximity": (2.0, 2.0, 0), "proximity_to": "start"}
    policy, algorithm, (_, minibatch) = begun("sac_flow", **settings)
    algorithm.start = copy.deepcopy(policy)
    batch = minibatch.decisions
    before, _ = algorithm.loss(policy, batch, torch.ones(1), minibatch.groups)
    with torch.no_grad():
        base = policy.propose(batch.table, batch.trace, batch["noise"]).actions
        policy.action_head.action_decoder.layer2.slot_bias.add_(0.1)
    loss, metrics = algorithm.loss(policy, batch, torch.ones(1), minibatch.groups)
    proposal = policy.propose(batch.table, batch.trace, batch["noise"]).actions
    assert policy.q_head is not None
    value = judged(policy.q_head, batch, proposal).amin(0).mean()
    distance = (proposal - base).square().mean()
    torch.testing.assert_close(loss, 2 * distance - value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(metrics["actor/size"], distance.detach())
    torch.testing.assert_close(before, -judged(policy.q_head, batch, base).amin(0).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_shared", [True, False])
def test_noise_stays_near_that_which_the_start_would_choose(is_shared: bool) -> None:
    settings = {"entropy_tuning": NO_ENTROPY, "proximity": (2.0, 2.0, 0), "proximity_to": "start"}
    policy, algorithm, (_, minibatch) = begun(dsrl=replace(DSRL, is_shared=is_shared), **settings)
    algorithm.start = copy.deepcopy(policy)
    batch = minibatch.decisions
    with torch.no_grad():
        base = policy.propose_latent(batch.table, batch["noise"]).actions
        assert policy.steering is not None
        for parameter in policy.steering.parameters():
            parameter.add_(0.1)
    _, metrics = algorithm.loss(policy, batch, torch.ones(1), minibatch.groups)
    chosen = policy.propose_latent(batch.table, batch["noise"]).actions
    distance = (chosen - base).square().mean()
    assert distance > 0
    torch.testing.assert_close(metrics["actor/size"], distance.detach())
