"""Self-imitation: advantages over decisions that are alike, what is kept, and what a policy then learns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from regrasp.algorithms.base import ACTOR, Minibatch
from regrasp.algorithms.demo_buffer import DemoBufferConfig
from regrasp.algorithms.self_imitation import (
    LEVELS,
    WINDOW,
    SelfImitation,
    SelfImitationConfig,
    advantages_over_alike,
)
from regrasp.errors import UserError
from regrasp.experiment import ActorConfig, OptimConfig
from regrasp.experiment.fsdp import FsdpConfig
from regrasp.experiment.load import load_config
from regrasp.learner.learner import Learner
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.rollout.decisions import Decisions
from regrasp.seeding import KeyedNoise
from rl_toys import ACTION_DIM, CHUNK, SIZE, groot_policy, mlp_policy, never, rollout_of


@dataclass(frozen=True)
class Episode:
    """What each decision of one earns, and what of it was seen."""

    earned: Sequence[float]
    first: int = 0
    ends: bool = True


def decisions(*columns: Sequence[Episode]) -> Decisions:
    """Columns of episodes; a decision executes two steps of three, the second of which earns."""
    rows = [
        (number, time, episode.first + place, earned, episode.ends and place == len(episode.earned) - 1)
        for number, column in enumerate(columns)
        for time, (episode, place, earned) in enumerate(
            (episode, place, earned) for episode in column for place, earned in enumerate(episode.earned)
        )
    ]
    record = {
        "column": torch.tensor([row[0] for row in rows]),
        "time": torch.tensor([row[1] for row in rows]),
        "decision": torch.tensor([row[2] for row in rows]),
        "rewards": torch.tensor([[0.0, row[3], 1e6] for row in rows]),  # what was not executed must not matter
        "ends": torch.tensor([row[4] for row in rows]),
        "num_executed": torch.full((len(rows),), 2),
        "log_probs": torch.zeros(len(rows), 3, 1),
        "trace": TensorDict({"done": torch.arange(len(rows))[:, None].float()}, [len(rows)]),
    }
    inputs = TensorDict({"row": torch.arange(len(rows))}, [len(rows)])
    return Decisions(inputs, TensorDict(record, [len(rows)]), are_encoded=True)


def prepared(algorithm: SelfImitation, collected: Decisions) -> list[int]:
    """The rows that it imitates."""
    return algorithm.prepare(collected).table["row"].tolist()


@pytest.fixture
def algorithm() -> SelfImitation:
    """With a policy that has a density alone, and room for eight decisions."""
    made = SelfImitationConfig(capacity=8).build()
    made.parameters(mlp_policy(), "all")
    return made


def test_episodes_that_succeed_are_imitated_where_some_fail(algorithm: SelfImitation) -> None:
    collected = decisions([Episode([0, 0, 1])], [Episode([0, 0, 0])], [Episode([0, 1])])
    assert prepared(algorithm, collected) == [0, 1, 2, 6, 7]


def test_what_was_earned_before_counts_for_no_decision_after_it() -> None:
    columns = decisions([Episode([1, 0, 0, 0, 0, 1])], [Episode([1, 0, 0, 0, 0, 0])], [Episode([0, 0, 0, 0, 0, 0])])
    found = of(columns).reshape(3, 6)
    # At first all three are alike: they come to 2, 1 and 0 from there. Then two of them have earned 1.
    torch.testing.assert_close(found[:, 0], torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64) + found[:, 0].mean())
    torch.testing.assert_close(found[:2, 4:].mean(0), torch.zeros(2, dtype=torch.float64))
    assert (found[0, 1:] > 0).all()
    assert (found[1, 1:] < 0).all()
    assert not found[2, 4:].any()


def of(collected: Decisions) -> torch.Tensor:
    """Advantages of decisions, the second step of which earns."""
    places = {name: collected[name] for name in ("column", "time", "decision", "ends")}
    return advantages_over_alike(collected["rewards"][:, 1], **places)


def by_loops(columns: Sequence[Sequence[Episode]]) -> list[float]:
    """Advantages once more, decision by decision."""
    whole = [e for column in columns for e in column]
    highest = max(abs(sum(e.earned)) for e in whole) or 1.0

    def key(episode: Episode, place: int) -> tuple[int, int]:
        return (episode.first + place) // WINDOW, round(sum(episode.earned[:place]) / highest * LEVELS)

    alike: dict[tuple[int, int], list[float]] = {}
    for episode in whole:
        if episode.first == 0 and episode.ends:
            for place in range(len(episode.earned)):
                alike.setdefault(key(episode, place), []).append(sum(episode.earned[place:]))
    found = []
    for episode in whole:
        for place in range(len(episode.earned)):
            rest, others = sum(episode.earned[place:]), alike.get(key(episode, place), [])
            seen = episode.first == 0 and episode.ends
            found.append(rest - sum(others) / len(others) if seen else 0.0)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_advantages_equal_those_by_loops(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def number(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    columns = [
        [
            Episode([number(3) for _ in range(1 + number(9))], first=5 * (place == 0 and column % 3 == 0))
            for place in range(1 + number(3))
        ]
        + ([Episode([1.0, 1.0], ends=False)] if column % 2 else [])
        for column in range(8)
    ]
    found = of(decisions(*columns))
    torch.testing.assert_close(found, torch.tensor(by_loops(columns), dtype=torch.float64))
    order = torch.randperm(len(found), generator=generator)
    torch.testing.assert_close(of(decisions(*columns).rows(order)), found[order])


def test_an_episode_that_is_not_whole_is_neither_judged_nor_compared_with(algorithm: SelfImitation) -> None:
    cut = [Episode([5, 5], ends=False)], [Episode([5, 5], first=3)]
    collected = decisions([Episode([0, 1])], [Episode([0, 0])], *cut)
    assert prepared(algorithm, collected) == [0, 1]


def test_it_is_told_why_there_is_nothing(algorithm: SelfImitation) -> None:
    collected = decisions([Episode([0, 1])], [Episode([0, 1])])
    assert len(algorithm.prepare(collected)) == 0
    assert "every episode earned the same" in algorithm.why_nothing(collected)


def test_the_newest_decisions_are_kept(algorithm: SelfImitation) -> None:
    for _ in range(3):
        algorithm.prepare(decisions([Episode([0, 0, 1])], [Episode([0, 0, 0])], [Episode([0, 1])]))
    batches = [batch.decisions for batch in algorithm.minibatches(decisions(), 3, torch.Generator())]
    assert sum(map(len, batches)) == 4 * 8
    seen = sorted(row for batch in batches[:3] for row in batch.table["row"].tolist())
    assert seen == [0, 1, 2, 2, 6, 6, 7, 7]
    assert algorithm.summary(decisions(), {}) == {"imitation/share": 5 / 8, "imitation/kept": 8.0}


def test_what_is_kept_outlasts_a_checkpoint(algorithm: SelfImitation) -> None:
    algorithm.prepare(decisions([Episode([0, 0, 1])], [Episode([0, 0, 0])]))
    resumed = SelfImitationConfig(capacity=8).build()
    resumed.parameters(mlp_policy(), "all")
    resumed.load_state_dict(algorithm.state_dict())
    again, before = (
        [batch.decisions.to_dict() for batch in one.minibatches(decisions(), 2, torch.Generator().manual_seed(1))]
        for one in (resumed, algorithm)
    )
    assert str(again) == str(before)
    assert len(before) == 8


def demonstrated(count: int) -> Decisions:
    """Decisions of demonstrations, numbered from 100, with a column that rollouts have not."""
    inputs = TensorDict({"row": torch.arange(100, 100 + count), "decision": torch.arange(count)}, [count])
    trace = TensorDict({"done": torch.zeros(count, 1)}, [count])
    record = TensorDict(
        {"num_executed": torch.full((count,), 2), "trace": trace, "column": torch.arange(count)}, [count]
    )
    return Decisions(inputs, record, are_encoded=True)


@pytest.mark.parametrize(("share", "size", "count"), [(0.25, 4, 1), (0.3, 4, 2), (0.01, 4, 1), (0.99, 4, 3)])
def test_a_share_of_every_minibatch_is_of_demonstrations(share: float, size: int, count: int) -> None:
    algorithm = SelfImitationConfig(
        capacity=8, update_epoch=2, demo_buffer=DemoBufferConfig(load_path="demos", share=share)
    ).build()
    algorithm.parameters(mlp_policy(), "all")
    algorithm.demonstrate(demonstrated(5))
    algorithm.prepare(decisions([Episode([0, 0, 1])], [Episode([0, 0, 0])]))
    batches = [batch.decisions for batch in algorithm.minibatches(decisions(), size, torch.Generator().manual_seed(0))]
    rows = [batch.table["row"].tolist() for batch in batches]
    assert all(sum(row >= 100 for row in batch) == count for batch in rows)
    assert sorted(row for batch in rows for row in batch if row < 100) == [0, 0, 1, 1, 2, 2]
    assert all(len(batch["noise"]) == len(batch) for batch in batches)
    steps, _ = algorithm.config.optimizer_steps(6, size)
    assert steps == 2 * math.ceil(8 / (size - count))
    summary = algorithm.summary(decisions(), {})
    assert summary == {
        "imitation/share": 0.5,
        "imitation/kept": 3.0,
        "demo_buffer/size": 5.0,
        "demo_buffer/share": share,
    }
    assert all(not name.startswith("demo") for name in algorithm.state_dict())


def test_rates_fall_within_an_update_and_begin_anew_in_the_next(algorithm: SelfImitation) -> None:
    for update in range(2):
        algorithm.prepare(decisions([Episode([0, 0, 1])], [Episode([0, 0, 0])]))
        rates = [batch.rate for batch in algorithm.minibatches(decisions(), 3, torch.Generator())]
        assert len(rates) == 4 * (1 + update)
        assert rates == [0.5 + 0.5 * math.cos(math.pi * step / len(rates)) for step in range(len(rates))]


def test_steps_are_as_long_as_their_rates_say() -> None:
    """AdamW's first step moves a weight by the rate; the steps after it, at rate 0, by nothing."""
    config, policy = SelfImitationConfig(update_epoch=2), groot_policy()
    algorithm = config.build()
    collected = rollout_of(policy, SIZE, uneven=False)
    column = torch.arange(SIZE)
    collected = collected.with_columns(column=column, time=column * 0, decision=column * 0, ends=column >= 0)
    learner = learner_of(policy, algorithm)
    better = algorithm.prepare(collected)
    made: list[Minibatch] = []
    usual = algorithm.minibatches

    def counted(*arguments: Any) -> Iterator[Minibatch]:
        for number, batch in enumerate(usual(*arguments)):
            made.append(replace(batch, rate=float(number == 0)))
            yield made[-1]

    algorithm.minibatches = counted  # pyright: ignore[reportAttributeAccessIssue]
    before = {name: weight.clone() for name, weight in policy.named_parameters()}
    summary = learner.update(better, 0, never)
    assert len(made) > 1
    assert summary["actor/lr"] == 1e-3
    moved = torch.cat(
        [(weight - before[name]).abs().flatten() for name, weight in policy.named_parameters() if weight.requires_grad]
    )
    assert 0.9e-3 < moved.max() <= 1.05e-3  # a little weight decay


