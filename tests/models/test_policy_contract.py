"""What every policy promises, checked on each kind of policy."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from groot_toys import ACTION_DIM, STATE_DIM, keyed_noise, toy_observation, toy_policy
from tensordict import TensorDict

from regrasp.errors import UserError
from regrasp.models.contract import Action, Policy
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.inputs import InputNames
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.models.normalization import Statistics
from regrasp.models.registry import load_policy


def mlp_policy() -> MlpPolicy:
    samples = torch.randn(40, STATE_DIM, generator=torch.Generator().manual_seed(0))
    return MlpPolicy(
        state_dim=STATE_DIM,
        action_dim=ACTION_DIM,
        num_action_chunks=3,
        hidden=(16, 16),
        state=Statistics.of(samples),
        action=Statistics.of(samples[:, :ACTION_DIM]),
    )


POLICIES: dict[str, Callable[[], Policy]] = {
    "mlp": mlp_policy,
    "flow_sde": toy_policy,
    "flow_sde_joint": lambda: toy_policy(joint_logprob=True),
    "flow_cps": lambda: toy_policy(noise_method="flow_cps"),
    "flow_noise": lambda: toy_policy(noise_method="flow_noise"),
    "flow_noise_joint": lambda: toy_policy(noise_method="flow_noise", joint_logprob=True),
    "cached_context": lambda: toy_policy(trainable="head_without_context"),
    "two_views": lambda: toy_policy(num_views=2),
    "no_value_head": lambda: toy_policy(add_value_head=False),
}
BATCH = 5


@pytest.fixture(params=POLICIES)
def policy(request) -> Policy:
    """A policy with every parameter moved off its initial value, so that zero-initialised layers matter."""
    built = POLICIES[request.param]()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return built.eval()


def features_of(policy: Policy, batch: int = BATCH) -> TensorDict:
    observation = toy_observation(batch, num_views=max(policy.spec.num_views, 1))
    with torch.no_grad():
        return policy.encode(policy.prepare(observation))


def equal(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    """Whether two policies' values are the same; those without a value head are."""
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)


def act(policy: Policy, features: TensorDict, *, deterministic: bool = False, seed: int = 0) -> Action:
    with torch.no_grad():
        return policy.act(features, keyed_noise(len(features), seed), deterministic=deterministic)


def is_joint(policy: Policy) -> bool:
    return isinstance(policy, GrootPolicy) and policy.settings.rl_head_config.joint_logprob


def test_shapes_and_types(policy):
    action = act(policy, features_of(policy))
    spec = policy.spec
    chunk = (BATCH, spec.num_action_chunks, spec.action_dim)
    assert chunk == (BATCH, 3, ACTION_DIM)
    assert spec.state_dim == STATE_DIM
    assert action.actions.shape == action.log_probs.shape == chunk
    assert (action.values is not None) == ("value" in policy.offers)
    assert action.values is None or action.values.shape == (BATCH,)
    assert action.trace.batch_size == torch.Size([BATCH])
    for tensor in (action.actions, action.log_probs, *(() if action.values is None else (action.values,))):
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()


def test_the_first_ratio_is_one(policy):
    features = features_of(policy)
    action = act(policy, features)
    evaluation = policy.evaluate(features, action.trace)
    if is_joint(policy):  # K B rows in one call instead of B rows K times: another batch shape
        torch.testing.assert_close(evaluation.log_probs, action.log_probs, atol=1e-4, rtol=1e-5)
    else:
        assert torch.equal(evaluation.log_probs, action.log_probs)
    assert equal(evaluation.values, action.values)


def test_log_probabilities_vary_and_follow_the_noise(policy):
    features = features_of(policy)
    first, again, other = act(policy, features), act(policy, features), act(policy, features, seed=1)
    assert torch.equal(first.log_probs, again.log_probs)
    assert torch.equal(first.actions, again.actions)
    assert not torch.equal(first.actions, other.actions)
    assert first.log_probs.std() > 0.1


