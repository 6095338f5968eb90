"""Turns simulators that step once into the chunked contract: one environment at a time, or all of them together.

Imports NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from regrasp.envs.process.simulator import INFO, OBSERVATION, Arrays, SimulatorSpec

_OUTCOMES = ("rewards", "num_executed", "terminated", "truncated", "success")


@dataclass(frozen=True)
class Outcome:
    """What one environment step led to."""

    reward: float
    terminated: bool
    success: bool
    info: Mapping[str, float] = field(default_factory=dict)
    truncated: bool = False
    """The task gave the episode up, which is no verdict on its final state."""


class SingleStepSimulator(Protocol):
    """Independent environments, addressed by row and stepped one control step at a time."""

    def describe(self) -> SimulatorSpec:
        """What this simulator offers."""
        ...

    def begin(self, row: int, seed: int) -> int:
        """Start an episode and return the index of its instruction."""
        ...

    def advance(self, row: int, action: np.ndarray) -> Outcome:
        """Execute one action (A,)."""
        ...

    def observe(self, row: int, targets: Mapping[str, np.ndarray]) -> None:
        """Write the observations named by `targets` (`group/key` to array) in place."""
        ...

    def frame(self, row: int, target: np.ndarray) -> None:
        """Write a video frame (H, W, 3) uint8 in place."""
        ...

    def expert(self, row: int) -> np.ndarray:
        """The scripted expert's action (A,)."""
        ...

    def save(self, row: int, target: np.ndarray) -> None:
        """Write the environment's complete state (float64) in place."""
        ...

    def load(self, row: int, source: np.ndarray) -> None:
        """Restore what `save` wrote."""
        ...

    def close(self) -> None:
        """Release the simulator."""
        ...


@dataclass(frozen=True)
class BatchOutcome:
    """What one step of all environments led to; each array is (N,)."""

    rewards: np.ndarray
    """float32."""
    terminated: np.ndarray
    """bool."""
    truncated: np.ndarray
    """bool, a limit of the task itself."""
    success: np.ndarray
    """bool."""


class BatchedSimulator(Protocol):
    """Environments that can only be stepped together, as on a GPU.

    It never resets an environment unless `begin` asks for it.
    """

    def describe(self) -> SimulatorSpec:
        """What this simulator offers."""
        ...

    def begin(self, rows: Sequence[int], seeds: Sequence[int]) -> Sequence[int]:
        """Start an episode in each row and return the indices of their instructions."""
        ...

    def advance(self, actions: np.ndarray) -> BatchOutcome:
        """Execute one action (N, A) in every environment."""
        ...

    def observe(self, rows: Sequence[int], targets: Mapping[str, np.ndarray]) -> None:
        """Write the present observations of `rows` into arrays (N, ...), by `group/key`, in place.

        Right after the step that ended an episode these are its true final observations.
        """
        ...

    def frames(self, rows: Sequence[int], targets: Sequence[np.ndarray]) -> None:
        """Write a video frame (H, W, 3) uint8 of each row in place."""
        ...

    def close(self) -> None:
        """Release the simulator."""
        ...


class ChunkedSimulator:
    """A `Simulator` over a `SingleStepSimulator`.

    A row stops at its end inside a chunk and stays ended until it is reset; observations are computed once, at the
    end of a row's chunk. With `ignore_terminations` only the step limit ends an episode. The saved state is the
    simulator's own, then the steps taken, whether the row is in an episode, and its instruction.
    """

    _OWN_STATE = 3

    def __init__(self, inner: SingleStepSimulator, num_envs: int, *, ignore_terminations: bool) -> None:
        self._inner = inner
        self._num_envs = num_envs
        self._ignore_terminations = ignore_terminations
        self._limit = inner.describe().max_episode_steps
        self._steps = np.zeros(num_envs, np.int64)
        self._running = np.zeros(num_envs, bool)
        self._frames: dict[int, np.ndarray] = {}
        self._arrays: Arrays = {}
        self._targets: list[dict[str, np.ndarray]] = []

    def describe(self) -> SimulatorSpec:
        """The inner simulator's offer, with room for the state kept here."""
        spec = self._inner.describe()
        return replace(spec, state_size=spec.state_size + self._OWN_STATE if spec.state_size else 0)

    def attach(self, arrays: Arrays) -> None:
        """Use these shared arrays."""
        self._arrays = arrays
        names = [name for name in arrays if name.startswith(OBSERVATION)]
        self._targets = [
            {name.removeprefix(OBSERVATION): arrays[name][row, ...] for name in names} for row in range(self._num_envs)
        ]

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """Start an episode in each row."""
        for row, seed in zip(rows, seeds, strict=True):
            self._arrays["instruction"][row] = self._inner.begin(row, seed)
            self._steps[row] = 0
            self._running[row] = True
            self._inner.observe(row, self._targets[row])

    def step(self, num_steps: int) -> None:
        """Execute a chunk in every running row."""
        for name, values in self._arrays.items():
            if name in _OUTCOMES or name.startswith(INFO):
                values[:] = 0
        for row in self._running_rows():
            self._run_chunk(row, num_steps)
            self._inner.observe(row, self._targets[row])

    def _run_chunk(self, row: int, num_steps: int) -> None:
        arrays = self._arrays
        for t in range(num_steps):
            outcome = self._inner.advance(row, arrays["actions"][row, t])
            self._steps[row] += 1
            arrays["rewards"][row, t] = outcome.reward
            arrays["num_executed"][row] = t + 1
            arrays["success"][row] |= outcome.success
            for name, value in outcome.info.items():
                arrays[INFO + name][row] = value
            if row in self._frames:
                self._inner.frame(row, self._frames[row][t])
            terminated = outcome.terminated and not self._ignore_terminations
            if terminated or outcome.truncated or self._steps[row] >= self._limit:
                arrays["terminated"][row] = terminated
                arrays["truncated"][row] = not terminated
                self._running[row] = False
                return

    def expert(self) -> None:
        """Write the expert's actions for running rows, and zeros for the others."""
        self._arrays["expert_actions"][:] = 0
        for row in self._running_rows():
            self._arrays["expert_actions"][row] = self._inner.expert(row)

    def record(self, rows: Sequence[int], frames: np.ndarray | None) -> None:
        """Write a frame per step of these rows from now on."""
        self._frames = {} if frames is None else dict(zip(rows, frames, strict=True))

    def save_state(self) -> None:
        """Write every row's state."""
        for row, target in enumerate(self._arrays["state"]):
            self._inner.save(row, target[: -self._OWN_STATE])
            target[-self._OWN_STATE :] = self._steps[row], self._running[row], self._arrays["instruction"][row]

    def load_state(self) -> None:
        """Restore every row and write its observation."""
        for row, source in enumerate(self._arrays["state"]):
            self._inner.load(row, source[: -self._OWN_STATE])
            steps, running, instruction = source[-self._OWN_STATE :]
            self._steps[row], self._running[row] = int(steps), bool(running)
            self._arrays["instruction"][row] = int(instruction)
            self._inner.observe(row, self._targets[row])

    def close(self) -> None:
        """Release the inner simulator."""
        self._inner.close()

    def _running_rows(self) -> list[int]:
        return np.flatnonzero(self._running).tolist()