def test_a_density_is_made_more_likely_where_steps_were_executed() -> None:
    algorithm, policy = SelfImitationConfig().build(), mlp_policy()
    algorithm.parameters(policy, "all")
    features = TensorDict({"state": torch.randn(2, 3)}, [2])
    with torch.no_grad():
        action = policy.act(features, KeyedNoise(0, "data", [(0, 0, 0), (1, 0, 0)]), deterministic=False)
    record = TensorDict(
        {
            "log_probs": action.log_probs,
            "num_executed": torch.tensor([1, action.log_probs.shape[1]]),
            "trace": action.trace,
            "noise": torch.zeros(2, 4, 0),
        },
        [2],
    )
    micro = Decisions(features, record, are_encoded=True)
    loss, metrics = algorithm.loss(policy, micro, algorithm.shares(micro, micro), (ACTOR,))
    first, second = action.log_probs[0, 0].mean(), action.log_probs[1].mean()
    torch.testing.assert_close(loss, -(first + second) / 2)
    assert metrics["actor/imitation_loss"] == loss


def test_a_flow_imitates_what_it_executed() -> None:
    algorithm, policy = SelfImitationConfig().build(), groot_policy()
    algorithm.check(policy)
    assert "imitation" in policy.offers
    chunk = policy.spec.num_action_chunks * policy.spec.action_dim
    chain = torch.randn(4, 3, policy.spec.action_horizon, policy.config.action_head_cfg.max_action_dim)
    done = policy.stored_actions(TensorDict({"chain": chain}, [4]))
    assert done.shape == (4, chunk)
    torch.testing.assert_close(done[:, : policy.spec.action_dim], chain[:, -1, 0, : policy.spec.action_dim])
    assert policy.noise_width == math.prod(chain.shape[2:]) + 1


