"""A vector environment whose simulators live in worker processes and write into shared memory."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regrasp.device import available_cores
from regrasp.envs.chunk import INFO, OBSERVATION, shared_arrays
from regrasp.envs.config import EnvConfig
from regrasp.envs.contract import Capabilities, EnvSpec, Observation, Step, VecEnv
from regrasp.envs.mapping import ObservationMapping
from regrasp.envs.process.process import SimulatorProcess
from regrasp.envs.process.protocol import SharedArrays
from regrasp.envs.process.simulator import ArraySpec
from regrasp.envs.quaternions import agreed_order
from regrasp.errors import SimulatorError, TrainingHaltedError, UserError

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS")
_IMAGE_AXES = 3
"""Axes of an image of whatever kind: height, width, channels."""


class RemoteVecEnv(VecEnv):
    """N environments split over worker processes.

    Args:
        config: The block `env.<name>`.
        name: "train" or "eval".
        max_chunk: Longest action chunk.
        factory: `module:callable` creating a `Simulator`; it is given `num_envs` besides `settings`.
        settings: JSON keyword arguments of the factory.
        num_workers: Processes; None for what the block says, else one per core this process may use.
        environment: Environment variables for the workers.
    """

    def __init__(
        self,
        config: EnvConfig,
        name: str,
        max_chunk: int,
        *,
        factory: str,
        settings: Mapping[str, Any],
        num_workers: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        num_envs = config.total_num_envs
        num_workers = min(num_envs, num_workers or config.num_workers or available_cores())
        bounds = [i * num_envs // num_workers for i in range(num_workers + 1)]
        self._slices = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
        self._max_chunk = max_chunk
        self._num_steps = 0
        """Of the chunk begun last."""
        self._frames: np.ndarray | None = None
        self._workers: list[SimulatorProcess] = []
        threads = dict.fromkeys(_THREAD_VARIABLES, "1")
        try:
            for part in self._slices:
                worker = SimulatorProcess(
                    f"{name} environments {part.start}-{part.stop - 1}",
                    factory,
                    {**settings, "num_envs": part.stop - part.start},
                    config.timeouts,
                    config.python,
                    {**threads, **(environment or {})},
                    ignore_terminations=config.ignore_terminations,
                    python_key=f"env.{name}.python",
                )
                self._workers.append(worker)
            simulator, *others = [worker.wait_until_ready() for worker in _as_they_reply(self._workers)]
            if any(other != simulator for other in others):
                raise SimulatorError(f"The processes of the {name} environments do not offer the same.")
            capabilities = Capabilities(
                **simulator.capabilities, saves_state=simulator.state_size > 0, has_expert=simulator.has_expert
            )
            self._mapping = ObservationMapping(config.mapping, simulator.raw_observations, f"env.{name}.mapping")
            order = agreed_order(config.mapping, simulator.quaternions, f"env.{name}.mapping")
            self._shapes = shared_arrays(simulator, max_chunk, self._mapping.keys)
            self._arrays = self._attach()
        except BaseException:
            self.close(deadline=1.0)
            raise
        self.capabilities = capabilities
        self.spec = EnvSpec(
            **vars(replace(simulator, quaternions=order)),
            num_envs=num_envs,
            state_dim=self._mapping.state_dim,
            cameras=self._mapping.camera_names,
        )

    def _attach(self) -> dict[str, np.ndarray]:
        """Share arrays of all environments, of which each worker maps its part."""
        count = self._slices[-1].stop
        shapes = {name: ArraySpec((count, *shape), dtype) for name, (shape, dtype) in self._shapes.items()}
        with contextlib.closing(SharedArrays.create(shapes)) as shared:
            for worker, part in zip(self._workers, self._slices, strict=True):
                worker.begin("attach", (shared, part))
            self._finish(self._workers)
        return shared.arrays

    def share_vectors(self) -> None:
        """Share new arrays, with every observation that is no image among them; see `VecEnv.share_vectors`."""
        for key, spec in self.spec.raw_observations.items():
            if len(spec.shape) < _IMAGE_AXES:
                self._shapes[OBSERVATION + key] = spec
        self._arrays = self._attach()

    def raw_observation(self) -> dict[str, Tensor]:
        """Copies of all shared observations, see `VecEnv.raw_observation`."""
        names = [name for name in self._shapes if name.startswith(OBSERVATION)]
        return {name.removeprefix(OBSERVATION): self._copy(name) for name in names}

    def reset(self, env_ids: Sequence[int], seeds: Sequence[int]) -> Observation:
        """Start one episode per given environment, see `VecEnv.reset`."""
        assert len(env_ids) == len(seeds)
        assert all(0 <= i < self.spec.num_envs for i in env_ids)
        begun = []
        for worker, part in zip(self._workers, self._slices, strict=True):
            chosen = [(i - part.start, s) for i, s in zip(env_ids, seeds, strict=True) if part.start <= i < part.stop]
            if chosen:
                rows, row_seeds = zip(*chosen, strict=True)
                worker.begin("reset", rows=[int(row) for row in rows], seeds=[int(seed) for seed in row_seeds])
                begun.append(worker)
        self._finish(begun)
        return self._observe()

    def step(self, actions: Tensor) -> Step:
        """Execute a chunk, see `VecEnv.step`."""
        self.begin_step(actions)
        return self.end_step()

    def begin_step(self, actions: Tensor) -> None:
        """Have the workers begin a chunk, see `VecEnv.begin_step`.

        Raises:
            TrainingHaltedError: An action is not finite; simulators turn such a command into an arbitrary motion.
        """
        num_steps = actions.shape[1]
        assert actions.shape == (self.spec.num_envs, num_steps, self.spec.action_dim), "actions are (N, T, A)"
        assert num_steps <= self._max_chunk
        values = actions.numpy()
        bad = np.flatnonzero(~np.isfinite(values).all((1, 2)))
        if bad.size:
            raise TrainingHaltedError(f"The action for environment {bad[0]} is not finite: {values[bad[0]].tolist()}.")
        self._arrays["actions"][:, :num_steps] = values
        self._num_steps = num_steps
        for worker in self._workers:
            worker.begin("step", num_steps=num_steps)

    def end_step(self) -> Step:
        """Wait for the workers, see `VecEnv.end_step`."""
        self._finish(self._workers)
        num_steps = self._num_steps
        return Step(
            observation=self._observe(),
            rewards=self._copy("rewards")[:, :num_steps],
            num_executed=self._copy("num_executed").long(),
            terminated=self._copy("terminated"),
            truncated=self._copy("truncated"),
            success=self._copy("success"),
            frames=None if self._frames is None else torch.from_numpy(self._frames[:, :num_steps]),
            info={name: self._copy(INFO + name) for name in self.spec.info},
        )

    def expert_actions(self) -> Tensor:
        """The scripted expert's actions (N, A)."""
        assert self.capabilities.has_expert
        self._all("expert")
        return self._copy("expert_actions")

    def record(self, env_ids: Sequence[int], height: int = 256, width: int = 256) -> None:
        """Ask for frames, in ascending order of `env_ids`; see `VecEnv.record`."""
        assert all(0 <= i < self.spec.num_envs for i in env_ids)
        recorded = sorted(env_ids)
        frames = ArraySpec((len(recorded), self._max_chunk, height, width, 3), "uint8")
        with contextlib.closing(SharedArrays.create({"frames": frames})) as shared:
            for worker, part in zip(self._workers, self._slices, strict=True):
                start, stop = (bisect.bisect_left(recorded, bound) for bound in (part.start, part.stop))
                rows = [row - part.start for row in recorded[start:stop]]
                worker.begin("record", (shared, slice(start, stop)) if rows else None, rows=rows)
            self._finish(self._workers)
        self._frames = shared.arrays["frames"] if recorded else None

    def state_dict(self) -> dict[str, Tensor]:
        """Simulator states (N, S) float64."""
        assert self.capabilities.saves_state
        self._all("save_state")
        return {"state": self._copy("state")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Observation:
        """Restore what `state_dict` returned."""
        own, kept = self._arrays["state"], state["state"]
        if kept.shape != own.shape or kept.dtype != torch.float64:
            raise UserError(
                f"The checkpoint holds the state of another simulator than {self.spec.task_id}",
                value=f"{kept.dtype} {tuple(kept.shape)}",
                expected=f"torch.float64 {own.shape}",
                fix="resume with the task and the simulator that the run was begun with",
            )
        self._arrays["state"][:] = state["state"].numpy()
        self._all("load_state")
        return self._observe()

    def close(self, deadline: float = 10.0) -> None:
        """Stop the workers."""
        end = time.monotonic() + deadline
        for worker in self._workers:
            worker.request_close()
        for worker in self._workers:
            worker.close(end - time.monotonic())
        self._workers, self._arrays, self._frames = [], {}, None

    def _all(self, op: str, **arguments: Any) -> None:
        for worker in self._workers:
            worker.begin(op, **arguments)
        self._finish(self._workers)

    @staticmethod
    def _finish(workers: Sequence[SimulatorProcess]) -> None:
        for worker in _as_they_reply(workers):
            worker.finish()

    def _copy(self, name: str) -> Tensor:
        """What is shared now, in memory of our own: the next step overwrites it."""
        return torch.from_numpy(self._arrays[name].copy())

    def _observe(self) -> Observation:
        raw = {key: self._arrays[OBSERVATION + key] for key in self._mapping.keys}
        chosen, known = self._arrays["instruction"], self.spec.instructions
        if chosen.min() < 0 or chosen.max() >= len(known):
            raise SimulatorError(
                f"{self.spec.task_id} gave its episodes the instructions {chosen.tolist()}, of the {len(known)} (from 0"
                " on) that it describes."
            )
        return self._mapping(raw, [known[i] for i in chosen])


def _as_they_reply(workers: Sequence[SimulatorProcess]) -> Iterator[SimulatorProcess]:
    """The workers in the order of their replies: a failure is reported at once, however long the others take."""
    waiting = {worker.fileno(): worker for worker in workers}
    while waiting:
        first = next(iter(waiting))
        for descriptor in wait(list(waiting), waiting[first].seconds_left) or [first]:
            yield waiting.pop(descriptor)  # pyright: ignore[reportArgumentType] - integers went in