class BatchedChunkSimulator:
    """A `Simulator` over a `BatchedSimulator`.

    A row stops at its end inside a chunk: its observation is written in that very step. Until it is reset it is given
    a hold action, and what that does is dropped. With `ignore_terminations` only the step limit ends an episode.

    Args:
        inner: The environments.
        num_envs: How many there are.
        ignore_terminations: Only the step limit ends an episode.
        hold_last_action: The hold action is the last one executed (right for absolute targets), else zeros (right for
            relative commands).
    """

    def __init__(
        self, inner: BatchedSimulator, num_envs: int, *, ignore_terminations: bool, hold_last_action: bool
    ) -> None:
        self._inner = inner
        self._ignore_terminations = ignore_terminations
        self._hold_last_action = hold_last_action
        self._spec = inner.describe()
        self._steps = np.zeros(num_envs, np.int64)
        self._running = np.zeros(num_envs, bool)
        self._hold = np.zeros((num_envs, self._spec.action_dim), np.float32)
        self._frames: dict[int, np.ndarray] = {}
        self._arrays: Arrays = {}
        self._targets: dict[str, np.ndarray] = {}

    def describe(self) -> SimulatorSpec:
        """The inner simulator's offer."""
        return self._spec

    def attach(self, arrays: Arrays) -> None:
        """Use these shared arrays."""
        self._arrays = arrays
        self._targets = {
            name.removeprefix(OBSERVATION): array for name, array in arrays.items() if name.startswith(OBSERVATION)
        }

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """Start an episode in each row."""
        index = list(rows)
        self._arrays["instruction"][index] = self._inner.begin(rows, seeds)
        self._steps[index] = 0
        self._running[index] = True
        self._hold[index] = 0
        self._inner.observe(index, self._targets)

    def step(self, num_steps: int) -> None:
        """Execute a chunk in every running row."""
        for name in _OUTCOMES:
            self._arrays[name][:] = 0
        for t in range(num_steps):
            if self._running.any():
                self._step_once(t)
        if self._running.any():
            self._inner.observe(_rows(self._running), self._targets)

    def _step_once(self, t: int) -> None:
        arrays, running = self._arrays, self._running
        actions = np.where(running[:, None], arrays["actions"][:, t], self._hold)
        if self._hold_last_action:
            self._hold = actions
        outcome = self._inner.advance(actions)
        self._steps += running
        arrays["rewards"][running, t] = outcome.rewards[running]
        arrays["num_executed"][running] = t + 1
        arrays["success"][:] |= running & outcome.success
        recorded = [row for row in self._frames if running[row]]
        if recorded:
            self._inner.frames(recorded, [self._frames[row][t] for row in recorded])
        counts = running & (not self._ignore_terminations)
        terminated = counts & outcome.terminated
        truncated = ~terminated & (
            (counts & outcome.truncated) | (running & (self._steps >= self._spec.max_episode_steps))
        )
        arrays["terminated"][:] |= terminated
        arrays["truncated"][:] |= truncated
        ended = terminated | truncated
        if ended.any():
            self._inner.observe(_rows(ended), self._targets)
            self._running = running & ~ended

    def expert(self) -> None:
        """Never called: the spec offers no expert."""
        raise NotImplementedError("environments that step together have no scripted expert")

    def record(self, rows: Sequence[int], frames: np.ndarray | None) -> None:
        """Write a frame per step of these rows from now on."""
        self._frames = {} if frames is None else dict(zip(rows, frames, strict=True))

    def save_state(self) -> None:
        """Never called: the spec's state has size 0."""
        raise NotImplementedError("environments that step together cannot be saved")

    def load_state(self) -> None:
        """Never called: the spec's state has size 0."""
        raise NotImplementedError("environments that step together cannot be restored")

    def close(self) -> None:
        """Release the inner simulator."""
        self._inner.close()


def _rows(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()