def test_what_was_demonstrated_to_a_flow_is_what_it_stores() -> None:
    policy = groot_policy()
    actions = torch.rand(3, policy.spec.num_action_chunks, policy.spec.action_dim)
    trace = policy.demonstrated(TensorDict({}, [3]), actions, KeyedNoise(0, "data", [(row, 0, 0) for row in range(3)]))
    normal = policy.processor.normalize_actions(actions)[..., : policy.spec.action_dim]
    torch.testing.assert_close(policy.stored_actions(trace), normal.flatten(1))


def test_a_flow_comes_to_do_what_it_imitates() -> None:
    algorithm, policy = SelfImitationConfig(update_epoch=10).build(), groot_policy()
    collected = rollout_of(policy, SIZE, uneven=False)
    column = torch.arange(SIZE)
    collected = collected.with_columns(column=column, time=column * 0, decision=column * 0, ends=column >= 0)
    learner = learner_of(policy, algorithm)
    better = algorithm.prepare(collected)
    assert 0 < len(better) < SIZE
    before = {name: weight.clone() for name, weight in policy.named_parameters()}
    losses = [learner.update(better, update, never)["actor/imitation_loss"] for update in range(10)]
    assert losses[-1] < 0.7 * losses[0]
    moved = {name for name, weight in policy.named_parameters() if not weight.equal(before[name])}
    assert moved
    assert all(name.startswith("action_head.") for name in moved)


