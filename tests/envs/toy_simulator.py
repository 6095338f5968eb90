"""A simulator of a few lines of NumPy, started by its name as any other, which can be told to misbehave."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from regrasp.envs.process.simulator import ArraySpec, Outcome, Simulator, SimulatorSpec

INSTRUCTIONS = ("go left", "go right", "stay")
HEIGHT, WIDTH = 4, 6
# Fields of an environment's state.
SEED, TIME = 0, 1
POSITION = slice(2, 4)


def create(
    num_envs: int,
    max_episode_steps: int = 12,
    lengths: tuple[int, ...] = (5, 9, 100),
    saves_state: bool = True,
    fault: Mapping[str, Any] | None = None,
    offer: Mapping[str, Any] | None = None,
) -> Simulator:
    """The factory. `fault` is {"at": command, "kind": what, "seed": of which episode}, `offer` what it says wrongly."""
    return ToySimulator(num_envs, max_episode_steps, tuple(lengths), saves_state, fault or {}, offer or {})


class ToySimulator(Simulator):
    """A point moved by its actions; seed s terminates after `lengths[s % len(lengths)]` steps, with success if even."""

    def __init__(
        self,
        num_envs: int,
        limit: int,
        lengths: tuple[int, ...],
        saves_state: bool,
        fault: Mapping[str, Any],
        offer: Mapping[str, Any],
    ) -> None:
        self._offer = offer
        self._limit = limit
        self._lengths = lengths
        self._saves_state = saves_state
        self._fault = fault
        self._states = np.zeros((num_envs, 4))
        self._misbehave("create")

    def describe(self) -> SimulatorSpec:
        spec = SimulatorSpec(
            task_id="Toy-v0",
            raw_observations={
                "camera_images/main": ArraySpec((HEIGHT, WIDTH, 3), "uint8"),
                "camera_images/left": ArraySpec((HEIGHT, WIDTH, 3), "uint8"),
                "camera_images/right": ArraySpec((HEIGHT, WIDTH, 3), "uint8"),
                "policy/position": ArraySpec((2,), "float32"),
                "policy/clock": ArraySpec((), "int64"),
                "policy/imported_torch": ArraySpec((1,), "float32"),
                "policy/matrix": ArraySpec((2, 2), "float64"),
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
        return replace(spec, **self._offer)

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> list[int]:
        for row, seed in zip(rows, seeds, strict=True):
            self._misbehave("reset", seed)
            self._states[row] = [seed, 0, *np.random.default_rng(seed).normal(size=2)]
        if self._is("foreign instruction", "reset", seeds[0]):
            return [-1 for _ in seeds]
        return [seed % len(INSTRUCTIONS) for seed in seeds]

    def advance(self, actions: np.ndarray, running: np.ndarray) -> Outcome:
        states, lengths = self._states, np.array(self._lengths)
        seeds = states[:, SEED].astype(int)
        for seed in seeds[running]:
            self._misbehave("step", int(seed))
        states[running, TIME] += 1
        moved = actions * np.sin(states[:, POSITION] + states[:, TIME, None])
        states[running, POSITION] += moved[running]
        length = lengths[seeds % len(lengths)]
        rewards = actions.sum(1)
        rewards[[self._is("nan", "step", int(seed)) for seed in seeds]] = np.nan
        success = (states[:, TIME] == length) & (seeds % 2 == 0)
        info = {"distance": np.abs(states[:, 2])}
        return Outcome(rewards, states[:, TIME] >= length, np.zeros(len(states), bool), success, info)

    def observe(self, rows: Sequence[int], targets: Mapping[str, np.ndarray]) -> None:
        shade = {"main": 0, "left": 1, "right": 2}
        for row in rows:
            state = self._states[row]
            self._misbehave("observe", int(state[SEED]))
            values = {
                "policy/position": state[POSITION],
                "policy/clock": state[TIME],
                "policy/imported_torch": "torch" in sys.modules,
                "policy/matrix": state.reshape(2, 2),
            } | {f"camera_images/{name}": 10 * state[TIME] + number for name, number in shade.items()}
            for key, target in targets.items():
                target[row] = values[key]
            if self._is("nan", "observe", int(state[SEED])):
                targets["policy/position"][row] = np.nan

    def render(self, rows: Sequence[int], targets: Sequence[np.ndarray]) -> None:
        for row, target in zip(rows, targets, strict=True):
            target[:] = 0
            target[0, 0] = self._states[row, SEED], self._states[row, TIME], 255

    def expert(self, rows: Sequence[int], target: np.ndarray) -> None:
        target[rows, 0] = 0.5
        target[rows, 1] = self._states[rows, TIME]

    def save(self, target: np.ndarray) -> None:
        target[:] = self._states

    def load(self, source: np.ndarray) -> None:
        self._states[:] = source

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
