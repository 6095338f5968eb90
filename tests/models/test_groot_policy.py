from __future__ import annotations

from collections import Counter

import pytest
import torch
from groot_toys import ACTION_DIM, keyed_noise, toy_config, toy_observation, toy_policy, toy_processor, toy_settings
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Normal

from regrasp.errors import UserError
from regrasp.models.groot.policy import GrootPolicy

BATCH = 6


def features_of(policy: GrootPolicy, batch: int = BATCH) -> TensorDict:
    with torch.no_grad():
        return policy.encode(policy.prepare(toy_observation(batch)))


def velocity(policy: GrootPolicy, features: TensorDict, x: Tensor, bucket: Tensor) -> Tensor:
    head, slot = policy.action_head, policy.processor.config.embodiment_id
    cache = head.cache(head.process_context(features["context"]), head.encode_state(features["state"], slot))
    return head.velocity(x, bucket, cache, slot)


@torch.no_grad()
def test_log_probability_of_the_stochastic_step_by_hand():
    policy = toy_policy(noise_level=0.7)
    features = features_of(policy, 32)
    action = policy.act(features, keyed_noise(32))
    chain, step = action.trace["chain"], action.trace["step"]
    assert set(step.tolist()) == {0, 1, 2, 3}
    rows = torch.arange(32)
    t = (step / 4)[:, None, None]
    x, d = chain[rows, step], 0.25
    v = velocity(policy, features, x, 250 * step)
    sigma = 0.7 * ((1 - t) / torch.where(t == 0, d, t)).sqrt()
    mean = x + v * d - sigma**2 * d / (2 * (1 - t)) * (x - t * v)
    expected = Normal(mean, d**0.5 * sigma).log_prob(chain[rows, step + 1])
    torch.testing.assert_close(action.log_probs, expected[:, :3, :ACTION_DIM], atol=1e-4, rtol=1e-4)
    other = (step + 1) % 4
    v = velocity(policy, features, chain[rows, other], 250 * other)
    torch.testing.assert_close(chain[rows, other + 1], chain[rows, other] + d * v, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_actions_are_the_executed_crop_in_physical_units():
    policy = toy_policy()
    action = policy.act(features_of(policy), keyed_noise(BATCH))
    statistics = policy.processor.metadata.statistics("action", "action")
    crop = action.trace["chain"][:, -1, :3, :ACTION_DIM]
    expected = (crop + 1) / 2 * (statistics.max - statistics.min) + statistics.min
    torch.testing.assert_close(action.actions, expected)


@pytest.mark.parametrize(
    ("settings", "choices"),
    [({}, {0, 1, 2, 3}), ({"ignore_last": True}, {0, 1, 2}), ({"noise_method": "flow_cps"}, {0, 1, 2})],
)
@torch.no_grad()
def test_each_row_draws_its_own_stochastic_step(settings, choices):
    policy = toy_policy(**settings)
    action = policy.act(features_of(policy, 64), keyed_noise(64))
    counts = Counter(action.trace["step"].tolist())
    assert set(counts) == choices
    assert max(counts.values()) < 40


@torch.no_grad()
def test_cached_context_gives_the_same_decisions():
    raw, cached = toy_policy(), toy_policy(trainable="head_without_context")
    ours = raw.act(features_of(raw), keyed_noise(BATCH))
    theirs = cached.act(features_of(cached), keyed_noise(BATCH))
    assert torch.equal(ours.actions, theirs.actions)
    assert torch.equal(ours.log_probs, theirs.log_probs)
    moved = {name for name, _ in raw.trainable("head")} - {name for name, _ in cached.trainable("head")}
    assert moved
    assert all(name.startswith(("action_head.vlln.", "action_head.vl_self_attention.")) for name in moved)


def test_only_learned_noise_has_an_entropy():
    policy = toy_policy()
    features = features_of(policy)
    trace = policy.act(features, keyed_noise(BATCH)).trace
    assert policy.evaluate(features, trace).entropy is None
    for joint in (False, True):
        policy = toy_policy(noise_method="flow_noise", joint_logprob=joint)
        trace = policy.act(features, keyed_noise(BATCH)).trace
        entropy = policy.evaluate(features, trace).entropy
        assert entropy is not None
        step = Normal(0, (0.08 * 0.16) ** 0.5).entropy()
        expected = 4 * step + Normal(0, 1).entropy() if joint else step
        torch.testing.assert_close(entropy, torch.full_like(entropy, float(expected)))


def test_noise_level_is_annealed_over_updates():
    policy = toy_policy(noise_anneal=True, noise_params=(0.7, 0.3, 10))
    levels = []
    for update in (0, 5, 10, 20):
        policy.begin_update(update)
        levels.append(policy.noise_level)
    assert levels == pytest.approx([0.7, 0.5, 0.3, 0.3])
    fixed = toy_policy(noise_level=0.4)
    fixed.begin_update(7)
    assert fixed.noise_level == 0.4


@torch.no_grad()
def test_values_start_at_zero():
    policy = toy_policy()
    assert not policy.value(features_of(policy)).any()


def test_supervised_loss_by_hand():
    policy = toy_policy()
    features = features_of(policy)
    noise = keyed_noise(BATCH, seed=4)
    actions = torch.randn(BATCH, 4, ACTION_DIM, generator=torch.Generator().manual_seed(1))
    valid = torch.ones(BATCH, 4, dtype=torch.bool)
    valid[0, 1:] = False
    total = 0.0
    for repeat in range(2):
        start = noise.normal("flow", 2, 4, 4)[:, repeat]
        uniform = Normal(0, 1).cdf(noise.normal("time", 2)[:, repeat])
        t = ((0.999 - uniform ** (2 / 3)) / 0.999).clamp(0, 1)
        target = policy.processor.normalize_actions(actions)
        x = (1 - t)[:, None, None] * start + t[:, None, None] * target
        error = velocity(policy, features, x, (t * 1000).long()) - (target - start)
        total += error[..., :ACTION_DIM][valid].square().mean().item() / 2
    loss = policy.sft_loss(features, actions, valid, noise, repeats=2)
    assert loss.item() == pytest.approx(total, rel=1e-4)
    loss.backward()
    assert all(p.grad is not None for n, p in policy.trainable("head"))


def test_supervised_learning_fits_a_constant_action():
    policy = toy_policy()
    features = features_of(policy)
    statistics = policy.processor.metadata.statistics("action", "action")
    actions = (statistics.mean + 0.5 * statistics.std).expand(BATCH, 4, ACTION_DIM)
    valid = torch.ones(BATCH, 4, dtype=torch.bool)
    optimizer = torch.optim.AdamW([p for _, p in policy.trainable("head")], lr=3e-3)
    for step in range(100):
        optimizer.zero_grad()
        policy.sft_loss(features, actions, valid, keyed_noise(BATCH, seed=step), repeats=8).backward()
        optimizer.step()
    with torch.no_grad():
        decided = policy.act(features, keyed_noise(BATCH), deterministic=True).actions
    assert ((decided - actions[:, :3]) / statistics.std).abs().mean() < 0.3


@pytest.mark.parametrize("change", [{"num_action_chunks": 5}, {"action_dim": 3}])
def test_settings_that_do_not_fit_the_model_are_named(change):
    config = toy_config()
    with pytest.raises(UserError) as error:
        GrootPolicy(config, toy_processor(config), toy_settings(**change))
    assert str(error.value.key).endswith(next(iter(change)))


@torch.no_grad()
def test_half_precision_keeps_noise_and_log_probabilities_in_single():
    policy = toy_policy().to(torch.bfloat16)
    features = features_of(policy)
    assert features["context"].dtype == torch.bfloat16
    action = policy.act(features, keyed_noise(BATCH))
    evaluation = policy.evaluate(features, action.trace)
    assert action.trace["chain"].dtype == action.actions.dtype == torch.float32
    assert torch.equal(evaluation.log_probs, action.log_probs)
    reference = toy_policy()
    expected = reference.act(features_of(reference), keyed_noise(BATCH)).actions
    torch.testing.assert_close(action.actions, expected, atol=0.1, rtol=0.1)