def test_gradients_reach_everything_after_the_features(policy):
    features = features_of(policy)
    evaluation = policy.evaluate(features, act(policy, features).trace)
    values = 0.0 if evaluation.values is None else evaluation.values.sum()
    (evaluation.log_probs.sum() + values).backward()
    for part in ("head", "value_head"):
        for name, parameter in policy.trainable(part):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    assert all(parameter.grad is None for _, parameter in policy.trainable("backbone"))


def test_values_agree_between_methods(policy):
    if not policy.trainable("value_head"):
        with pytest.raises(ValueError, match="value head"):
            policy.value(features_of(policy))
        return
    features = features_of(policy)
    assert equal(policy.value(features), act(policy, features).values)


def test_decode_is_the_deterministic_action_and_differentiable(policy):
    features = features_of(policy)
    head = getattr(policy, "config", None)
    shape = (head.action_horizon, head.action_dim) if policy.spec.num_views else (3, ACTION_DIM)  # type: ignore[union-attr]
    initial = keyed_noise(BATCH).normal("initial", *shape).requires_grad_()
    decoded = policy.decode(features, initial)
    action = act(policy, features, deterministic=True)
    assert torch.equal(decoded, action.actions)
    assert not action.log_probs.any()
    decoded.sum().backward()
    if policy.spec.num_views:
        assert initial.grad is not None
        assert initial.grad.abs().sum() > 0


def test_a_row_does_not_depend_on_the_batch(policy):
    together = act(policy, features_of(policy))
    observation = toy_observation(BATCH, num_views=max(policy.spec.num_views, 1)).rows([0, 1])
    with torch.no_grad():
        fewer = act(policy, policy.encode(policy.prepare(observation)))
    torch.testing.assert_close(fewer.actions, together.actions[:2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fewer.log_probs, together.log_probs[:2], atol=1e-4, rtol=1e-4)


def test_wrapped_methods_are_the_policys_own_in_a_copy_too(policy):
    calls: list[tuple[str, str, Policy]] = []

    def noting(label: str) -> Callable[..., Any]:
        def around(name: str, method: Any, *arguments: Any, **named: Any) -> Any:
            calls.append((label, name, method.__self__))
            return method(*arguments, **named)

        return around

    policy.wrap_methods(noting("inner"))
    policy.wrap_methods(noting("outer"))
    copied = copy.deepcopy(policy)
    for one in (policy, copied):
        calls.clear()
        act(one, features_of(one))
        assert [(label, name) for label, name, _ in calls] == [
            (label, name) for name in ("encode", "act") for label in ("outer", "inner")
        ]
        assert all(called is one for _, _, called in calls)


def test_parts_divide_the_parameters(policy):
    parts = [{name for name, _ in policy.trainable(part)} for part in ("backbone", "head", "value_head")]
    assert sum(len(part) for part in parts) == len(set.union(*parts))
    assert set.union(*parts) == {name for name, _ in policy.trainable("all")} == dict(policy.named_parameters()).keys()
    assert {name for name, _ in policy.trainable("head_without_context")} <= parts[1]
    with pytest.raises(ValueError, match="torso"):
        policy.trainable("torso")


def test_a_saved_policy_is_the_same(policy, tmp_path):
    policy.save(tmp_path / "model")
    if isinstance(policy, GrootPolicy):
        loaded = policy.settings.load(tmp_path / "model", InputNames()).eval()
    else:
        loaded = load_policy(tmp_path / "model").eval()
    before, after = policy.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert loaded.spec == policy.spec
    features = features_of(policy)
    again = features_of(loaded)
    assert all(torch.equal(again[str(name)], features[str(name)]) for name in features.keys())  # noqa: SIM118
    ours, theirs = act(policy, features), act(loaded, features)
    assert torch.equal(ours.actions, theirs.actions)
    assert equal(ours.values, theirs.values)
    observation = toy_observation(BATCH, num_views=max(policy.spec.num_views, 1))
    assert torch.equal(policy.predict(observation), loaded.predict(observation))


def test_a_saved_policy_loads_for_inference_without_settings(policy, tmp_path):
    policy.save(tmp_path)
    loaded = load_policy(Path(tmp_path)).eval()
    assert act(loaded, features_of(loaded), deterministic=True).actions.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "part", "name", "value", "complaint"),
    [
        ("flow_sde", "images", "main", np.zeros((2, 32, 32, 3), np.uint8), ["numpy.ndarray (2, 32, 32, 3) uint8"]),
        ("two_views", "images", "extra_0", np.zeros((2, 32, 32, 3), np.uint8), ["numpy.ndarray (2, 32, 32, 3)"]),
        ("mlp", "state", "state", np.zeros((2, STATE_DIM), np.float32), ["numpy.ndarray"]),
        ("mlp", "state", "state", [[0.0] * STATE_DIM] * 2, ["'list'"]),
        ("flow_sde", "images", "main", None, ["missing", "value:    null", "(B, H, W, 3) uint8"]),
        ("flow_sde", "images", None, None, ["missing", "a dict of torch tensors (B, H, W, 3) uint8"]),
        ("mlp", "state", None, torch.zeros(2, STATE_DIM), ["torch.Tensor torch.Size([2, 3])", "a dict of torch"]),
        ("mlp", "state", "state", None, ["missing", "(B, D) float32"]),
    ],
)
def test_a_prediction_needs_tensors(kind: str, part: str, name: str | None, value: Any, complaint: list[str]):
    policy = POLICIES[kind]()
    observation = toy_observation(2, num_views=max(policy.spec.num_views, 1))
    with pytest.raises(UserError) as caught:
        policy.predict(
            dataclasses.replace(
                observation, **{part: value if name is None else getattr(observation, part) | {name: value}}
            )
        )
    assert caught.value.key == (part if name is None else f"{part}.{name}")
    assert all(text in str(caught.value) for text in ("expected: a", "torch tensor", "fix:", *complaint))


