"""Every key of the reference's `rl_head_config` changes something, or is reported as changing nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from groot_toys import ACTION_DIM, keyed_noise, toy_config, toy_observation, toy_policy, toy_processor
from tensordict import TensorDict

from regrasp.errors import UserError
from regrasp.experiment.load import load_config
from regrasp.models.config import RlHeadConfig
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.models.inputs import InputNames

REFERENCE = Path(__file__).parents[1] / "config" / "reference_experiment.yaml"
BLOCK = "actor.model.rl_head_config"
KEYS = tuple(yaml.safe_load(REFERENCE.read_text(encoding="utf-8"))["actor"]["model"]["rl_head_config"])
OURS = ("noise_color",)
BATCH = 32


def settings_of(*overrides: str) -> GrootModelConfig:
    """What the reference's file says, for the toy network."""
    settings = load_config(str(REFERENCE), [f"{BLOCK}.{text}" for text in overrides]).config.actor.model
    assert isinstance(settings, GrootModelConfig)
    return replace(settings, precision="fp32", num_action_chunks=3, action_dim=ACTION_DIM, value_head_hidden=(8,))


def dropout_config() -> GrootConfig:
    """The toy sizes with the published dropout."""
    content = toy_config().to_json()
    for name in ("diffusion_model_cfg", "vl_self_attention_cfg"):
        content["action_head_cfg"][name]["dropout"] = 0.2
    return GrootConfig.from_json(content)


def policy_of(settings: GrootModelConfig) -> GrootPolicy:
    """A policy whose values are not zero."""
    config = dropout_config()
    policy = GrootPolicy(config, toy_processor(config), settings)
    assert policy.value_head is not None
    for parameter in policy.value_head.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    return policy.eval()


def features_of(policy: GrootPolicy) -> TensorDict:
    with torch.no_grad():
        return policy.encode(policy.prepare(toy_observation(BATCH)))


def steps(policy: GrootPolicy) -> set[int]:
    return set(policy.act(features_of(policy), keyed_noise(BATCH)).trace["step"].tolist())


def noise_level(policy: GrootPolicy) -> float:
    policy.begin_update(200)
    return float(policy.noise_level)


@torch.no_grad()
def log_prob(policy: GrootPolicy) -> float:
    policy.begin_update(100)
    return float(policy.act(features_of(policy), keyed_noise(BATCH)).log_probs.sum())


@torch.no_grad()
def value(policy: GrootPolicy) -> float:
    return float(policy.value(features_of(policy)).sum())


def value_trains_the_head(policy: GrootPolicy) -> bool:
    policy.value(features_of(policy)).sum().backward()
    return policy.action_head.vlln.weight.grad is not None


@torch.no_grad()
def training_is_noisy(policy: GrootPolicy) -> bool:
    features = features_of(policy)
    trace = policy.act(features, keyed_noise(BATCH)).trace
    still, again = (policy.evaluate(features, trace).log_probs for _ in range(2))
    assert torch.equal(still, again), "nothing is dropped while acting"
    policy.train()
    moving, again = (policy.evaluate(features, trace).log_probs for _ in range(2))
    assert torch.equal(moving, again) == torch.equal(moving, still)
    return not torch.equal(moving, again)


class Effect(NamedTuple):
    """Values that a key may take, beside other settings, and what then differs from one to the next."""

    values: tuple[str, ...]
    observe: Callable[[GrootPolicy], Any]
    expected: tuple[Any, ...] | None = None
    """What is observed for each value; None: something else for each."""
    beside: tuple[str, ...] = ()


EFFECTS: dict[str, Effect] = {
    "joint_logprob": Effect(("false", "true"), steps, ({0, 1, 2, 3}, {-1})),
    "noise_method": Effect(("flow_sde", "flow_cps", "flow_noise"), log_prob),
    "ignore_last": Effect(("false", "true"), steps, ({0, 1, 2, 3}, {0, 1, 2})),
    "noise_anneal": Effect(("false", "true"), noise_level, (0.3, 0.5)),
    "noise_params": Effect(
        ("[0.7,0.3,400]", "[0.6,0.3,400]", "[0.7,0.3,200]"), log_prob, beside=("noise_anneal=true",)
    ),
    "noise_level": Effect(("0.3", "0.5"), log_prob),
    "noise_color": Effect(("0.0", "1.0"), log_prob),
    "detach_critic_input": Effect(("true", "false"), value_trains_the_head, (False, True)),
    "disable_dropout": Effect(("true", "false"), training_is_noisy, (False, True)),
    "use_vlm_value": Effect(("false", "true"), value),
    "value_vlm_mode": Effect(("mean_token", "first_token", "last_token", "attention"), value),
}
WITHOUT_EFFECT = {
    "safe_get_logprob": ("Gaussian density either way", ("false", "true")),
    "chunk_critic_input": ("only pi0's reads action tokens", ("false", "true")),
    "add_value_head": (f"{BLOCK}.add_value_head (False) differs from actor.model.add_value_head (True)", ("false",)),
}


