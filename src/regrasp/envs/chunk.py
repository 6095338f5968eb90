"""Runs the environments of a simulator's process in chunks of actions. Imports NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from regrasp.envs.process.protocol import size_of
from regrasp.envs.process.simulator import ArraySpec, Simulator, SimulatorSpec

OBSERVATION = "observation:"
INFO = "info:"
COMMANDS = ("attach", "reset", "step", "expert", "record", "save_state", "load_state")
"""Methods of `ChunkRunner` that the other process may call."""
_OWN_STATE = 3
"""What is kept here of an environment's state: the steps taken, whether it is in an episode, its instruction."""


def shared_arrays(spec: SimulatorSpec, max_chunk: int, observations: Sequence[str]) -> dict[str, ArraySpec]:
    """What `ChunkRunner` and our side share, each without the leading axis of environments.

    Args:
        spec: What `ChunkRunner.describe` gave.
        max_chunk: Longest action chunk, T.
        observations: Those that are to be computed, by `group/key`.
    """
    return {
        "actions": ArraySpec((max_chunk, spec.action_dim), "float32"),
        "rewards": ArraySpec((max_chunk,), "float32"),
        "num_executed": ArraySpec((), "int32"),
        **dict.fromkeys(("terminated", "truncated", "success"), ArraySpec((), "bool")),
        "instruction": ArraySpec((), "int32"),
        "expert_actions": ArraySpec((spec.action_dim,), "float32"),
        "state": ArraySpec((spec.state_size,), "float64"),
        **{INFO + name: ArraySpec((), "float32") for name in spec.info},
        **{OBSERVATION + key: spec.raw_observations[key] for key in observations},
    }


def shared_bytes(spec: SimulatorSpec, max_chunk: int, observations: Sequence[str], num_envs: int) -> int:
    """How much memory both sides share of so many environments."""
    arrays = shared_arrays(spec, max_chunk, observations)
    return size_of({name: ArraySpec((num_envs, *shape), dtype) for name, (shape, dtype) in arrays.items()})


class ChunkRunner:
    """Steps environments in chunks, into arrays that two processes share.

    A row stops at its end inside a chunk: its observation is written in that very step, and it stays ended until it is
    reset. Other observations are computed once per chunk, at its end.

    Args:
        simulator: The environments.
        num_envs: How many there are.
        ignore_terminations: Only the step limit ends an episode.
    """

    def __init__(self, simulator: Simulator, num_envs: int, *, ignore_terminations: bool) -> None:
        self._simulator = simulator
        self._ignore_terminations = ignore_terminations
        self._spec = simulator.describe()
        self._steps = np.zeros(num_envs, np.int64)
        self._running = np.zeros(num_envs, bool)
        self._held = np.zeros((num_envs, self._spec.action_dim), np.float32)
        self._frames: dict[int, np.ndarray] = {}
        self._arrays: Mapping[str, np.ndarray] = {}
        self._targets: dict[str, np.ndarray] = {}

    def describe(self) -> SimulatorSpec:
        """The simulator's offer, with room for the state kept here."""
        size = self._spec.state_size
        return replace(self._spec, state_size=size + _OWN_STATE if size else 0)

    def attach(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Use these arrays from now on, see `shared_arrays`; only observations among them are computed."""
        self._arrays = arrays
        self._targets = {
            name.removeprefix(OBSERVATION): array for name, array in arrays.items() if name.startswith(OBSERVATION)
        }

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """Start an episode in each of `rows`, and write its first observation."""
        self._arrays["instruction"][rows] = self._simulator.reset(rows, seeds)
        self._steps[rows] = 0
        self._running[rows] = True
        self._held[rows] = 0
        self._simulator.observe(rows, self._targets)

    def step(self, num_steps: int) -> None:
        """Execute the first `num_steps` of `actions` in every environment that is in an episode."""
        for name, values in self._arrays.items():
            if name in ("rewards", "num_executed", "terminated", "truncated", "success") or name.startswith(INFO):
                values[:] = 0
        for t in range(num_steps):
            if self._running.any():
                self._step_once(t)
        self._observe(self._running)

    def _step_once(self, t: int) -> None:
        arrays, running = self._arrays, self._running
        actions = np.where(running[:, None], arrays["actions"][:, t], self._held)
        if self._spec.hold_last_action:
            self._held = actions
        outcome = self._simulator.advance(actions, running)
        self._steps += running
        arrays["rewards"][running, t] = outcome.rewards[running]
        arrays["num_executed"][running] = t + 1
        arrays["success"][:] |= running & outcome.success
        for name, values in outcome.info.items():
            arrays[INFO + name][running] = values[running]
        recorded = [row for row in self._frames if running[row]]
        if recorded:
            self._simulator.render(recorded, [self._frames[row][t] for row in recorded])
        heeded = running & (not self._ignore_terminations)
        terminated = heeded & outcome.terminated
        at_limit = running & (self._steps >= self._spec.max_episode_steps)
        truncated = ~terminated & ((heeded & outcome.truncated) | at_limit)
        arrays["terminated"][:] |= terminated
        arrays["truncated"][:] |= truncated
        self._running = running & ~(terminated | truncated)
        self._observe(running & ~self._running)

    def _observe(self, mask: np.ndarray) -> None:
        if mask.any():
            self._simulator.observe(np.flatnonzero(mask).tolist(), self._targets)

    def expert(self) -> None:
        """Write the expert's actions for running rows, and zeros for the others."""
        target = self._arrays["expert_actions"]
        target[:] = 0
        self._simulator.expert(np.flatnonzero(self._running).tolist(), target)

    def record(self, rows: Sequence[int], arrays: Mapping[str, Any] | None = None) -> None:
        """Write a frame per step of `rows` into `frames` (R, T, H, W, 3) from now on; without rows, none."""
        self._frames = {} if arrays is None else dict(zip(rows, arrays["frames"], strict=True))

    def save_state(self) -> None:
        """Write every environment's state into `state`."""
        state = self._arrays["state"]
        self._simulator.save(state[:, :-_OWN_STATE])
        state[:, -_OWN_STATE:] = np.stack([self._steps, self._running, self._arrays["instruction"]], 1)

    def load_state(self) -> None:
        """Restore every environment from `state`, and write the present observations."""
        state = self._arrays["state"]
        self._simulator.load(state[:, :-_OWN_STATE])
        self._steps[:], self._running[:], self._arrays["instruction"][:] = state[:, -_OWN_STATE:].T
        self._simulator.observe(range(len(state)), self._targets)

    def close(self) -> None:
        """Release the simulator."""
        self._simulator.close()
