"""GRPO: hand-computed groups, an implementation in loops, what is dropped, and a run without a value head."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from regrasp.algorithms.grpo import Grpo, GrpoConfig, episode_scores
from regrasp.errors import UserError
from regrasp.experiment.load import load_config
from regrasp.learner.learner import Learner
from regrasp.rollout.decisions import Decisions
from rl_toys import mlp_policy, rollout_of


def decisions(rewards: list[list[list[float]]]) -> Decisions:
    """One episode per column; a list of executed steps for each of its decisions."""
    rows = [(c, t, steps) for c, episode in enumerate(rewards) for t, steps in enumerate(episode)]
    width = max(len(steps) for _, _, steps in rows)
    record = {
        "column": torch.tensor([c for c, _, _ in rows]),
        "time": torch.tensor([t for _, t, _ in rows]),
        "num_executed": torch.tensor([len(steps) for _, _, steps in rows]),
        # What lies past the end of an episode must not matter.
        "rewards": torch.tensor([steps + [1e6] * (width - len(steps)) for _, _, steps in rows]),
        "log_probs": torch.zeros(len(rows), width, 1),
    }
    inputs = TensorDict({"row": torch.arange(len(rows))}, [len(rows)])
    return Decisions(inputs, TensorDict(record, [len(rows)]), are_encoded=True)


def grpo(**settings: Any) -> Grpo:
    return GrpoConfig(**{"group_size": 4, **settings}).build()


def of_outcomes(*outcomes: float) -> Decisions:
    """Episodes of one decision with these rewards."""
    return decisions([[[float(outcome)]] for outcome in outcomes])


def test_advantages_of_a_group_of_four() -> None:
    prepared = grpo().prepare(of_outcomes(1, 0, 0, 1))
    high = 0.5 / (1 / 3) ** 0.5  # the mean is 1/2, the variance of 1, 0, 0, 1 with divisor 3 is 1/3
    torch.testing.assert_close(prepared["advantages"], torch.tensor([high, -high, -high, high]), rtol=1e-5, atol=1e-5)


def test_groups_without_variance_are_dropped() -> None:
    prepared = grpo().prepare(of_outcomes(0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1))
    assert prepared["column"].tolist() == [4, 5, 6, 7]
    assert prepared.table["row"].tolist() == [4, 5, 6, 7]
    assert len(grpo().prepare(of_outcomes(0, 0, 0, 0))) == 0


def test_it_is_told_why_every_group_was_dropped() -> None:
    settings = {"filter_rewards": True, "rewards_lower_bound": 0.1, "rewards_upper_bound": 0.6}
    outcomes = of_outcomes(0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1)
    assert len(grpo(**settings).prepare(outcomes)) == 0
    text = grpo(**settings).why_nothing(outcomes)
    assert "Every one of the 3 groups was dropped: in 2 all episodes have the same score" in text
    assert "of 1 the mean score is outside of 0.1 to 0.6 (algorithm.filter_rewards)" in text
    assert "outside" not in grpo().why_nothing(of_outcomes(0, 0, 0, 0))


def test_groups_outside_of_the_bounds_are_dropped() -> None:
    outcomes = of_outcomes(1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0)
    kept = grpo(filter_rewards=True, rewards_lower_bound=0.3, rewards_upper_bound=0.6).prepare(outcomes)
    assert kept["column"].tolist() == [4, 5, 6, 7]
    assert len(grpo(rewards_lower_bound=0.3, rewards_upper_bound=0.6).prepare(outcomes)) == 12


def test_advantages_are_those_of_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = [
        [
            torch.randn(int(steps), generator=generator).tolist()
            for steps in torch.randint(1, 4, (3,), generator=generator)
        ]
        for _ in range(12)
    ]
    prepared = grpo(group_size=3).prepare(decisions(rewards))
    scores = [sum(sum(steps) for steps in episode) for episode in rewards]
    for column, advantage in zip(prepared["column"].tolist(), prepared["advantages"].tolist(), strict=True):
        group = scores[column // 3 * 3 : column // 3 * 3 + 3]
        expected = (scores[column] - statistics.mean(group)) / (statistics.stdev(group) + 1e-6)
        assert advantage == pytest.approx(expected, rel=1e-4)


def test_a_score_is_the_sum_of_what_was_executed() -> None:
    rollout = decisions([[[1.0, 2.0], [3.0]], [[4.0]]])
    scores = episode_scores(rollout["rewards"], rollout["num_executed"], rollout["column"])
    assert scores.tolist() == [6.0, 4.0]


def test_more_groups_are_drawn_up_to_the_bound() -> None:
    one = grpo(dynamic_sampling=2, rollout_epoch=1)
    assert one.wants_more(of_outcomes(0, 0, 0, 0, 1, 0, 1, 1), num_epochs=1)
    assert not one.wants_more(of_outcomes(1, 0, 0, 0, 1, 0, 1, 1), num_epochs=1)
    epochs = [0.0, 0, 0, 0, 1, 1, 1, 1]
    assert one.wants_more(of_outcomes(*epochs, *epochs), num_epochs=2)
    assert not one.wants_more(of_outcomes(*epochs, *epochs, *epochs), num_epochs=3)
    assert not grpo().wants_more(of_outcomes(*epochs), num_epochs=1)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("algorithm.group_size=7",), "algorithm.group_size"),
        (("algorithm.group_size=1",), "algorithm.group_size"),
        (("env.train.auto_reset=true",), "env.train.auto_reset"),
        (("algorithm.filter_rewards=true", "algorithm.rewards_lower_bound=0.9"), "algorithm.rewards_lower_bound"),
        (("algorithm.loss_type=actor_critic",), "algorithm.loss_type"),
    ],
)
def test_mistakes_are_told_with_the_configuration(overrides: tuple[str, ...], key: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("pick_cube_grpo_groot", overrides)
    assert caught.value.key == key


def test_keys_of_a_value_function_are_said_to_have_no_effect() -> None:
    loaded = load_config("pick_cube_ppo_groot", ["algorithm.adv_type=grpo", "algorithm.loss_type=actor"])
    assert loaded.config.actor.model.add_value_head is False
    assert any("algorithm.bootstrap_type" in warning for warning in loaded.warnings)
    assert load_config("pick_cube_grpo_groot").warnings == ()


def learner(policy: Any, config: GrpoConfig) -> Learner:
    actor = load_config("pick_cube_ppo_mlp", ["actor.global_batch_size=8", "actor.micro_batch_size=8"]).config.actor
    return Learner(policy, config.build(), actor, num_updates=1, seed=0, device=torch.device("cpu"))


def test_an_update_raises_the_probability_of_what_was_better() -> None:
    policy = mlp_policy()
    untouched = {name: value.detach().clone() for name, value in policy.trainable("value_head")}
    assert untouched
    rollout = rollout_of(policy, 8, uneven=False).with_columns(column=torch.arange(8))
    algorithm = GrpoConfig(group_size=4, update_epoch=1)
    prepared = algorithm.build().prepare(rollout)
    metrics = learner(policy, algorithm).update(prepared, 0, lambda: False)
    assert metrics["actor/first_ratio_error"] == 0.0
    assert not any(name.startswith("critic/") for name in metrics)
    with torch.no_grad():
        after = policy.evaluate(prepared.table, prepared.trace).log_probs.sum((1, 2))
    moved = after - prepared["log_probs"].sum((1, 2))
    assert float((moved * prepared["advantages"]).sum()) > 0
    assert all(torch.equal(value, untouched[name]) for name, value in policy.trainable("value_head"))


def test_an_update_without_a_group_to_learn_from_makes_no_step() -> None:
    policy = mlp_policy()
    rollout = rollout_of(policy, 8, uneven=False)
    flat = rollout.with_columns(column=torch.arange(8), rewards=torch.zeros_like(rollout["rewards"]))
    algorithm = GrpoConfig(group_size=4)
    one = learner(policy, algorithm)
    metrics = one.update(algorithm.build().prepare(flat), 0, lambda: False)
    assert metrics["actor/minibatches"] == 0.0
    assert one.num_steps == 0


def test_groups_need_a_simulator_that_seeds_single_environments() -> None:
    groups = ["algorithm.adv_type=grpo", "algorithm.loss_type=actor", "env.train.auto_reset=false"]
    with pytest.raises(UserError, match="cannot begin single environments alike") as caught:
        load_config("isaaclab_stack_cube_ppo_groot", [*groups, "algorithm.group_size=2"])
    assert (caught.value.key, caught.value.expected) == ("algorithm.group_size", "1 with env_type isaaclab")
