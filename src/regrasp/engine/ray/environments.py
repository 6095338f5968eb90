"""Environments in a process of their own, and how the process that acts in them reaches them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from regrasp.engine.ray.nodes import settle
from regrasp.engine.ray.waiting import Patience, results
from regrasp.engine.ray.wire import Packed, PackedObservation, PackedStep, pack, unpack
from regrasp.envs.config import TimeoutsConfig
from regrasp.envs.contract import Capabilities, EnvSpec, Observation, Step, VecEnv

_MARGIN_S = 10.0
"""What a call may take longer than its simulator's deadline, before its process counts as hung."""
_SILENT = "The process of the environments does not answer within its deadline."


class EnvHost:
    """A Ray actor with vector environments; each is called by one process, one call at a time.

    Args:
        create: Makes each of them.
        folder: In which the command was called.
        address: Of the machine.
    """

    def __init__(self, create: Sequence[Callable[[], VecEnv]], folder: Path, address: str) -> None:
        settle(folder, address)
        self._create = create
        self._envs: list[VecEnv] = []

    def start(self) -> None:
        """Make all environments, at the same time."""
        with ThreadPoolExecutor(len(self._create)) as pool:
            self._envs = list(pool.map(lambda create: create(), self._create))

    def ready(self) -> None:
        """Answer, once this process is there."""

    def describe(self, number: int) -> tuple[EnvSpec, Capabilities]:
        """What an environment offers."""
        env = self._envs[number]
        return env.spec, env.capabilities

    def reset(self, number: int, env_ids: Sequence[int], seeds: Sequence[int]) -> PackedObservation:
        """See `VecEnv.reset`."""
        return PackedObservation.of(self._envs[number].reset(env_ids, seeds))

    def step(self, number: int, actions: Packed) -> PackedStep:
        """See `VecEnv.step`."""
        return PackedStep.of(self._envs[number].step(unpack(actions)["actions"]))

    def record(self, number: int, env_ids: Sequence[int], height: int, width: int) -> None:
        """See `VecEnv.record`."""
        self._envs[number].record(env_ids, height, width)

    def state_dict(self, number: int) -> Packed:
        """See `VecEnv.state_dict`."""
        return pack(self._envs[number].state_dict())

    def load_state_dict(self, number: int, state: Packed) -> PackedObservation:
        """See `VecEnv.load_state_dict`."""
        return PackedObservation.of(self._envs[number].load_state_dict(unpack(state)))

    def restart(self, number: int) -> None:
        """See `VecEnv.restart`."""
        self._envs[number].restart()

    def close(self) -> None:
        """Stop all simulators."""
        while self._envs:
            self._envs.pop().close()


class HostedVecEnv(VecEnv):
    """An environment of an `EnvHost`.

    Demonstrations are not recorded here: one process does that.

    Args:
        host: Its actor.
        number: Of the environment there.
        timeouts: Of the simulator.
    """

    def __init__(self, host: Any, number: int, timeouts: TimeoutsConfig) -> None:
        self._host = host
        self._number = number
        self._timeouts = timeouts
        self._pending: Any = None
        self.spec, self.capabilities = self._get(host.describe.remote(number), timeouts.startup_s)

    def reset(self, env_ids: Sequence[int], seeds: Sequence[int]) -> Observation:
        """See `VecEnv.reset`."""
        reply = self._host.reset.remote(self._number, list(map(int, env_ids)), list(map(int, seeds)))
        return self._get(reply, self._timeouts.reset_s).unpack()

    def step(self, actions: Tensor) -> Step:
        """See `VecEnv.step`."""
        self.begin_step(actions)
        return self.end_step()

    def begin_step(self, actions: Tensor) -> None:
        """See `VecEnv.begin_step`."""
        self._pending = self._host.step.remote(self._number, pack({"actions": actions}))

    def end_step(self) -> Step:
        """See `VecEnv.end_step`."""
        pending, self._pending = self._pending, None
        return self._get(pending, self._timeouts.step_s).unpack()

    def record(self, env_ids: Sequence[int], height: int = 256, width: int = 256) -> None:
        """See `VecEnv.record`."""
        self._get(self._host.record.remote(self._number, list(env_ids), height, width), self._timeouts.step_s)

    def state_dict(self) -> dict[str, Tensor]:
        """See `VecEnv.state_dict`."""
        return unpack(self._get(self._host.state_dict.remote(self._number), self._timeouts.step_s))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Observation:
        """See `VecEnv.load_state_dict`."""
        reply = self._host.load_state_dict.remote(self._number, pack(state))
        return self._get(reply, self._timeouts.reset_s).unpack()

    def restart(self) -> None:
        """See `VecEnv.restart`."""
        self._get(self._host.restart.remote(self._number), self._timeouts.startup_s)

    def close(self, deadline: float = 10.0) -> None:
        """The host stops its simulators itself."""

    def _get(self, reply: Any, deadline: float) -> Any:
        return results([reply], patience=Patience(deadline + _MARGIN_S, _SILENT))[0]
