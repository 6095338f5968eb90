"""The local engine: what a rollout stores, what it costs the environments, and number formats."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from regrasp.engine.local import LocalEngine
from regrasp.envs.contract import Observation, VecEnv
from regrasp.envs.registry import create_env
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import load_config
from regrasp.learner.compilation import compile_policy
from regrasp.learner.precision import ActingPolicy, apply_precision
from regrasp.models.config import ModelConfig
from regrasp.models.contract import Policy
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.processing.processor import GrootProcessor
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.rollout.decisions import Decisions
from regrasp.seeding import KeyedNoise

CPU = torch.device("cpu")
SEED = 2
OVERRIDES = (
    "env.train.total_num_envs=4",
    "env.train.num_workers=1",
    "env.eval.total_num_envs=2",
    "env.eval.num_workers=1",
    "env.train.max_steps_per_rollout_epoch=8",
    "actor.global_batch_size=8",
    "actor.micro_batch_size=8",
    "algorithm.rollout_epoch=2",
    "algorithm.update_epoch=1",
    "pretrain.architecture.vision_width=24",
    "pretrain.architecture.language_width=24",
    "pretrain.architecture.head_width=24",
    "pretrain.architecture.head_layers=2",
)


def experiment(*overrides: str) -> ExperimentConfig:
    return load_config("pick_cube_ppo_groot", [*OVERRIDES, *overrides]).config


@pytest.fixture(scope="module")
def env() -> Iterator[VecEnv]:
    created = create_env(experiment().env.train, "train", max_chunk=4)
    yield created
    created.close()


def groot(config: ExperimentConfig) -> GrootPolicy:
    assert config.pretrain is not None
    architecture = config.pretrain.architecture
    sizes = GrootConfig.tiny(architecture)
    sentences = [f"pick up the {color} cube" for color in ("red", "green", "blue")]
    processor = GrootProcessor.fresh(
        sizes, sentences, num_views=1, state_dim=4, action_dim=4, text_length=architecture.text_length, text_first=True
    )
    assert isinstance(config.actor.model, GrootModelConfig)
    policy = GrootPolicy(sizes, processor, config.actor.model)
    policy.backbone.reset_parameters(torch.Generator().manual_seed(0))
    return perturbed(policy)


def mlp(seed: int = 0) -> MlpPolicy:
    return perturbed(MlpPolicy(state_dim=4, action_dim=4, num_action_chunks=4, hidden=(16,), seed=seed))


def perturbed(policy):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy


def engine(env: VecEnv, *overrides: str) -> LocalEngine:
    config = experiment(*overrides)
    return LocalEngine(config, groot(config), [env], SEED, CPU, Path("never-written"))


def updated(one: LocalEngine) -> dict[str, float]:
    """The metrics of a first update."""
    one.collect(0, never)
    return one.update(0, never)


def collected_by(one: LocalEngine) -> Decisions:
    assert one.decisions is not None
    return one.decisions


def never() -> bool:
    return False


@pytest.mark.parametrize(
    ("override", "stored"),
    [
        ("actor.model.trainable=head", {"context", "state"}),
        ("runner.recompute_features=true", {"images", "input_ids", "state"}),
        ("actor.model.trainable=all", {"images", "input_ids", "state"}),
    ],
)
def test_a_rollout_holds_features_or_images(env: VecEnv, override: str, stored: set[str]) -> None:
    one = engine(env, override)
    collected, decisions = one.collect(0, never), collected_by(one)
    assert set(decisions.inputs.keys()) == stored
    assert len(decisions) == collected.num_decisions == 4 * 2 * 2
    assert collected.num_steps == int(decisions["num_executed"].sum()) == 4 * 8 * 2
    assert set(decisions["versions"].tolist()) == {0}
    assert collected.seconds > 0


def test_recomputed_features_do_not_change_the_update(env: VecEnv) -> None:
    results = []
    for override in ("runner.recompute_features=false", "runner.recompute_features=true"):
        one = engine(env, override)
        metrics = updated(one)
        results.append((metrics, one.policy.state_dict()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4, abs=1e-6)
    for name, value in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], value, rtol=0, atol=1e-6)


def test_the_rollout_is_versioned_by_update(env: VecEnv) -> None:
    one = engine(env)
    one.collect(5, never)
    assert set(collected_by(one)["versions"].tolist()) == {5}


def test_an_interrupted_rollout_keeps_nothing_and_can_be_repeated(env: VecEnv) -> None:
    one = engine(env)
    state = one.rollouts._stages[0].state_dict()
    asked = iter([False, True])
    with pytest.raises(InterruptedError):
        one.collect(0, lambda: next(asked))
    one.rollouts._stages[0].load_state_dict(state)
    other = engine(env)
    for each in (one, other):
        each.collect(0, never)
    repeated, fresh = collected_by(one), collected_by(other)
    assert torch.equal(repeated["log_probs"], fresh["log_probs"])
    assert torch.equal(repeated["advantages"], fresh["advantages"])


def test_a_state_of_other_environments_is_refused(env: VecEnv) -> None:
    rollouts = engine(env).rollouts
    with pytest.raises(UserError, match="another number of environments"):
        rollouts.load_state({name: values[:-1] for name, values in rollouts.state().items()})


def observation(batch: int) -> Observation:
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (batch, 84, 84, 3), generator=generator, dtype=torch.uint8)
    state = torch.randn(batch, 4, generator=generator)
    return Observation({"main": images}, {"state": state}, ["pick up the red cube"] * batch)


def values(policy: Policy, batch: int = 8) -> torch.Tensor:
    with torch.no_grad():
        return policy.value(policy.encode(policy.prepare(observation(batch))))


def half(model: ModelConfig) -> ModelConfig:
    return replace(model, precision="bf16")


@pytest.mark.parametrize("make", [lambda _config: mlp(), groot], ids=["mlp", "groot"])
def test_half_precision_is_of_the_forward_pass_and_of_frozen_weights(make) -> None:
    config = experiment()
    policy = make(config)
    exact = values(policy)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    frozen = {name for name, _ in policy.trainable("backbone")}
    apply_precision(policy, half(config.actor.model), CPU)
    rounded = values(policy)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)
    for name, value in policy.state_dict().items():
        assert value.dtype == (torch.bfloat16 if name in frozen else before[name].dtype)
        assert torch.equal(value, before[name].to(value.dtype))
    assert policy.state_dict().keys() == before.keys()
    noise = KeyedNoise(0, "train", [(row, 0, 0) for row in range(8)])
    features = policy.encode(policy.prepare(observation(8)))
    action = policy.act(features, noise)
    assert action.actions.dtype == action.log_probs.dtype == torch.float32


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("actor.model.trainable=head_without_context",),
        ("actor.model.trainable=all",),
        ("actor.model.trainable=head", "actor.model.is_lora=true"),
    ],
    ids=["head", "head_without_context", "all", "lora"],
)
def test_rollouts_in_half_precision_see_what_training_sees_bit_for_bit(overrides: tuple[str, ...]) -> None:
    model = half(experiment(*overrides).actor.model)
    policy = groot(experiment(*overrides)).eval()
    apply_precision(policy, model, CPU)
    for _, parameter in (*policy.prepare_training(model.trainable), *policy.trainable("value_head")):
        parameter.requires_grad_(True)
    acting = ActingPolicy(policy, model, CPU)
    assert acting.policy is not policy
    with torch.no_grad():
        for parameter in (p for p in policy.parameters() if p.requires_grad):
            parameter += 0.01
    stale = decisions(acting.policy)
    acting.refresh()
    trained, copied = decisions(policy), decisions(acting.policy)
    assert trained.keys() == copied.keys()
    assert all(torch.equal(trained[name], copied[name]) for name in trained)
    assert not torch.equal(stale["actions"], copied["actions"])
    assert trained["context"].dtype == (torch.float32 if model.trainable == "all" else torch.bfloat16)


def test_all_passes_in_half_precision_read_the_same_weights(env: VecEnv) -> None:
    one = engine(env, "actor.model.precision=bf16")
    acting, computing = one.rollouts._acting.policy, one.learner.computing
    assert acting is not computing
    for of_acting, of_computing in zip(acting.parameters(), computing.parameters(), strict=True):
        assert of_acting is of_computing
    stale = decisions(acting)
    updated(one)
    one.rollouts._acting.refresh()
    assert not torch.equal(decisions(acting)["actions"], stale["actions"])
    assert computing.training
    assert not acting.training


def test_weights_put_into_an_engine_reach_every_pass(env: VecEnv) -> None:
    first, second = (engine(env, "actor.model.precision=bf16") for _ in range(2))
    state = first.rollouts._stages[0].state_dict()
    updated(first)
    second.policy.load_state_dict(first.policy.state_dict())
    second.learner.load_state_dict(copy.deepcopy(first.learner.state_dict()))
    for one in (first, second):
        one.rollouts._stages[0].load_state_dict(state)
        one.collect(1, never)
    assert torch.equal(collected_by(first)["log_probs"], collected_by(second)["log_probs"])
    metrics = [one.update(1, never) for one in (first, second)]
    assert metrics[0] == metrics[1]
    for name, value in first.policy.state_dict().items():
        assert torch.equal(second.policy.state_dict()[name], value)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_weights_given_make_another_policy_the_trained_one(env: VecEnv, precision: str) -> None:
    trained, other = (engine(env, f"actor.model.precision={precision}") for _ in range(2))
    updated(trained)
    own = dict(other.policy.named_parameters())
    given = dict(trained.training.weights())
    assert given.keys() == {name for name, weight in own.items() if weight.requires_grad}
    with torch.no_grad():
        for name, weight in given.items():
            assert not torch.equal(own[name], weight)
            own[name].copy_(weight)
    expected = trained.policy.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in other.policy.state_dict().items())


def decisions(policy: Policy, batch: int = 8) -> dict[str, torch.Tensor]:
    noise = KeyedNoise(0, "train", [(row, 0, 0) for row in range(batch)])
    with torch.no_grad():
        features = policy.encode(policy.prepare(observation(batch)))
        action = policy.act(features, noise)
    parts = {name: value for name, value in vars(action).items() if name != "trace"}
    return {**parts, "chain": action.trace["chain"], "context": features["context"]}


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.full), "bf16"])
def test_a_compiled_engine_collects_and_learns_the_same(
    env: VecEnv, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regrasp.engine.compiling.compile_policy", partial(compile_policy, backend="eager"))
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        one = engine(env, f"actor.model.precision={precision}", f"actor.model.compile={str(compiled).lower()}")
        results.append(updated(one))
    assert results[0] == pytest.approx(results[1], rel=1e-3, abs=1e-5)


def test_in_full_precision_rollouts_run_the_policy_itself() -> None:
    policy = mlp()
    assert ActingPolicy(policy, experiment().actor.model, CPU).policy is policy


def test_features_kept_on_the_host_do_not_change_the_update(env: VecEnv) -> None:
    results = []
    for where in ("device", "host"):
        one = engine(env, f"runner.feature_storage={where}")
        metrics = updated(one)
        results.append((metrics, one.policy.state_dict()))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[1][1][name], value) for name, value in results[0][1].items())


def test_full_precision_changes_nothing() -> None:
    config = experiment()
    policy = mlp()
    exact = values(policy)
    apply_precision(policy, config.actor.model, CPU)
    assert torch.equal(values(policy), exact)


def test_a_copy_of_a_policy_in_half_precision_is_another_policy() -> None:
    policy = mlp()
    apply_precision(policy, half(experiment().actor.model), CPU)
    copied = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    assert values(policy).count_nonzero() == 0
    assert values(copied).count_nonzero() == 8


def test_the_first_ratio_is_one_in_half_precision_too(env: VecEnv) -> None:
    # Four environments decide once, and one minibatch holds their four decisions: equal batch shape.
    batches = ("actor.global_batch_size=4", "actor.micro_batch_size=4", "algorithm.rollout_epoch=1")
    one = engine(env, "actor.model.precision=bf16", "env.train.max_steps_per_rollout_epoch=4", *batches)
    metrics = updated(one)
    assert metrics["actor/first_ratio_error"] == 0.0
