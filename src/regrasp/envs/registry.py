"""Simulators by `env_type`. A new one registers here in one line, or by an entry point of group `regrasp.envs`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrasp.envs.config import EnvConfig, EnvName
from regrasp.envs.env_type import EnvType, FactoryEnvType
from regrasp.errors import UserError
from regrasp.extras import entry_points

if TYPE_CHECKING:
    from regrasp.envs.contract import VecEnv
    from regrasp.envs.process.simulator import SimulatorSpec

_GROUP = "regrasp.envs"
_BUILT_IN = (
    EntryPoint("mujoco", "regrasp.envs.mujoco.env:Mujoco", _GROUP),
    EntryPoint("isaaclab", "regrasp.envs.isaaclab.env:IsaacLab", _GROUP),
    EntryPoint("gymnasium", "regrasp.envs.gymnasium.env:Gymnasium", _GROUP),
)
"""What the entry points name: a class that extends `EnvType`, or a function that is called as its `create_env`."""


class EnvTypes(Mapping[str, EnvType[Any]]):
    """Every simulator by its `env_type`; one is imported when it is asked for."""

    def __init__(self) -> None:
        self._entries = {entry.name: entry for entry in (*_BUILT_IN, *entry_points(group=_GROUP))}

    def __getitem__(self, name: str) -> EnvType[Any]:
        found = self._entries[name].load()
        return found() if isinstance(found, type) and issubclass(found, EnvType) else FactoryEnvType(found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def of_task(self, task_id: str) -> str | None:
        """The `env_type` that a task's name tells, None where it tells none."""
        return next((name for name, env_type in self.items() if env_type.owns_task(task_id)), None)


def env_type_of(config: EnvConfig, name: str) -> EnvType[Any]:
    """The simulator of `env.<name>`.

    Raises:
        UserError: It is unknown.
    """
    known = EnvTypes()
    if config.env_type in known:
        return known[config.env_type]
    raise unknown_env_type(config.env_type, f"env.{name}")


def unknown_env_type(value: object, key: str) -> UserError:
    """The error for a simulator that is not known.

    Args:
        value: Its name.
        key: The block that has it.
    """
    return UserError(
        "Unknown simulator",
        key=f"{key}.env_type",
        value=value,
        expected=f"one of {', '.join(sorted(EnvTypes()))}",
        fix=f"correct the name, or install the package that offers it through the entry point group {_GROUP}",
    )


def evaluation_task(task_id: str) -> str:
    """The variant of a task that is for evaluation, or the task itself where it has none."""
    known = EnvTypes()
    owner = known.of_task(task_id)
    return task_id if owner is None else known[owner].evaluation_task(task_id)


def same_task(one: str, other: str) -> bool:
    """Whether two names mean one task: equal, spellings of it, or its variant for evaluation."""
    known, names = EnvTypes(), []
    for task in (one, other):
        owner = known.of_task(task)
        of_it = (task,) if owner is None else known[owner].namesakes(task)
        names.append({*of_it, *map(evaluation_task, of_it)})
    return not names[0].isdisjoint(names[1])


def experiment_folders(overrides: Sequence[str]) -> Iterator[Path]:
    """Folders in which installed tasks bring experiments of their own."""
    for env_type in EnvTypes().values():
        yield from env_type.experiment_folders(overrides)


def create_env(config: EnvConfig, name: EnvName, max_chunk: int, seed: int = 0) -> VecEnv:
    """Start the environments of `env.<name>`.

    Args:
        config: The block `env.train` or `env.eval`.
        name: "train" or "eval".
        max_chunk: Longest action chunk that will be stepped.
        seed: Seed of the run. What a simulator draws while it is built depends on it, on `name` and on `config.seed`.

    Raises:
        UserError: The simulator or task is unknown, or its observations do not fit the mapping.
    """
    from regrasp.seeding import construction_seed

    env_type = env_type_of(config, name)
    return env_type.create_env(config, name, max_chunk, construction_seed(seed, name, config.seed))


def preflight(config: EnvConfig, name: str, action_dim: int) -> SimulatorSpec | None:
    """Check task, mapping and action width of `env.<name>` without starting an environment.

    Returns:
        What its environments will offer, None where only the running simulator knows.

    Raises:
        UserError: Names the key, what was found and what the simulator offers.
    """
    from regrasp.envs.selection import ObservationSelection, action_layout

    env_type = env_type_of(config, name)
    env_type.check(config, name)
    spec = env_type.describe(config, name)
    if spec is not None:
        ObservationSelection(config.mapping, spec.raw_observations, f"env.{name}.mapping")
        action_layout(config.mapping, action_dim, spec.action_dim, f"env.{name}.mapping")
    return spec
