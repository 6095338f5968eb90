"""Advantages of whole rollouts against sums written out episode by episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from tensordict import TensorDict

from regrasp.algorithms.ppo import PpoConfig
from regrasp.models.contract import Action
from regrasp.rollout.buffers import RolloutBuffer
from regrasp.rollout.decisions import Decisions

CHUNK, ACTION_DIM = 3, 2
Ending = Literal["terminated", "truncated", "cut", "cut without a value"]


def inputs_of(rollout: Decisions) -> TensorDict:
    assert isinstance(rollout.inputs, TensorDict)
    return rollout.inputs


@dataclass
class Decision:
    """One decision of an episode; every number is drawn at random."""

    value: float
    rewards: list[float]
    """Of the executed steps."""


@dataclass
class Episode:
    """Decisions in one column from `start` on."""

    column: int
    start: int
    decisions: list[Decision]
    ending: Ending
    final_value: float


def draw_episode(generator: torch.Generator, column: int, start: int, length: int, ending: Ending) -> Episode:
    def numbers(count: int) -> list[float]:
        return torch.randn(count, generator=generator).tolist()

    full = [Decision(numbers(1)[0], numbers(CHUNK)) for _ in range(length - 1)]
    whole_chunk = ending.startswith("cut")
    executed = CHUNK if whole_chunk else int(torch.randint(1, CHUNK + 1, (1,), generator=generator))
    return Episode(column, start, [*full, Decision(numbers(1)[0], numbers(executed))], ending, numbers(1)[0])


def expected_advantages(episode: Episode, reward_type: str, gamma: float, lam: float) -> list[float]:
    """sum_l (product of the l discounts and lambdas between) delta_l, from its definition, forwards."""
    rewards, discounts = [], []
    for decision in episode.decisions:
        if reward_type == "chunk_level":
            rewards.append(sum(decision.rewards))
            discounts.append(gamma)
        else:
            rewards.append(sum(gamma**k * r for k, r in enumerate(decision.rewards)))
            discounts.append(gamma ** len(decision.rewards))
    bootstrap = episode.final_value if episode.ending in ("truncated", "cut") else 0.0
    values = [d.value for d in episode.decisions] + [bootstrap]
    deltas = [r + g * values[i + 1] - values[i] for i, (r, g) in enumerate(zip(rewards, discounts, strict=True))]
    advantages = []
    for first in range(len(deltas)):
        total, weight = 0.0, 1.0
        for later in range(first, len(deltas)):
            total += weight * deltas[later]
            weight *= discounts[later] * lam
        advantages.append(total)
    return advantages


def build(episodes: list[Episode], **settings: Any) -> tuple[Decisions, list[tuple[Episode, int]]]:
    """Feed the episodes to a buffer as a rollout does, time by time; also says which row is which decision."""
    buffer = RolloutBuffer()
    rows: list[tuple[Episode, int]] = []
    for time in range(max(e.start + len(e.decisions) for e in episodes)):
        acting = [(e, time - e.start) for e in episodes if e.start <= time < e.start + len(e.decisions)]
        acting.sort(key=lambda pair: pair[0].column)
        if not acting:
            continue
        rows += acting
        decisions = [e.decisions[i] for e, i in acting]
        last = torch.tensor([i == len(e.decisions) - 1 for e, i in acting])
        columns = torch.tensor([e.column for e, _ in acting])
        row_ids = torch.arange(len(rows) - len(acting), len(rows))
        # What lies past the end of an episode is noise that must not matter.
        rewards = torch.full((len(acting), CHUNK), 1e6)
        for reward, decision in zip(rewards, decisions, strict=True):
            reward[: len(decision.rewards)] = torch.tensor(decision.rewards)
        buffer.add(
            time,
            columns,
            TensorDict({"row": row_ids}, batch_size=[len(acting)]),
            Action(
                actions=torch.zeros(len(acting), CHUNK, ACTION_DIM),
                log_probs=row_ids[:, None, None].float().expand(-1, CHUNK, ACTION_DIM).clone(),
                values=torch.tensor([d.value for d in decisions]),
                trace=TensorDict({"row": row_ids}, batch_size=[len(acting)]),
            ),
            rewards,
            torch.tensor([len(d.rewards) for d in decisions]),
            last & torch.tensor([not e.ending.startswith("cut") for e, _ in acting]),
            version=7,
        )
    for episode in episodes:
        if episode.ending in ("truncated", "cut"):
            end = episode.start + len(episode.decisions) - 1
            buffer.bootstrap(end, torch.tensor([episode.column]), torch.tensor([episode.final_value]))
    config = PpoConfig(**{"gamma": 0.9, "gae_lambda": 0.8, "normalize_advantages": False, **settings})
    return config.build().prepare(buffer.build()), rows


def varied_episodes() -> list[Episode]:
    """Two rollout epochs of three environments: early ends, rests, episodes after each other in one column."""
    g = torch.Generator().manual_seed(3)
    return [
        draw_episode(g, 0, 0, 5, "cut"),
        draw_episode(g, 1, 0, 2, "terminated"),  # then rests: no auto-reset
        draw_episode(g, 2, 0, 3, "truncated"),
        draw_episode(g, 3, 0, 1, "terminated"),  # auto-reset: three episodes share this column
        draw_episode(g, 3, 1, 2, "truncated"),
        draw_episode(g, 3, 3, 2, "cut"),
        draw_episode(g, 4, 0, 4, "terminated"),
        draw_episode(g, 4, 4, 1, "cut"),
        draw_episode(g, 5, 0, 5, "cut without a value"),
    ]


@pytest.mark.parametrize("reward_type", ["chunk_level", "action_level"])
@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_advantages_are_those_of_each_episode_alone(reward_type: str, gamma: float, lam: float) -> None:
    rollout, rows = build(varied_episodes(), reward_type=reward_type, gamma=gamma, gae_lambda=lam)
    expected = torch.tensor([expected_advantages(e, reward_type, gamma, lam)[i] for e, i in rows])
    assert len(rollout) == sum(len(e.decisions) for e in varied_episodes())
    torch.testing.assert_close(rollout["advantages"], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rollout["returns"], expected + rollout["values"], rtol=1e-5, atol=1e-5)


def test_a_terminated_episode_has_nothing_after_it() -> None:
    g = torch.Generator().manual_seed(0)
    first = draw_episode(g, 0, 0, 1, "terminated")
    rollout, _ = build([first, draw_episode(g, 0, 1, 2, "cut")])
    decision = first.decisions[0]
    torch.testing.assert_close(rollout["advantages"][0], torch.tensor(sum(decision.rewards) - decision.value))
    torch.testing.assert_close(rollout["returns"][0], torch.tensor(sum(decision.rewards)))


def test_rows_keep_what_belongs_together() -> None:
    rollout, rows = build(varied_episodes())
    ids = torch.arange(len(rows))
    assert torch.equal(inputs_of(rollout)["row"], ids)
    assert torch.equal(rollout.trace["row"], ids)
    assert torch.equal(rollout["log_probs"][:, 0, 0], ids.float())
    assert rollout["num_executed"].tolist() == [len(e.decisions[i].rewards) for e, i in rows]
    assert rollout["versions"].tolist() == [7] * len(rows)


def test_advantages_are_normalised_over_all_decisions_at_once() -> None:
    plain, _ = build(varied_episodes())
    scaled, _ = build(varied_episodes(), normalize_advantages=True)
    mean, std = plain["advantages"].double().mean(), plain["advantages"].double().std(correction=0)
    torch.testing.assert_close(scaled["advantages"].double(), (plain["advantages"].double() - mean) / std)
    torch.testing.assert_close(scaled["returns"], plain["returns"])


@pytest.mark.parametrize("size", [1, 4, 7, 25, 100])
def test_minibatches_cover_every_decision_once(size: int) -> None:
    rollout, rows = build(varied_episodes())
    batches = list(rollout.minibatches(size, torch.Generator().manual_seed(1)))
    assert sorted(torch.cat([inputs_of(batch)["row"] for batch in batches]).tolist()) == list(range(len(rows)))
    assert max(len(batch) for batch in batches) <= size
    assert max(len(batch) for batch in batches) - min(len(batch) for batch in batches) <= 1
    for batch in batches:
        assert torch.equal(batch["advantages"], rollout["advantages"][inputs_of(batch)["row"]])
        assert torch.equal(batch.trace["row"], inputs_of(batch)["row"])


def test_the_order_of_minibatches_is_the_generators() -> None:
    rollout, rows = build(varied_episodes())

    def order(generator: torch.Generator) -> list[int]:
        return torch.cat([inputs_of(batch)["row"] for batch in rollout.minibatches(4, generator)]).tolist()

    generator = torch.Generator().manual_seed(1)
    first, second = order(generator), order(generator)
    assert first != second
    assert first == order(torch.Generator().manual_seed(1))
    assert first != list(range(len(rows)))


def test_split_keeps_the_order() -> None:
    rollout, rows = build(varied_episodes())
    parts = list(rollout.split(4))
    assert [len(part) for part in parts[:-1]] == [4] * (len(parts) - 1)
    assert torch.cat([inputs_of(part)["row"] for part in parts]).tolist() == list(range(len(rows)))


def test_moving_a_rollout_moves_every_part() -> None:
    rollout, _ = build(varied_episodes())
    moved = rollout.to(torch.device("meta"))
    assert {value.device.type for value in (*moved.columns.values(), moved.trace["row"])} == {"meta"}
