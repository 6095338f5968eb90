"""Updates in bf16: losses computed with bfloat16 weights, against the same under autocast with float32 ones."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regrasp.learner.learner import Learner, NonFiniteError
from regrasp.learner.precision import apply_precision
from regrasp.models.contract import Policy
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.lora import adapters
from regrasp.models.lora_config import LoraConfig
from regrasp.rollout.decisions import Decisions
from rl_toys import SIZE, groot_policy, mlp_policy, never, rollout_of, weights, worker

CPU = torch.device("cpu")
LORA = LoraConfig(rank=2, alpha=4)


def bfloat16(policy: Policy, trainable: str = "head", **settings: Any) -> Learner:
    """An actor that computes with bfloat16 weights."""
    return autocast(policy, trainable, **settings, precision="bf16")


def autocast(policy: Policy, trainable: str = "head", **settings: Any) -> Learner:
    """An actor that computes with the float32 weights, which autocast casts in every pass."""
    apply_precision(policy, SimpleNamespace(precision="bf16", trainable=trainable), CPU)  # pyright: ignore[reportArgumentType]
    return worker(policy, trainable=trainable, **settings)


def update(actor: Learner, rollout: Decisions) -> tuple[dict[str, float], dict[str, Tensor]]:
    return actor.update(rollout, 0, never), weights(actor.policy)


def rounded(actor: Learner) -> bool:
    """Whether the bfloat16 weights are the float32 ones, rounded."""
    assert actor.bfloat16 is not None
    return all(torch.equal(half, weight.to(torch.bfloat16)) for weight, half in actor.bfloat16.rounded.items())


@pytest.mark.parametrize(
    ("trainable", "policy_settings", "settings"),
    [
        ("head", {}, {}),
        ("head_without_context", {}, {"kl_beta": 0.1}),
        ("head", {"noise_method": "flow_noise"}, {"entropy_bonus": 0.01, "value_epochs": 1}),
        ("all", {}, {}),
        ("head", {"lora": LORA}, {"is_lora": True}),
        ("head", {}, {"optim": {"critic_warmup_steps": 1}, "update_epoch": 2}),
    ],
    ids=["head", "kl_beta", "value_epochs", "all", "lora", "warm-up"],
)
@pytest.mark.parametrize("micro", [SIZE, 8])
def test_an_update_is_that_of_autocast(
    trainable: str, policy_settings: dict[str, Any], settings: dict[str, Any], micro: int
) -> None:
    results = []
    for make in (autocast, bfloat16):
        policy = groot_policy(trainable=trainable, **policy_settings)
        actor = make(policy, trainable, micro=micro, **settings)
        rollout = rollout_of(policy, SIZE, keep_features=trainable != "all" and not settings.get("is_lora"))
        before = weights(policy)
        results.append((*update(actor, rollout), before))
    (metrics, expected, before), (found_metrics, found, _) = results
    assert found_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)
    assert any(not torch.equal(value, before[name]) for name, value in expected.items())
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        if micro < SIZE and not settings.get("value_epochs"):
            assert torch.equal(found[name], value), f"{name}: several micro-batches are the same arithmetic"
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    assert rounded(actor)


def test_gradients_of_products_are_bfloat16_and_of_norms_float32() -> None:
    policy = groot_policy()
    actor = bfloat16(policy)
    rollout = rollout_of(policy, SIZE)
    actor._backward(rollout, actor.algorithm.shares(rollout, rollout), ("actor", "critic"))
    other = autocast(twin := groot_policy())
    other._backward(rollout, other.algorithm.shares(rollout, rollout), ("actor", "critic"))
    formats = set()
    for name, weight in policy.named_parameters():
        expected = twin.get_parameter(name).grad
        own = actor.computing.get_parameter(name)
        assert (own.grad is None) == (expected is None)
        if own.grad is not None and expected is not None:
            layer = policy.get_submodule(name.rpartition(".")[0])
            assert own.grad.dtype == (torch.bfloat16 if isinstance(layer, policy.product_layers) else torch.float32)
            assert torch.equal(own.grad.float(), expected), name
            assert (own is weight) == (own.grad.dtype == torch.float32)
            formats.add((type(layer), own.grad.dtype))
    assert (nn.LayerNorm, torch.float32) in formats
    assert (nn.Linear, torch.bfloat16) in formats


def test_what_does_not_train_is_shared() -> None:
    policy = groot_policy(trainable="head_without_context")
    actor = bfloat16(policy, "head_without_context")
    assert actor.bfloat16 is not None
    own = {id(tensor) for tensor in (*policy.parameters(), *policy.buffers())}
    others = {id(half) for half in actor.bfloat16.rounded.values()}
    assert {id(tensor) for tensor in (*actor.computing.parameters(), *actor.computing.buffers())} - own == others
    assert len(others) == sum(weight in actor.bfloat16.rounded for weight in policy.parameters()) > 0


def test_adapters_are_stored_and_stepped_in_float32() -> None:
    policy = groot_policy(lora=LORA)
    actor = bfloat16(policy, is_lora=True, optim={"lr": 1e-6})
    found = adapters(policy)
    assert found
    with torch.no_grad():
        for _, weight in found:
            weight += 0.1  # B starts at zero, where A has no gradient
    before = weights(policy)
    actor.update(rollout_of(policy, SIZE, keep_features=False), 0, never)
    for name, weight in found:
        assert weight.dtype == actor.optimizer.state[weight]["exp_avg"].dtype == torch.float32
        assert not torch.equal(weight, before[name]), "the step is kept, though bfloat16 has no such small one at 0.1"


@torch.no_grad()
def moved(make: Any, lr: float) -> float:
    """Divergence, in float64, of the policy that ten updates leave in the stored weights, from the one before them."""
    policy = groot_policy()
    with torch.enable_grad():
        actor = make(policy, optim={"lr": lr, "value_lr": lr})
        rollout, before = rollout_of(policy, SIZE), weights(policy)
        for number in range(10):
            actor.update(rollout, number, never)
    log_probs = []
    for state in (before, weights(policy)):
        exact = groot_policy().double()
        exact.load_state_dict({name: value.double() for name, value in state.items()})
        features, trace = (
            table.apply(lambda value: value.double() if value.is_floating_point() else value)
            for table in (rollout.features(exact), rollout.trace)
        )
        log_probs.append(exact.evaluate(features, trace).log_probs.sum((1, 2)))
    ratio = log_probs[1] - log_probs[0]
    return float((ratio.exp() - 1 - ratio).mean())


def test_steps_below_the_spacing_of_bfloat16_move_the_stored_policy_as_float32_does() -> None:
    expected = moved(worker, 1e-7)
    assert 0 < expected < 1e-5
    assert moved(bfloat16, 1e-7) == pytest.approx(expected, rel=0.1)


def test_a_run_resumes_from_its_state() -> None:
    straight = groot_policy()
    rollout = rollout_of(straight, SIZE)
    actor = bfloat16(straight, batch=16)
    actor.update(rollout, 0, never)
    state, model = copy.deepcopy(actor.state_dict()), weights(straight)
    assert {value.dtype for kept in state["optimizer"]["state"].values() for value in kept.values()} == {torch.float32}
    actor.update(rollout, 1, never)
    resumed = groot_policy()
    other = bfloat16(resumed, batch=16)
    resumed.load_state_dict(model)
    other.load_state_dict(state)
    other.update(rollout, 1, never)
    assert rounded(other)
    assert all(torch.equal(value, straight.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_a_state_of_the_library_alone_is_continued() -> None:
    policy = mlp_policy()
    rollout = rollout_of(policy, SIZE)
    before = autocast(policy)
    before.update(rollout, 0, never)
    other = mlp_policy()
    after = bfloat16(other)
    other.load_state_dict(weights(policy))
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    (metrics, expected), (found_metrics, found) = (update(actor, rollout) for actor in (before, after))
    assert found_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_the_noise_of_an_update_reaches_what_computes() -> None:
    policy = groot_policy(noise_anneal=True, noise_params=(0.8, 0.2, 5))
    actor = bfloat16(policy)
    assert isinstance(actor.computing, GrootPolicy)
    actor.update(rollout_of(policy, SIZE), 5, never)
    assert actor.computing.noise_level == 0.2


def test_a_gradient_that_is_not_finite_stops_before_any_step() -> None:
    policy = mlp_policy()
    actor = bfloat16(policy)
    assert actor.bfloat16 is not None
    rollout = rollout_of(policy, SIZE)
    actor.update(rollout, 0, never)
    before = [half.detach().clone() for half in actor.bfloat16.rounded.values()]
    state = copy.deepcopy(actor.state_dict()["optimizer"]["state"])
    stored = weights(policy)
    next(iter(actor.bfloat16.rounded.values())).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="gradient is not finite"):
        actor.update(rollout, 1, never)
    assert all(torch.equal(value, stored[name]) for name, value in policy.state_dict().items())
    assert all(torch.equal(half, kept) for half, kept in zip(actor.bfloat16.rounded.values(), before, strict=True))
    for index, kept in actor.state_dict()["optimizer"]["state"].items():
        assert all(torch.equal(kept[name], state[index][name]) for name in kept)