@pytest.mark.parametrize("value", ["pick up the cube", None, [1, 2]])
def test_a_prediction_needs_a_list_of_instructions(value: Any):
    observation = dataclasses.replace(toy_observation(2), instruction=value)
    with pytest.raises(UserError, match="Instructions that are no list of texts") as caught:
        toy_policy().predict(observation)
    assert caught.value.key == "instruction"
    assert "put a single instruction into a list" in (caught.value.fix or "")


@pytest.mark.parametrize("kind", ["mlp", "flow_sde"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prediction_needs_a_finite_state(kind: str, value: float):
    observation = toy_observation(2)
    observation.state["state"][1, 2] = value
    with pytest.raises(UserError, match="State values that are not finite: 1") as caught:
        POLICIES[kind]().predict(observation)
    assert (caught.value.key, str(caught.value.value)) == ("state.state[1, 2]", str(value))


def test_a_state_policy_needs_no_images():
    observation = dataclasses.replace(toy_observation(2), images=None)  # type: ignore[arg-type]
    assert mlp_policy().predict(observation).shape == (2, 3, ACTION_DIM)


@pytest.mark.parametrize("kind", ["mlp", "flow_noise"])
def test_the_global_generator_is_left_alone(kind, tmp_path):
    state = torch.random.get_rng_state()
    policy = POLICIES[kind]()
    features = features_of(policy)
    policy.evaluate(features, act(policy, features).trace)
    policy.save(tmp_path)
    load_policy(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_copy_is_independent(policy):
    twin = copy.deepcopy(policy)
    features = features_of(policy)
    before = act(twin, features).actions
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    assert torch.equal(act(twin, features).actions, before)
    assert not torch.equal(act(policy, features).actions, before)
