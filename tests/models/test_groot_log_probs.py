"""Log-probabilities of the whole policy: what acting says, what an update recomputes, and the Gaussians by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from groot_toys import ACTION_DIM, keyed_noise, toy_observation, toy_policy
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Normal

from regrasp.algorithms.flow import NoiseMethod
from regrasp.algorithms.reduce import reduce_log_probs
from regrasp.models.contract import Action
from regrasp.models.groot.network.noise_net import NoiseNet
from regrasp.models.groot.policy import GrootPolicy

METHODS: tuple[NoiseMethod, ...] = ("flow_sde", "flow_cps", "flow_noise")
BATCH, NUM_STEPS, LEVEL = 32, 4, 0.5
STD_RANGE = (0.08, 0.16)


def perturb(module: torch.nn.Module, scale: float) -> None:
    """Move a freshly initialised network away from its zero output."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def act(method: NoiseMethod, **settings: Any) -> tuple[GrootPolicy, TensorDict, Action]:
    policy = toy_policy(noise_method=method, noise_level=LEVEL, **settings)
    if policy.noise_net is not None:
        perturb(policy.noise_net, 0.5)
    with torch.no_grad():
        features = policy.encode(policy.prepare(toy_observation(BATCH)))
        return policy, features, policy.act(features, keyed_noise(BATCH))