def test_no_key_is_forgotten() -> None:
    assert sorted([*KEYS, *OURS]) == sorted([*EFFECTS, *WITHOUT_EFFECT, "padding_value"])


@pytest.mark.parametrize("key", EFFECTS)
def test_a_key_has_its_effect(key: str) -> None:
    effect = EFFECTS[key]
    observed = [effect.observe(policy_of(settings_of(*effect.beside, f"{key}={value}"))) for value in effect.values]
    if effect.expected is not None:
        assert observed == list(effect.expected)
    else:
        assert len(set(observed)) == len(observed)


def test_padding_value_is_the_length_of_the_whole_sequence(tmp_path: Path) -> None:
    toy_policy(add_value_head=False).save(tmp_path)
    for length in (850, 900):
        policy = settings_of(f"padding_value={length}").load(tmp_path, InputNames())
        assert policy.prepare(toy_observation(2))["input_ids"].shape == (2, length)


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_a_key_without_effect_is_reported(key: str) -> None:
    why, values = WITHOUT_EFFECT[key]
    for value in values:
        loaded = load_config(str(REFERENCE), [f"{BLOCK}.{key}={value}"])
        assert [text for text in loaded.warnings if why in text and f"{BLOCK}.{key}" in text]
        assert loaded.config.actor.model == load_config(str(REFERENCE)).config.actor.model


@pytest.mark.parametrize(
    ("name", "overrides", "idle"),
    [
        (str(REFERENCE), ["joint_logprob=true", "ignore_last=true"], "ignore_last"),
        (str(REFERENCE), ["noise_method=flow_noise", "noise_anneal=true"], "noise_anneal"),
        (str(REFERENCE), ["noise_color=1.0"], "noise_color"),  # its chunks have one action
        *(("pick_cube_ppo_mlp", [f"{key}={effect.values[-1]}"], key) for key, effect in EFFECTS.items()),
        ("pick_cube_ppo_mlp", ["padding_value=99"], "padding_value"),
        ("pick_cube_ppo_mlp", ["safe_get_logprob=true"], "safe_get_logprob"),
    ],
)
def test_a_key_that_other_keys_leave_without_effect_is_reported(name: str, overrides: list[str], idle: str) -> None:
    warnings = load_config(name, [f"{BLOCK}.{text}" for text in overrides]).warnings
    assert [text for text in warnings if f"{BLOCK}.{idle}" in text]


def test_other_keys_that_say_nothing_to_a_kind_of_model() -> None:
    (warning,) = load_config("pick_cube_ppo_mlp", ["actor.model.denoising_steps=8"]).warnings
    assert "actor.model.denoising_steps" in warning
    (warning,) = load_config("pick_cube_ppo_groot", ["actor.model.mlp.hidden=[8]"]).warnings
    assert "actor.model.mlp" in warning
    assert load_config("pick_cube_ppo_mlp").warnings == load_config("pick_cube_ppo_groot").warnings == ()


def test_the_references_name_of_learned_noise() -> None:
    loaded = load_config(str(REFERENCE), [f"{BLOCK}.noise_method=reinflow"])
    assert isinstance(loaded.config.actor.model, GrootModelConfig)
    assert loaded.config.actor.model.rl_head_config.noise_method == "flow_noise"


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"noise_method": "flow_cps", "noise_level": 1.1}, "noise_level"),
        ({"noise_method": "flow_cps", "noise_anneal": True, "noise_params": (1.5, 0.3, 10)}, "noise_params"),
        ({"noise_method": "flow_cps", "denoising_steps": 1}, "denoising_steps"),
        ({"noise_method": "flow_cps", "noise_color": 1.0}, "noise_color"),
        ({"ignore_last": True, "denoising_steps": 1}, "denoising_steps"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as error:
        toy_policy(**settings)
    assert str(error.value.key).endswith(key)


def test_settings_at_the_edge_are_accepted() -> None:
    toy_policy(noise_method="flow_cps", noise_level=1.0)
    toy_policy(noise_level=1.1)
    toy_policy(denoising_steps=1)
    toy_policy(denoising_steps=1, ignore_last=True, joint_logprob=True)


def test_the_last_step_is_left_out_where_it_is_deterministic_or_not_wanted() -> None:
    assert not RlHeadConfig().skips_last
    assert RlHeadConfig(ignore_last=True).skips_last
    assert not RlHeadConfig(ignore_last=True, joint_logprob=True).skips_last
    assert RlHeadConfig(noise_method="flow_cps").skips_last
    assert [error.key for error in RlHeadConfig(noise_method="flow_cps").problems(1)] == ["actor.model.denoising_steps"]
    assert not list(RlHeadConfig(noise_method="flow_cps").problems(2))