def learner_of(policy: GrootPolicy, algorithm: SelfImitation) -> Learner:
    """Of the action head, with minibatches of eight."""
    model = GrootModelConfig(action_dim=ACTION_DIM, num_action_chunks=CHUNK, trainable="head")
    actor = ActorConfig(
        model=model, micro_batch_size=4, global_batch_size=8, optim=OptimConfig(lr=1e-3), fsdp_config=FsdpConfig()
    )
    return Learner(policy, algorithm, actor, num_updates=10, seed=0, device=torch.device("cpu"))


def test_what_critics_improve_cannot_imitate_itself() -> None:
    class Steered:
        offers = frozenset({"q_head"})

    with pytest.raises(UserError, match="does not offer: imitation"):
        SelfImitationConfig().build().check(Steered())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["algorithm.group_size=2"], "algorithm.group_size"),
        (["env.train.max_steps_per_rollout_epoch=40"], "env.train.max_steps_per_rollout_epoch"),
        (["runner.recompute_features=true"], "runner.recompute_features"),
        (["actor.model.add_q_head=true", "actor.model.add_value_head=false"], "actor.model.add_q_head"),
        (["rollout.recompute_logprobs=true"], "rollout.recompute_logprobs"),
        (["algorithm.capacity=0"], "algorithm.capacity"),
        (["algorithm.demo_buffer.load_path=demos", "algorithm.demo_buffer.share=1"], "algorithm.demo_buffer.share"),
        (["algorithm.demo_buffer.load_path=demos", "algorithm.demo_buffer.share=0"], "algorithm.demo_buffer.share"),
    ],
)
def test_a_setting_that_cannot_be(overrides: list[str], key: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("stack_cube_self_imitation_groot", overrides)
    assert key in str(caught.value)


def test_an_update_is_announced() -> None:
    config: Any = load_config("trocar_self_imitation_groot").config.algorithm
    count, text = config.optimizer_steps(1536, 256)
    assert count == math.ceil(config.capacity / 192) * config.update_epoch
    assert text.startswith(" of 192 kept decisions and 64 of demonstrations, ")
    assert text.endswith(f"at most {count} optimizer steps per update")