def gaussian(policy: GrootPolicy, features: TensorDict, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of step k for every row, from the published weights of noise and data estimate."""
    head, slot = policy.action_head, policy.processor.config.embodiment_id
    context, state = head.process_context(features["context"]), head.encode_state(features["state"], slot)
    bucket = torch.full((len(x),), 250 * k)
    v = head.velocity(x, bucket, head.cache(context, state), slot)
    t, after = k / NUM_STEPS, (k + 1) / NUM_STEPS
    noise, data = x - t * v, x + (1 - t) * v
    if policy.settings.rl_head_config.noise_method == "flow_sde":
        sigma = LEVEL * ((1 - t) / (t or 0.25)) ** 0.5
        mean = (1 - after - sigma**2 * 0.25 / (2 * (1 - t))) * noise + after * data
        return mean, torch.full_like(x, 0.25**0.5 * sigma)
    if policy.settings.rl_head_config.noise_method == "flow_cps":
        half = 0.5**0.5  # cosine and sine of level * pi / 2
        return (1 - after) * half * noise + after * data, torch.full_like(x, (1 - after) * half)
    assert policy.noise_net is not None
    return (1 - after) * noise + after * data, policy.noise_net(context.mean(dim=1), state, bucket)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ignore_last", [False, True])
@pytest.mark.parametrize("joint", [False, True])
@torch.no_grad()
def test_an_update_starts_from_the_log_probs_of_acting(method: NoiseMethod, ignore_last: bool, joint: bool) -> None:
    policy, features, action = act(method, ignore_last=ignore_last, joint_logprob=joint)
    again = policy.evaluate(features, action.trace).log_probs
    assert action.log_probs.isfinite().all()
    assert action.log_probs.abs().min() > 0
    if joint:  # K rows per decision in one call, so that a matrix product may round otherwise
        torch.testing.assert_close(again, action.log_probs, rtol=1e-5, atol=1e-4)
    else:
        assert torch.equal(again, action.log_probs)


@pytest.mark.parametrize("joint", [False, True])
@torch.no_grad()
def test_so_it_does_with_colored_noise(joint: bool) -> None:
    policy, features, action = act("flow_sde", noise_color=1.0, joint_logprob=joint)
    again = policy.evaluate(features, action.trace).log_probs
    torch.testing.assert_close(again, action.log_probs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_a_joint_log_prob_is_the_chain_rules_sum(method: NoiseMethod) -> None:
    policy, features, action = act(method, joint_logprob=True)
    chain = action.trace["chain"]
    expected = Normal(0.0, 1.0).log_prob(chain[:, 0])
    for k in range(NUM_STEPS):
        mean, std = gaussian(policy, features, chain[:, k], k)
        if std.any():
            expected += Normal(mean, std).log_prob(chain[:, k + 1])
        else:
            torch.testing.assert_close(chain[:, k + 1], mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(action.log_probs, expected[:, :3, :ACTION_DIM], rtol=1e-4, atol=1e-3)
    num_executed = torch.arange(BATCH) % 4
    ratio_of, counts = reduce_log_probs(action.log_probs, num_executed, "chunk_level")
    by_hand = [float(row[:n, :ACTION_DIM].sum()) for row, n in zip(expected, num_executed.tolist(), strict=True)]
    torch.testing.assert_close(ratio_of, torch.tensor(by_hand), rtol=1e-4, atol=1e-3)
    assert torch.equal(counts, num_executed > 0)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_a_single_log_prob_is_that_of_the_step_drawn(method: NoiseMethod) -> None:
    policy, features, action = act(method)
    chain, step = action.trace["chain"], action.trace["step"]
    expected = torch.zeros_like(chain[:, 0])
    for k in sorted(set(step.tolist())):
        drawn = (step == k)[:, None, None]
        mean, std = gaussian(policy, features, chain[:, k], k)
        expected = torch.where(drawn, Normal(mean, std).log_prob(chain[:, k + 1]), expected)
    torch.testing.assert_close(action.log_probs, expected[:, :3, :ACTION_DIM], rtol=1e-4, atol=1e-3)


def test_only_what_is_executed_and_used_trains() -> None:
    """Gradient with respect to the stored chain: none from other rows, unused dimensions or later actions."""
    policy, features, action = act("flow_sde")
    trace = action.trace.clone()
    chain = trace["chain"].requires_grad_()
    log_probs = policy.evaluate(features, trace).log_probs
    ratio_of, _ = reduce_log_probs(log_probs, torch.full((BATCH,), 2), "chunk_level")
    (gradient,) = torch.autograd.grad(ratio_of[5], chain)
    k = int(trace["step"][5])
    after = gradient[5, k + 1]
    assert after[:2, :ACTION_DIM].all()
    assert not after[2:].any()
    assert not after[:, ACTION_DIM:].any()
    gradient[5] = 0
    assert not gradient.any()


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_learned_noise_stays_in_its_range_for_any_input(size: float) -> None:
    net = NoiseNet(24, 16, (4, 4))
    perturb(net, 1.0)
    generator = torch.Generator().manual_seed(0)
    context, state = (size * torch.randn(64, width, generator=generator) for width in (24, 16))
    std = net(context, state, torch.arange(64) * 1000 // 64)
    assert std.dtype == torch.float32
    assert ((std >= STD_RANGE[0] * (1 - 1e-6)) & (std <= STD_RANGE[1] * (1 + 1e-6))).all()
    if size > 1:
        assert std.min() < 0.081
        assert std.max() > 0.159


def test_learned_noise_is_trained_by_the_log_prob() -> None:
    policy, features, action = act("flow_noise")
    assert policy.noise_net is not None
    policy.evaluate(features, action.trace).log_probs.sum().backward()
    for name, parameter in policy.noise_net.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0, name


def test_fresh_learned_noise_can_start_to_learn() -> None:
    """Its last layer is zero, and the first thing to move."""
    policy = toy_policy(noise_method="flow_noise")
    assert policy.noise_net is not None
    with torch.no_grad():
        features = policy.encode(policy.prepare(toy_observation(4)))
        trace = policy.act(features, keyed_noise(4)).trace
    policy.evaluate(features, trace).log_probs.sum().backward()
    assert "noise_net.mlp.2.weight" in dict(policy.trainable("head"))
    last = policy.noise_net.mlp[-1]
    assert isinstance(last, torch.nn.Linear)
    assert last.weight.grad is not None
    assert last.weight.grad.abs().sum() > 0
