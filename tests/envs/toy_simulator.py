"""A simulator of a few lines of NumPy, started by its name as any other, which can be told to misbehave."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from regrasp.envs.chunk import ChunkedSimulator, Outcome
from regrasp.envs.process.simulator import SimulatorSpec

INSTRUCTIONS = ("go left", "go right", "stay")
HEIGHT, WIDTH = 4, 6
# Fields of an environment's state.
SEED, TIME = 0, 1
POSITION = slice(2, 4)


def create(
    num_envs: int,
    max_episode_steps: int = 12,
    lengths: tuple[int, ...] = (5, 9, 100),
    ignore_terminations: bool = False,
    saves_state: bool = True,
    fault: Mapping[str, Any] | None = None,
) -> ChunkedSimulator:
    """The factory. `fault` is {"at": command, "kind": what, "seed": of which episode}."""
    inner = ToySimulator(num_envs, max_episode_steps, tuple(lengths), saves_state, fault or {})
    return ChunkedSimulator(inner, num_envs, ignore_terminations=ignore_terminations)


class ToySimulator:
    """A point moved by its actions; seed s terminates after `lengths[s % len(lengths)]` steps, with success if even."""

    def __init__(
        self, num_envs: int, limit: int, lengths: tuple[int, ...], saves_state: bool, fault: Mapping[str, Any]
    ) -> None:
        self._limit = limit
        self._lengths = lengths
        self._saves_state = saves_state
        self._fault = fault
        self._states = np.zeros((num_envs, 4))
        self._misbehave("create")

    def describe(self) -> SimulatorSpec:
        return SimulatorSpec(
            task_id="Toy-v0",
            raw_observations={
                "camera_images/main": ((HEIGHT, WIDTH, 3), "uint8"),
                "camera_images/left": ((HEIGHT, WIDTH, 3), "uint8"),
                "camera_images/right": ((HEIGHT, WIDTH, 3), "uint8"),
                "policy/position": ((2,), "float32"),
                "policy/clock": ((), "int64"),
                "policy/imported_torch": ((1,), "float32"),
                "policy/matrix": ((2, 2), "float64"),
            },
            action_dim=2,
            instructions=INSTRUCTIONS,
            step_seconds=0.25,
            max_episode_steps=self._limit,
            state_size=4 if self._saves_state else 0,
            info=("distance",),
            has_expert=True,
            capabilities={"partial_reset": True},
        )

    def begin(self, row: int, seed: int) -> int:
        self._misbehave("reset", seed)
        self._states[row] = [seed, 0, *np.random.default_rng(seed).normal(size=2)]
        return seed % len(INSTRUCTIONS)

    def advance(self, row: int, action: np.ndarray) -> Outcome:
        state = self._states[row]
        seed = int(state[SEED])
        self._misbehave("step", seed)
        state[TIME] += 1
        state[POSITION] += action * np.sin(state[POSITION] + state[TIME])
        length = self._lengths[seed % len(self._lengths)]
        ended, success = state[TIME] >= length, state[TIME] == length and seed % 2 == 0
        reward = np.nan if self._is("nan", "step", seed) else float(action.sum())
        return Outcome(reward, bool(ended), bool(success), {"distance": float(abs(state[2]))})

    def observe(self, row: int, targets: Mapping[str, np.ndarray]) -> None:
        state = self._states[row]
        self._misbehave("observe", int(state[SEED]))
        shade = {"main": 0, "left": 1, "right": 2}
        values = {
            "policy/position": state[POSITION],
            "policy/clock": state[TIME],
            "policy/imported_torch": "torch" in sys.modules,
            "policy/matrix": state.reshape(2, 2),
        } | {f"camera_images/{name}": 10 * state[TIME] + number for name, number in shade.items()}
        for key, target in targets.items():
            target[...] = values[key]
        if self._is("nan", "observe", int(state[SEED])):
            targets["policy/position"][:] = np.nan

    def frame(self, row: int, target: np.ndarray) -> None:
        target[:] = 0
        target[0, 0] = self._states[row, SEED], self._states[row, TIME], 255

    def expert(self, row: int) -> np.ndarray:
        return np.array([0.5, self._states[row, TIME]], np.float32)

    def save(self, row: int, target: np.ndarray) -> None:
        target[:] = self._states[row]

    def load(self, row: int, source: np.ndarray) -> None:
        self._states[row] = source

    def close(self) -> None:
        self._misbehave("close")

    def _is(self, kind: str, at: str, seed: int) -> bool:
        return self._fault.get("kind") == kind and self._fault["at"] == at and self._fault.get("seed") in (None, seed)

    def _misbehave(self, at: str, seed: int = 0) -> None:
        kind = self._fault.get("kind", "")
        if not self._is(kind, at, seed):
            return
        match kind:
            case "raise":
                raise RuntimeError(f"the motor of seed {seed} burnt out")
            case "exit":
                print("license expired", flush=True)
                os._exit(7)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                print("waiting for a sensor", flush=True)
                time.sleep(600)
            case "block":  # a long native call that keeps Python's lock
                ctypes.PyDLL(None).sleep(600)
            case "print":
                print("x" * 200_000, flush=True)
            case "spawn":
                subprocess.Popen(["sleep", "600"])
