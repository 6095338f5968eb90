from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from groot_toys import ACTION_DIM, STATE_DIM, keyed_noise, toy_observation
from torch.distributions import Normal

from regrasp.errors import UserError
from regrasp.models.inputs import InputNames
from regrasp.models.mlp.policy import MlpPolicy, load_mlp
from regrasp.models.mlp.settings import MlpModelConfig
from regrasp.models.normalization import Statistics


def build(state: Statistics | None = None, action: Statistics | None = None) -> MlpPolicy:
    return MlpPolicy(
        state_dim=STATE_DIM,
        action_dim=ACTION_DIM,
        num_action_chunks=2,
        hidden=(8,),
        initial_std=0.3,
        state=state,
        action=action,
    )


def test_log_probability_and_entropy_are_the_gaussian_s():
    policy = build()
    features = policy.encode(policy.prepare(toy_observation(4)))
    action = policy.act(features, keyed_noise(4))
    evaluation = policy.evaluate(features, action.trace)
    density = Normal(policy.actor(features["state"]).reshape(4, 2, ACTION_DIM), 0.3)
    torch.testing.assert_close(evaluation.log_probs, density.log_prob(action.trace["actions"]))
    torch.testing.assert_close(evaluation.entropy, density.entropy())


def test_actions_scatter_with_the_initial_standard_deviation():
    policy = build()
    features = policy.encode(policy.prepare(toy_observation(2000)))
    actions = policy.act(features, keyed_noise(2000)).actions
    assert actions.std().item() == pytest.approx(0.3, rel=0.05)


def test_states_and_actions_are_normalised():
    state = Statistics.of(torch.randn(100, STATE_DIM, generator=torch.Generator().manual_seed(0)) * 4 + 3)
    action = Statistics.of(torch.randn(100, ACTION_DIM, generator=torch.Generator().manual_seed(1)))
    policy = build(state=state, action=action)
    observation = toy_observation(3)
    inputs = policy.prepare(observation)
    torch.testing.assert_close(inputs["state"], (observation.state["state"] - state.mean) / state.std)
    decoded = policy.decode(inputs, torch.zeros(3, 2, ACTION_DIM))
    torch.testing.assert_close(decoded, ((action.max + action.min) / 2).expand(3, 2, ACTION_DIM))


def test_standard_deviation_is_learned():
    policy = build()
    assert policy.log_std.exp().mean().item() == pytest.approx(0.3)
    assert math.isclose(sum(p.numel() for _, p in policy.trainable("head")), 3 * 8 + 8 + 8 * 4 + 4 + 4)


def test_another_width_is_named(tmp_path):
    policy = build()
    observation = toy_observation(2)
    observation.state["state"] = torch.zeros(2, STATE_DIM + 1)
    with pytest.raises(UserError, match=str(STATE_DIM)):
        policy.prepare(observation)
    policy.save(tmp_path)
    with pytest.raises(UserError, match="num_action_chunks"):
        MlpModelConfig(num_action_chunks=3, action_dim=ACTION_DIM).load(tmp_path, InputNames())
    content = json.loads((tmp_path / "config.json").read_text())
    del content["hidden"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="hidden"):
        load_mlp(tmp_path)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"hidden": 0.5}, "hidden"),
        ({"hidden": [2**40]}, "hidden[0]"),
        ({"action_dim": -1}, "action_dim"),
        ({"state_dim": None}, "state_dim"),
        ({"state_dim": True}, "state_dim"),
        ({"num_action_chunks": []}, "num_action_chunks"),
        ({"statistics": 3}, "statistics"),
        ({"statistics": {"state": {}, "action": {}}}, "statistics.state.max"),
        ({"further": 1}, "further"),
        ({"hidden": [9]}, None),
        ({"hidden": [2**20] * 3}, None),
    ],
)
def test_a_config_that_is_damaged_is_refused(tmp_path: Path, change: dict[str, object], key: str | None):
    build().save(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError) as caught:
        load_mlp(tmp_path)
    assert caught.value.key == key
    assert str(tmp_path) in str(caught.value.file)


@pytest.mark.parametrize("value", [[0.0] * (STATE_DIM + 1), [float("nan")] * STATE_DIM, [1e39] * STATE_DIM, "text"])
def test_statistics_of_another_width_or_not_finite_are_refused(tmp_path: Path, value: object):
    build().save(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    content["statistics"]["state"]["mean"] = value
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        load_mlp(tmp_path)
    assert caught.value.key == "statistics.state.mean"
