"""A tiny GR00T wholly in bfloat16: nothing inside a forward pass is made in another format."""

from __future__ import annotations

import pytest
import torch
from groot_toys import ACTION_DIM, keyed_noise, toy_observation, toy_policy
from tensordict import TensorDict

from regrasp.models.groot.policy import GrootPolicy

BATCH = 6


def perturbed(policy: GrootPolicy) -> GrootPolicy:
    """Every parameter moved a little, so that values and learned noise are not constant."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy


@pytest.mark.parametrize("trainable", ["head", "head_without_context", "all"])
@pytest.mark.parametrize("noise_method", ["flow_sde", "flow_noise"])
def test_half_precision_agrees_with_single(trainable: str, noise_method: str) -> None:
    single = perturbed(toy_policy(trainable=trainable, noise_method=noise_method))
    half = perturbed(toy_policy(trainable=trainable, noise_method=noise_method)).to(torch.bfloat16)
    inputs = single.prepare(toy_observation(BATCH))
    actions = torch.randn(BATCH, 4, ACTION_DIM, generator=torch.Generator().manual_seed(1)) * 0.3
    valid = torch.ones(BATCH, 4, dtype=torch.bool)
    trace: TensorDict | None = None
    results = []
    for policy in (single, half):
        features = policy.encode(inputs)
        with torch.no_grad():
            decided = policy.act(features, keyed_noise(BATCH))
        trace = decided.trace if trace is None else trace
        evaluated = policy.evaluate(features, trace)
        assert evaluated.values is not None
        loss = policy.sft_loss(features, actions, valid, keyed_noise(BATCH), repeats=2)
        (loss + evaluated.log_probs.mean() + evaluated.values.mean()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for _, p in policy.trainable("head"))
        results.append(
            (features["context"].float().detach(), decided.actions, decided.values, evaluated.log_probs, loss)
        )
        for result in results[-1][1:]:
            assert result.dtype == torch.float32
    assert half.action_head.dtype == torch.bfloat16
    for name, one, other in zip(("features", "actions", "values", "log_probs", "loss"), *results, strict=True):
        scale = one.detach().abs().max()
        error = (one - other).detach().abs().max() / scale
        assert error < 0.05, f"{name}: {error:.4f} of {scale:.3f}"


def test_prepared_for_training_in_half_precision() -> None:
    policy = toy_policy().to(torch.bfloat16)
    features = policy.encode(policy.prepare(toy_observation(BATCH)))
    trace = policy.act(features, keyed_noise(BATCH)).trace
    before = policy.evaluate(features, trace)
    trained = policy.prepare_training("head")
    after = policy.evaluate(features, trace)
    assert torch.equal(before.log_probs, after.log_probs)
    after.log_probs.sum().backward()
    assert {parameter.dtype for _, parameter in trained} == {torch.bfloat16}
    assert any(parameter.grad is not None for name, parameter in trained if ".slot_" in name)
