"""REINFORCE++: hand-computed returns, an implementation in loops, and the group's baseline."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from regrasp.algorithms.reinforce import Reinforce, ReinforceConfig
from regrasp.errors import UserError
from regrasp.experiment.load import load_config
from regrasp.rollout.decisions import Decisions


def decisions(episodes: list[list[list[list[float]]]]) -> Decisions:
    """By column, by episode, by decision: rewards of the executed steps; the last episode of a column may be cut."""
    rows = []
    for column, of_column in enumerate(episodes):
        time = 0
        for episode in of_column:
            for index, steps in enumerate(episode):
                rows.append((column, time, steps, index == len(episode) - 1))
                time += 1
    width = max(len(steps) for _, _, steps, _ in rows)
    record = {
        "column": torch.tensor([row[0] for row in rows]),
        "time": torch.tensor([row[1] for row in rows]),
        "num_executed": torch.tensor([len(row[2]) for row in rows]),
        "rewards": torch.tensor([row[2] + [1e6] * (width - len(row[2])) for row in rows]),
        "ends": torch.tensor([row[3] for row in rows]),
        "log_probs": torch.zeros(len(rows), width, 1),
    }
    return Decisions(TensorDict({}, [len(rows)]), TensorDict(record, [len(rows)]), are_encoded=True)


def reinforce(**settings: Any) -> Reinforce:
    return ReinforceConfig(**{"normalize_advantages": False, **settings}).build()


def test_the_return_from_each_decision_on() -> None:
    prepared = reinforce(gamma=0.5).prepare(decisions([[[[1.0], [0.0], [4.0]], [[8.0]]]]))
    assert prepared["advantages"].tolist() == [1 + 0.25 * 4, 0.5 * 4, 4.0, 8.0]


def test_gamma_counts_steps_with_action_level() -> None:
    prepared = reinforce(gamma=0.5, reward_type="action_level").prepare(decisions([[[[1.0, 2.0], [4.0]]]]))
    assert prepared["advantages"].tolist() == [1 + 0.5 * 2 + 0.25 * 4, 4.0]


@pytest.mark.parametrize("baseline", [False, True])
def test_advantages_are_those_of_loops(baseline: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    episodes = [
        [[torch.randn(int(n), generator=generator).tolist() for n in torch.randint(1, 4, (4,), generator=generator)]]
        for _ in range(6)
    ]
    settings = {"use_reinpp_baseline": True, "group_size": 3} if baseline else {}
    config = ReinforceConfig(gamma=0.9, **settings)
    prepared = config.build().prepare(decisions(episodes))
    scores = [sum(sum(steps) for steps in of_column[0]) for of_column in episodes]
    raw = []
    for column, of_column in enumerate(episodes):
        for first in range(len(of_column[0])):
            total = sum(0.9**k * sum(steps) for k, steps in enumerate(of_column[0][first:]))
            raw.append(total - (statistics.mean(scores[column // 3 * 3 : column // 3 * 3 + 3]) if baseline else 0.0))
    expected = [(value - statistics.mean(raw)) / (statistics.pstdev(raw) + 1e-8) for value in raw]
    assert prepared["advantages"].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("algorithm.use_reinpp_baseline=true",), "algorithm.use_reinpp_baseline"),
        (("algorithm.group_size=4",), "algorithm.use_reinpp_baseline"),
        (
            ("algorithm.use_reinpp_baseline=true", "algorithm.group_size=4", "env.train.auto_reset=true"),
            "env.train.auto_reset",
        ),
    ],
)
def test_mistakes_are_told_with_the_configuration(overrides: tuple[str, ...], key: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("pick_cube_reinpp_groot", overrides)
    assert caught.value.key == key


def test_the_shipped_experiment_loads_without_a_warning() -> None:
    loaded = load_config("pick_cube_reinpp_groot")
    assert isinstance(loaded.config.algorithm, ReinforceConfig)
    assert loaded.warnings == ()
