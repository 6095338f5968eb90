"""The update: against a plain reimplementation, split into micro-batches, and stopped where it must."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from regrasp.algorithms.base import Minibatch
from regrasp.errors import UserError
from regrasp.learner.compilation import filled_up
from regrasp.learner.learner import UNDER_WAY, AbandonedError, NonFiniteError
from regrasp.models.contract import Policy
from regrasp.models.lora_config import LoraConfig
from regrasp.rollout.decisions import Decisions
from regrasp.seeding import torch_generator
from rl_toys import CHUNK, SEED, SIZE, groot_policy, mlp_policy, never, rollout_of, weights, worker


@pytest.fixture(params=[0, 1], name="_steps_under_way")
def fixture_steps_under_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the next step begun before the numbers of the last one are read, as on a GPU, and after."""
    monkeypatch.setitem(UNDER_WAY, "cpu", request.param)


def changed(policy: Policy, before: Mapping[str, Tensor]) -> set[str]:
    return {name for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}


def is_value(name: str) -> bool:
    return name.startswith("value_head.")


LEVELS = ("token_level", "action_level", "chunk_level")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("make", [mlp_policy, groot_policy])
def test_micro_batches_of_a_compiled_size_train_the_same(make: Any, level: str) -> None:
    """As a GPU computes them: all of one size, with decisions that count nowhere at the end of the smaller ones."""
    plain, filled = make(), make()
    rollout = rollout_of(plain, SIZE)
    rollout = rollout.with_columns(weights=torch.linspace(0.5, 1.5, SIZE))
    options = {"batch": 10, "micro": 4, "logprob_type": level, "entropy_type": level, "target_kl": None}
    learners = [worker(policy, **options) for policy in (plain, filled)]
    sizes, backward = set(), learners[1].backward

    def seen(micro: Decisions, *rest: Any) -> dict[str, Tensor]:
        sizes.add(len(micro))
        return backward(micro, *rest)

    learners[1].backward = filled_up(seen, 4)
    metrics = [learner.update(rollout, 0, never) for learner in learners]
    assert sizes == {4}
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-3, abs=1e-6)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(filled.state_dict()[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [mlp_policy, groot_policy])
def test_the_first_ratio_is_exactly_one_at_equal_batch_shape(make: Any) -> None:
    policy = make()
    metrics = worker(policy, update_epoch=1).update(rollout_of(policy, SIZE), 0, never)
    assert metrics["actor/first_ratio_error"] == 0.0
    assert metrics["actor/ratio"] == 1.0
    assert metrics["actor/approx_kl"] == 0.0


@pytest.mark.parametrize("make", [mlp_policy, groot_policy])
def test_the_first_ratio_is_nearly_one_at_another_batch_shape(make: Any) -> None:
    policy = make()
    metrics = worker(policy, batch=12, micro=5 if make is mlp_policy else 4).update(rollout_of(policy, SIZE), 0, never)
    assert metrics["actor/first_ratio_error"] < 1e-4


@pytest.mark.parametrize("level", LEVELS)
def test_one_epoch_is_a_plain_ppo_step(level: str) -> None:
    """Written out with loops, from the papers, for the state policy."""
    policy = mlp_policy()
    rollout = rollout_of(policy, SIZE)
    noise = torch.randn(rollout["log_probs"].shape, generator=torch.Generator().manual_seed(8))
    rollout = rollout.with_columns(log_probs=rollout["log_probs"] + 0.05 * noise)
    expected = copy.deepcopy(policy)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in expected.named_parameters() if not is_value(n)], "lr": 2e-3},
            {"params": [p for n, p in expected.named_parameters() if is_value(n)], "lr": 5e-3},
        ],
        betas=(0.9, 0.95),
        weight_decay=0.01,
    )
    evaluated = expected.evaluate(rollout.table, rollout.trace)
    assert evaluated.values is not None
    policy_terms, value_terms = [], []
    for i in range(SIZE):
        executed = int(rollout["num_executed"][i])
        ratios = (evaluated.log_probs[i, :executed] - rollout["log_probs"][i, :executed]).double()
        if level == "chunk_level":
            ratios = ratios.sum().reshape(1)
        elif level == "action_level":
            ratios = ratios.sum(-1)
        advantage = float(rollout["advantages"][i])
        for ratio in ratios.exp().flatten():
            loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.3))
            policy_terms.append(torch.minimum(loss, torch.tensor(3.0 * abs(advantage))))
        for value in (
            evaluated.values[i],
            rollout["values"][i] + (evaluated.values[i] - rollout["values"][i]).clamp(-0.2, 0.2),
        ):
            error = (value - rollout["returns"][i]).abs()
            value_terms.append(torch.where(error < 0.5, error**2 / 2, 0.5 * (error - 0.25)))
    value_loss = torch.stack(value_terms).reshape(SIZE, 2).amax(1).mean()
    (torch.stack(policy_terms).mean() + value_loss).backward()
    for group in optimizer.param_groups:
        torch.nn.utils.clip_grad_norm_(group["params"], 0.3)
    optimizer.step()

    settings: dict[str, Any] = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.3, "clip_ratio_c": 3.0, "huber_delta": 0.5}
    actor = worker(policy, optim={"lr": 2e-3, "value_lr": 5e-3, "clip_grad": 0.3}, logprob_type=level, **settings)
    metrics = actor.update(rollout, 0, never)
    assert metrics["critic/value_loss"] == pytest.approx(value_loss.item(), rel=1e-5)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(policy.state_dict()[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("make", [mlp_policy, groot_policy])
def test_micro_batches_give_the_update_of_the_whole_batch(make: Any, level: str) -> None:
    settings: dict[str, Any] = {"logprob_type": level, "update_epoch": 2, "kl_beta": 0.1, "kl_penalty": "low_var_kl"}
    if make is mlp_policy:
        settings |= {"entropy_type": level, "entropy_bonus": 0.05, "value_epochs": 1}
    results = []
    for micro in (SIZE, 8, 5):
        policy = make()
        rollout = rollout_of(policy, SIZE)
        assert len(set(rollout["num_executed"].tolist())) == CHUNK, "chunks of unequal length"
        # The epsilon keeps AdamW from making an update out of rounding errors, where a gradient vanishes.
        actor = worker(policy, micro=micro, optim={"adam_eps": 1e-4}, **settings)
        results.append((actor.update(rollout, 0, never), weights(policy)))
    metrics, whole = results[0]
    for other_metrics, other in results[1:]:
        assert other_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)
        for name, value in whole.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.usefixtures("_steps_under_way")
@pytest.mark.parametrize("detach", [True, False])
def test_critic_warm_up_trains_the_value_head_alone(detach: bool) -> None:
    cases: tuple[tuple[Any, dict[str, Any]], ...] = (
        (mlp_policy, {"entropy_bonus": 0.1}),
        (lambda: groot_policy(detach_critic_input=detach), {}),
    )
    for make, more in cases:
        policy = make()
        rollout = rollout_of(policy, SIZE)
        actor = worker(policy, batch=16, optim={"critic_warmup_steps": 4, "weight_decay": 0.1}, update_epoch=2, **more)
        before = weights(policy)
        metrics = actor.update(rollout, 0, never)
        assert metrics["actor/grad_norm"] == 0.0
        assert changed(policy, before) == {name for name in before if is_value(name)}
        actor.update(rollout, 1, never)
        assert any(not is_value(name) for name in changed(policy, before))


@pytest.mark.usefixtures("_steps_under_way")
def test_value_epochs_touch_the_value_head_alone() -> None:
    policies = [groot_policy(detach_critic_input=False) for _ in range(2)]
    for policy, value_epochs in zip(policies, (0, 3), strict=True):
        rollout = rollout_of(policy, SIZE)
        # With a target that no step reaches, the policy's epochs stop before the first optimizer step.
        rollout["log_probs"].add_(1.0)
        before = weights(policy)
        actor = worker(policy, batch=16, value_epochs=value_epochs, target_kl=1e-9)
        actor.update(rollout, 0, never)
        expected = {name for name in before if is_value(name)} if value_epochs else set()
        assert changed(policy, before) == expected
        assert actor.num_steps == 0


def test_value_epochs_lower_the_value_loss() -> None:
    losses = {}
    for value_epochs in (0, 20):
        policy = mlp_policy()
        actor = worker(policy, value_epochs=value_epochs, value_clip=None, optim={"value_lr": 3e-2})
        losses[value_epochs] = actor.update(rollout_of(policy, SIZE), 0, never)["critic/value_loss"]
    assert losses[20] < 0.6 * losses[0]


@pytest.mark.usefixtures("_steps_under_way")
def test_target_kl_stops_before_the_step_that_follows() -> None:
    policy = mlp_policy()
    rollout = rollout_of(policy, SIZE)
    actor = worker(policy, update_epoch=50, target_kl=0.02, optim={"lr": 2e-3})
    metrics = actor.update(rollout, 0, never)
    assert 1 < actor.num_steps < 50
    assert metrics["actor/minibatches"] == actor.num_steps

    # Replayed without the target, the divergence passes it exactly after that many steps.
    replayed = mlp_policy()
    again = worker(replayed, update_epoch=actor.num_steps, optim={"lr": 2e-3})
    again.update(rollout, 0, never)
    assert changed(replayed, weights(policy)) == set()
    new = policy.evaluate(rollout.table, rollout.trace).log_probs
    executed = (torch.arange(CHUNK) < rollout["num_executed"][:, None])[..., None]
    log_ratio = ((new - rollout["log_probs"]) * executed).sum((1, 2))
    assert (log_ratio.exp() - 1 - log_ratio).mean().item() > 0.02


@pytest.mark.usefixtures("_steps_under_way")
@pytest.mark.parametrize("place", ["advantage", "weight"])
def test_a_loss_that_is_not_finite_stops_before_any_step(place: str) -> None:
    policy = mlp_policy()
    rollout = rollout_of(policy, SIZE)
    actor = worker(policy, micro=8)
    if place == "advantage":
        rollout["advantages"][3] = float("nan")
    else:
        with torch.no_grad():
            dict(policy.named_parameters())["actor.0.weight"][0, 0] = float("nan")
    before = weights(policy)
    with pytest.raises(NonFiniteError, match="loss is not finite") as caught:
        actor.update(rollout, 0, never)
    assert {n for n in changed(policy, before) if not before[n].isnan().any()} == set()
    assert len(caught.value.batch) == SIZE
    assert not actor.optimizer.state


@pytest.mark.usefixtures("_steps_under_way")
def test_a_gradient_that_is_not_finite_stops_before_any_step() -> None:
    policy = mlp_policy()
    rollout = rollout_of(policy, SIZE)
    actor = worker(policy)
    policy.log_std.register_hook(lambda gradient: gradient * float("inf"))
    before = weights(policy)
    with pytest.raises(NonFiniteError, match="gradient is not finite"):
        actor.update(rollout, 0, never)
    assert changed(policy, before) == set()


@pytest.mark.usefixtures("_steps_under_way")
def test_a_value_loss_that_is_not_finite_stops_before_any_step() -> None:
    policy = mlp_policy()
    rollout = rollout_of(policy, SIZE)
    rollout["returns"][0] = float("inf")
    before = weights(policy)
    with pytest.raises(NonFiniteError, match="critic loss is not finite"):
        worker(policy, value_epochs=1, huber_delta=1e30).update(rollout, 0, never)
    assert changed(policy, before) == set()


def test_the_penalty_pulls_towards_the_start() -> None:
    def moved_away_and_back(kl_beta: float) -> tuple[float, dict[str, float]]:
        policy = mlp_policy()
        actor = worker(policy, update_epoch=40, kl_beta=kl_beta, kl_penalty="low_var_kl", optim={"lr": 1e-2})
        start = weights(policy)
        bias = dict(policy.named_parameters())["actor.4.bias"]
        with torch.no_grad():
            bias += 0.3
        rollout = rollout_of(policy, SIZE)
        rollout["advantages"].zero_()
        metrics = actor.update(rollout, 0, never)
        return (bias - start["actor.4.bias"]).norm().item(), metrics

    distance, metrics = moved_away_and_back(1.0)
    free_distance, free_metrics = moved_away_and_back(0.0)
    assert distance < 0.8 * free_distance
    assert metrics["actor/kl_to_start"] > 0
    assert "actor/kl_to_start" not in free_metrics


def test_the_start_is_looked_at_with_the_noise_of_the_update() -> None:
    policy = groot_policy(noise_anneal=True, noise_params=(0.8, 0.2, 5))
    actor = worker(policy, kl_beta=1.0, kl_penalty="low_var_kl")
    policy.begin_update(5)
    metrics = actor.update(rollout_of(policy, SIZE), 5, never)
    assert metrics["actor/kl_to_start"] == pytest.approx(0.0, abs=1e-7)


def test_the_start_keeps_its_own_backbone_when_the_backbone_trains() -> None:
    policy = groot_policy(trainable="all")
    actor = worker(policy, trainable="all", kl_beta=1.0, kl_penalty="low_var_kl")
    with torch.no_grad():
        for _, parameter in policy.trainable("backbone"):
            parameter *= 1.5
    rollout = rollout_of(policy, SIZE, keep_features=False)
    assert actor.update(rollout, 0, never)["actor/kl_to_start"] > 1e-4


def test_the_start_shares_the_frozen_weights() -> None:
    policy = groot_policy()
    actor = worker(policy, kl_beta=1.0)
    assert actor.algorithm.start is not None
    own, copied = dict(policy.named_parameters()), dict(actor.algorithm.start.named_parameters())
    for name, parameter in own.items():
        assert (copied[name].data_ptr() == parameter.data_ptr()) == name.startswith("backbone."), name


def test_an_entropy_bonus_raises_the_entropy() -> None:
    def entropy_after(bonus: float) -> float:
        policy = mlp_policy()
        rollout = rollout_of(policy, SIZE)
        rollout["advantages"].zero_()
        metrics = worker(policy, update_epoch=5, entropy_bonus=bonus).update(rollout, 0, never)
        assert metrics["actor/entropy_loss"] > 0
        return policy.log_std.sum().item()

    assert entropy_after(0.1) > entropy_after(0.0)


def test_an_entropy_bonus_is_refused_where_there_is_no_entropy() -> None:
    policy = groot_policy()
    with pytest.raises(UserError, match="no entropy in closed form"):
        worker(policy, entropy_bonus=0.1).update(rollout_of(policy, SIZE), 0, never)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lr_scheduler": "constant"}, [1, 1, 1, 1]),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 3}, [1 / 4, 2 / 4, 3 / 4, 1]),
        ({"lr_scheduler": "linear"}, [1, 3 / 4, 2 / 4, 1 / 4]),
        ({"lr_scheduler": "linear", "min_lr_ratio": 0.5}, [1, 7 / 8, 6 / 8, 5 / 8]),
        ({"lr_scheduler": "cosine"}, [0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]),
    ],
)
def test_learning_rates_follow_the_schedule(settings: dict[str, Any], expected: list[float]) -> None:
    policy = mlp_policy()
    rollout = rollout_of(policy, SIZE)
    actor = worker(policy, num_updates=4, optim={"lr": 2e-4, "value_lr": 3e-4, **settings})
    metrics = [actor.update(rollout, update, never) for update in range(4)]
    assert [m["actor/lr"] for m in metrics] == pytest.approx([2e-4 * factor for factor in expected])
    assert [m["critic/lr"] for m in metrics] == pytest.approx([3e-4 * factor for factor in expected])


