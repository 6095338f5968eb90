"""What the environments of a run take of this machine, compared with what it has before their first process starts."""

from __future__ import annotations

import math
import resource
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regrasp.config.types import changed
from regrasp.device import available_cores, available_memory
from regrasp.envs.chunk import shared_bytes
from regrasp.envs.config import EnvConfig
from regrasp.envs.process.protocol import SHARED_MEMORY
from regrasp.envs.process.simulator import SimulatorSpec
from regrasp.envs.registry import env_type_of
from regrasp.envs.selection import ObservationSelection
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.logging.text import byte_size

Starts = Literal["train", "evaluation", "collect"]
_DESCRIPTORS_PER_PROCESS = 3
_OTHER_DESCRIPTORS = 64
_VIDEO_BYTES = 8 * 256 * 256 * 3
"""Of each step of a chunk while an evaluation is recorded."""


@dataclass(frozen=True)
class Needs:
    """What environments take."""

    num_envs: int
    num_processes: int
    shared: int | None
    """Bytes of shared memory; None where only the running simulator tells."""
    memory: int
    """Bytes of host memory, the shared ones included; a lower bound."""

    def __add__(self, other: Needs) -> Needs:
        shared = None if self.shared is None or other.shared is None else self.shared + other.shared
        num_envs, num_processes = self.num_envs + other.num_envs, self.num_processes + other.num_processes
        return Needs(num_envs, num_processes, shared, self.memory + other.memory)


@dataclass(frozen=True)
class Room:
    """What a machine has for them."""

    shared: int
    """Bytes that arrays shared with simulators can have."""
    memory: int
    """Bytes of host memory."""
    files: int | None
    """Files that a process may have open at once; None: any number."""

    @staticmethod
    def of_this_machine() -> Room:
        """What is free here now."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        files = None if limit == resource.RLIM_INFINITY else limit
        return Room(free_shared_memory(), available_memory(), files)


def needs_of(config: EnvConfig, name: str, spec: SimulatorSpec | None, max_chunk: int) -> Needs:
    """What the environments of `env.<name>` take."""
    env_type = env_type_of(config, name)
    num_processes = min(config.total_num_envs, config.num_workers or available_cores())
    shared = None
    if spec is not None:
        observations = ObservationSelection(config.mapping, spec.raw_observations, f"env.{name}.mapping").keys
        shared = shared_bytes(spec, max_chunk, observations, config.total_num_envs)
        shared += max_chunk * _VIDEO_BYTES if config.video_cfg.save_video else 0
    memory = config.total_num_envs * env_type.bytes_per_env + num_processes * env_type.bytes_per_process
    return Needs(config.total_num_envs, num_processes, shared, memory + (shared or 0))


def all_needs(
    config: ExperimentConfig, specs: Mapping[str, SimulatorSpec | None], starts: Starts | None
) -> dict[str, Needs]:
    """What the environments take that start together, by the name of their block.

    Args:
        config: The experiment.
        specs: What is known of `env.<name>`, by name.
        starts: Whose environments start.
    """
    names = {"train": ["train"], "collect": ["train"], "evaluation": ["eval"], None: []}[starts]
    if starts == "train" and config.runner.evaluates:
        names = ["eval"]
    elif starts == "train" and config.runner.val_check_interval > 0:
        names = ["train", "eval"]
    if starts == "collect" and config.collect is not None:
        num_envs = min(config.env.train.total_num_envs, config.collect.num_demos)
        config = changed(config, "env.train.total_num_envs", num_envs)
    chunk = config.actor.model.num_action_chunks
    return {name: needs_of(getattr(config.env, name), name, specs.get(name), chunk) for name in names}


def shortages(needs: Mapping[str, Needs], room: Room | None = None, where: str = "") -> Iterator[UserError]:
    """What a machine does not have of what environments take together.

    Args:
        needs: Those that start there.
        room: What it has; None: this machine.
        where: Its name, where there are several.
    """
    if not needs:
        return
    room = room or Room.of_this_machine()
    on, here = (f" on {where}", "there") if where else ("", "here")
    most = max(needs, key=lambda name: needs[name].memory)
    shared, free = sum(need.shared or 0 for need in needs.values()), room.shared
    if shared > free:
        yield UserError(
            f"Shared memory is too small{on}: {SHARED_MEMORY} has {byte_size(free)} free, and the environments exchange"
            f" {byte_size(shared)} with their simulators",
            key=f"env.{most}.total_num_envs",
            value=needs[most].num_envs,
            expected=f"at most about {_fewer(needs[most].num_envs, free / shared)} environments {here}",
            fix="lower it (--num_envs), or give the container more: `docker run --shm-size=8g` or `--ipc=host`",
        )
    memory, available = sum(need.memory for need in needs.values()), room.memory
    if memory > available:
        yield UserError(
            f"Memory is too small{on}: {byte_size(available)} are available, and the simulators alone take"
            f" {byte_size(memory)}",
            key=f"env.{most}.total_num_envs",
            value=needs[most].num_envs,
            expected=f"at most about {_fewer(needs[most].num_envs, available / memory)} environments {here}",
            fix="lower it (--num_envs); environments need not be as many as an update's episodes, which"
            " algorithm.rollout_epoch multiplies",
        )
    files = descriptors(needs)
    if room.files is not None and files > room.files:
        yield UserError(
            f"Too many simulator processes for the limit of open files{on}, {room.files}: about {files} would be open",
            key=f"env.{most}.num_workers",
            value=needs[most].num_processes,
            expected="about as many as cores",
            fix=f"lower env.{most}.num_workers, or raise the limit: `ulimit -n {files}`",
        )


def describe_needs(needs: Mapping[str, Needs], where: str = "") -> list[str]:
    """Lines for `--dry_run`; `where` says of which machine, if there are several."""
    lines = []
    for name, need in needs.items():
        known = "known only once they run" if need.shared is None else byte_size(need.shared)
        takes = f"about {byte_size(need.memory)} of host memory" if need.memory else "host memory known only then"
        processes = "process" if need.num_processes == 1 else "processes"
        lines.append(
            f"env.{name}{where}: {need.num_envs} environments in {need.num_processes} {processes};"
            f" shared memory: {known}; {takes}"
        )
    free, shared = byte_size(available_memory()), byte_size(free_shared_memory())
    return [*lines, f"this machine: {free} of host memory, {shared} in {SHARED_MEMORY}"] if lines else []


def descriptors(needs: Mapping[str, Needs]) -> int:
    """Files that are open at once."""
    return _OTHER_DESCRIPTORS + _DESCRIPTORS_PER_PROCESS * sum(need.num_processes for need in needs.values())


def free_shared_memory() -> int:
    """Bytes that arrays shared with simulators can have."""
    return shutil.disk_usage(SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path.cwd()).free


def _fewer(count: int, share: float) -> int:
    return max(1, math.floor(0.95 * count * share))
