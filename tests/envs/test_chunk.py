"""Chunks of actions, against a simulator of a few lines whose environments can only step together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from regrasp.envs.chunk import ChunkRunner, shared_arrays
from regrasp.envs.process.simulator import ArraySpec, Outcome, Simulator, SimulatorSpec

NUM_ENVS, CHUNK, LIMIT = 4, 3, 5
ENDS = np.array([2, 100, 3, 100])
"""Step in which each row's task ends: row 0 by termination, row 2 by a limit of the task's own."""


class Counter(Simulator):
    """Counts each row's steps, never stops by itself, and remembers the actions that it was given."""

    def __init__(self, *, hold_last_action: bool) -> None:
        self.hold_last_action = hold_last_action
        self.steps = np.zeros(NUM_ENVS, np.int64)
        self.actions: list[list[float]] = []

    def describe(self) -> SimulatorSpec:
        raw = {"policy/steps": ArraySpec((), "int64")}
        return SimulatorSpec("Counter", raw, 1, ("count",), 0.1, LIMIT, 0, hold_last_action=self.hold_last_action)

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> list[int]:
        self.steps[rows] = 0
        return [0] * len(rows)

    def advance(self, actions: np.ndarray, running: np.ndarray) -> Outcome:
        self.actions.append(actions[:, 0].tolist())
        self.steps += 1
        ended = self.steps >= ENDS
        kinds = np.arange(NUM_ENVS) == 2
        return Outcome(self.steps.astype(np.float32), ended & ~kinds, ended & kinds, ended)

    def observe(self, rows: Sequence[int], targets: Mapping[str, np.ndarray]) -> None:
        targets["policy/steps"][rows] = self.steps[rows]

    def render(self, rows: Sequence[int], targets: Sequence[np.ndarray]) -> None:
        for row, target in zip(rows, targets, strict=True):
            target[:] = self.steps[row]


def make(*, ignore_terminations: bool = False, hold_last_action: bool = True):
    inner = Counter(hold_last_action=hold_last_action)
    simulator = ChunkRunner(inner, NUM_ENVS, ignore_terminations=ignore_terminations)
    shapes = shared_arrays(simulator.describe(), CHUNK, ["policy/steps"])
    arrays = {name: np.zeros((NUM_ENVS, *shape), dtype) for name, (shape, dtype) in shapes.items()}
    arrays["actions"][:] = np.arange(1, CHUNK + 1)[None, :, None] + 10 * np.arange(NUM_ENVS)[:, None, None]
    simulator.attach(arrays)
    simulator.reset(range(NUM_ENVS), range(NUM_ENVS))
    return inner, simulator, arrays


def test_rows_stop_at_their_own_ends() -> None:
    _, simulator, arrays = make()
    simulator.step(CHUNK)
    assert arrays["num_executed"].tolist() == [2, 3, 3, 3]
    assert arrays["rewards"].tolist() == [[1, 2, 0], [1, 2, 3], [1, 2, 3], [1, 2, 3]]
    assert arrays["terminated"].tolist() == [True, False, False, False]
    assert arrays["truncated"].tolist() == [False, False, True, False]
    assert arrays["success"].tolist() == [True, False, True, False]
    assert arrays["observation:policy/steps"].tolist() == [2, 3, 3, 3]
    simulator.step(CHUNK)
    assert arrays["num_executed"].tolist() == [0, 2, 0, 2]
    assert arrays["truncated"].tolist() == [False, True, False, True]
    assert not arrays["success"].any()
    assert arrays["observation:policy/steps"].tolist() == [2, 5, 3, 5]


def test_only_running_rows_decide_how_long_the_simulator_runs() -> None:
    inner, simulator, arrays = make()
    for _ in range(3):
        simulator.step(CHUNK)
    assert len(inner.actions) == LIMIT
    assert not arrays["num_executed"].any()
    simulator.reset([2], [7])
    assert arrays["observation:policy/steps"].tolist() == [2, 5, 0, 5]
    simulator.step(CHUNK)
    assert arrays["num_executed"].tolist() == [0, 0, 3, 0]


@pytest.mark.parametrize(("hold_last_action", "held"), [(True, 2.0), (False, 0.0)])
def test_an_ended_row_holds(hold_last_action: bool, held: float) -> None:
    inner, simulator, _ = make(hold_last_action=hold_last_action)
    simulator.step(CHUNK)
    simulator.step(CHUNK)
    assert [actions[0] for actions in inner.actions] == [1.0, 2.0, held, held, held]
    assert [actions[1] for actions in inner.actions] == [11.0, 12.0, 13.0, 11.0, 12.0]


def test_terminations_can_be_ignored() -> None:
    _, simulator, arrays = make(ignore_terminations=True)
    simulator.step(CHUNK)
    assert arrays["num_executed"].tolist() == [3] * 4
    assert arrays["success"].tolist() == [True, False, True, False]
    simulator.step(CHUNK)
    assert not arrays["terminated"].any()
    assert arrays["truncated"].all()


def test_recorded_rows_have_a_frame_per_step() -> None:
    _, simulator, _ = make()
    frames = np.zeros((2, CHUNK, 1, 1, 3), np.uint8)
    simulator.record([0, 3], {"frames": frames})
    simulator.step(CHUNK)
    assert frames[:, :, 0, 0, 0].tolist() == [[1, 2, 0], [1, 2, 3]]