def test_minibatches_are_drawn_by_seed_and_update() -> None:
    policy = mlp_policy()
    rollout = rollout_of(policy, SIZE)
    seen: list[list[int]] = []
    actor = worker(policy, batch=8)
    rollout = rollout.with_columns(versions=torch.arange(SIZE))
    step = actor._step

    def spy(minibatch: Minibatch, *arguments: Any, **named: Any) -> Any:
        seen.append(minibatch.decisions["versions"].tolist())
        return step(minibatch, *arguments, **named)

    actor._step = spy
    for update in (0, 1):
        actor.update(rollout, update, never)
    for update, batches in enumerate((seen[:4], seen[4:])):
        order = torch.randperm(SIZE, generator=torch_generator(SEED, "data", update))
        assert batches == order.reshape(4, 8).tolist()


def test_the_optimizer_continues_where_it_was() -> None:
    straight = mlp_policy()
    rollout = rollout_of(straight, SIZE)
    actor = worker(straight, batch=8)
    actor.update(rollout, 0, never)
    state, model = copy.deepcopy(actor.state_dict()), weights(straight)
    actor.update(rollout, 1, never)

    resumed = mlp_policy()
    other = worker(resumed, batch=8)
    resumed.load_state_dict(model)
    other.load_state_dict(state)
    assert other.num_steps == 4
    other.update(rollout, 1, never)
    assert changed(resumed, weights(straight)) == set()


def test_a_resumed_run_has_the_configured_learning_rates() -> None:
    actor = worker(mlp_policy(), optim={"lr": 1e-3})
    policy = mlp_policy()
    lower = worker(policy, optim={"lr": 1e-5})
    lower.load_state_dict(actor.state_dict())
    assert lower.update(rollout_of(policy, SIZE), 0, never)["actor/lr"] == 1e-5


def test_an_optimizer_of_other_weights_is_refused() -> None:
    actor = worker(groot_policy())
    with pytest.raises(UserError, match="other trainable weights"):
        actor.load_state_dict(worker(groot_policy(trainable="all"), trainable="all").state_dict())


@pytest.mark.usefixtures("_steps_under_way")
@pytest.mark.parametrize("value_epochs", [0, 1])
def test_an_update_can_be_abandoned_between_minibatches(value_epochs: int) -> None:
    policy = mlp_policy()
    rollout = rollout_of(policy, SIZE)
    actor = worker(policy, batch=8, value_epochs=value_epochs)
    asked = iter([False, False, True])
    with pytest.raises(AbandonedError):
        actor.update(rollout, 0, lambda: next(asked))
    assert actor.num_steps == (0 if value_epochs else 2)


@pytest.mark.parametrize("settings", [{}, {"joint_logprob": True}, {"noise_method": "flow_noise"}])
def test_recomputed_features_give_the_update_of_cached_ones(settings: dict[str, Any]) -> None:
    results = []
    for recompute in (False, True):
        policy = groot_policy(**settings)
        rollout = rollout_of(policy, SIZE, keep_features=not recompute)
        assert ("context" in rollout.inputs.keys()) is not recompute  # noqa: SIM118 - a TensorDict iterates over rows
        actor = worker(policy, update_epoch=2)
        metrics = actor.update(rollout, 0, never)
        results.append((metrics, weights(policy)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(value, results[1][1][name]) for name, value in results[0][1].items())


@pytest.mark.parametrize("trainable", ["head", "head_without_context", "all"])
def test_what_is_trained_is_what_was_asked_for(trainable: str) -> None:
    policy = groot_policy(trainable=trainable)
    recompute = trainable == "all"
    before = weights(policy)
    asked = {name for name, _ in (*policy.trainable(trainable), *policy.trainable("value_head"))}
    actor = worker(policy, trainable=trainable, optim={"weight_decay": 0.1})
    actor.update(rollout_of(policy, SIZE, keep_features=not recompute), 0, never)
    touched = changed(policy, before)
    assert touched <= asked
    assert {name.split(".")[0] for name in touched} == {name.split(".")[0] for name in asked}
    slot = policy.processor.config.embodiment_id
    for name in (name for name in touched if name.endswith((".W", ".b"))):
        others = torch.arange(len(before[name])) != slot
        assert torch.equal(policy.state_dict()[name][others], before[name][others])


@pytest.mark.parametrize("trainable", ["head", "head_without_context"])
def test_adapters_learn_from_the_loss_of_ppo(trainable: str) -> None:
    policy = groot_policy(trainable=trainable, lora=LoraConfig(rank=2, alpha=4))
    asked = {name for name, _ in (*policy.trainable(trainable), *policy.trainable("value_head"))}
    actor = worker(policy, trainable=trainable, is_lora=True, micro=8, kl_beta=0.1, update_epoch=2)
    before = weights(policy)
    rollout = rollout_of(policy, SIZE, keep_features=False)
    metrics = actor.update(rollout, 0, never)
    assert metrics["actor/first_ratio_error"] < 1e-4
    assert metrics["actor/kl_to_start"] > 0
    touched = changed(policy, before)
    adapters = {name for name in touched if ".lora_" in name}
    assert touched - adapters <= asked
    assert {name.split(".")[-3] for name in adapters} == {"lora_A", "lora_B"}
    assert not any(name.startswith("backbone.") for name in touched - adapters)


def test_moments_of_adapters_of_another_size_are_refused() -> None:
    states = []
    for rank in (2, 3):
        policy = groot_policy(lora=LoraConfig(rank=rank, alpha=4))
        actor = worker(policy, is_lora=True)
        actor.update(rollout_of(policy, SIZE, keep_features=False), 0, never)
        states.append((actor, actor.state_dict()))
    with pytest.raises(UserError, match="other trainable weights"):
        states[1][0].load_state_dict(states[0][1])


def test_explained_variance_is_of_the_values_that_acted() -> None:
    policy = mlp_policy()
    rollout = rollout_of(policy, SIZE)
    metrics = worker(policy, batch=8, update_epoch=3).update(rollout, 0, never)
    residual = (rollout["returns"] - rollout["values"]).double()
    expected = 1 - float(residual.var(correction=0) / rollout["returns"].double().var(correction=0))
    assert metrics["critic/explained_variance"] == pytest.approx(expected, rel=1e-4)
