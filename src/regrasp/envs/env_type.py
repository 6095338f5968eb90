"""What configuration and commands ask a simulator. One object per `env_type`; making it imports and starts nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from regrasp.envs.config import EnvConfig, EnvName, EvalEnvConfig, TrainEnvConfig

if TYPE_CHECKING:
    from regrasp.envs.contract import VecEnv
    from regrasp.envs.process.simulator import SimulatorSpec

ConfigT = TypeVar("ConfigT", bound=EnvConfig)


@dataclass(frozen=True)
class TaskRow:
    """A line of `regrasp tasks`."""

    task_id: str
    runnable: str
    """Whether it can run on this machine, in a few words."""
    experiments: tuple[str, ...] = ()
    """Files of the experiments that the task itself names."""
    source: str | None = None
    """Where it comes from, such as a package or a folder; None for a task that comes with Regrasp."""


class EnvType(Generic[ConfigT]):
    """One simulator. Its own keys are in the blocks `train` and `eval`; everything but `create_env` has a default."""

    train: ClassVar[type[TrainEnvConfig]] = TrainEnvConfig
    eval: ClassVar[type[EvalEnvConfig]] = EvalEnvConfig
    """The blocks `env.train` and `env.eval` of this simulator."""
    shared: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Keys of the block `env.<env_type>`: each is the default of this key of `env.train` and `env.eval`."""
    bytes_per_env: ClassVar[int] = 0
    """Host memory of one environment, about; 0 where it is not known."""
    bytes_per_process: ClassVar[int] = 0
    """Host memory of a process without environments."""
    mapping_alias: ClassVar[str | None] = None
    """Another name of the block `mapping`, whichever simulator the environments are of."""
    without_experiment: ClassVar[tuple[str, str] | None] = None
    """What is expected, and what fixes it, where no experiment is known for a task; None: the default one fits."""

    def create_env(self, config: ConfigT, name: EnvName, max_chunk: int, seed: int) -> VecEnv:
        """Start the environments of `env.<name>`; what is drawn while they are built depends on `seed`.

        Raises:
            UserError: The task is unknown, or its observations do not fit the mapping.
        """
        raise NotImplementedError

    def check(self, config: ConfigT, name: str) -> None:
        """Raise a `UserError` for what cannot work in `env.<name>`, as far as that is known before anything starts."""

    def look_up(self, config: ConfigT, name: str) -> None:
        """Look for the task of `env.<name>` in a simulator that knows its tasks without starting; for a dry run.

        Raises:
            UserError: There is no such task.
        """

    def check_expert(self, config: ConfigT, name: str) -> None:
        """Raise a `UserError` where the scripted expert of `env.<name>` lacks something."""

    def describe(self, config: ConfigT, name: str) -> SimulatorSpec | None:
        """What the environments of `env.<name>` will offer, None where only the running simulator knows."""
        return None

    def owns_task(self, task_id: str) -> bool | None:
        """Whether a task, by its name, is of this simulator, known or misspelt; None where names do not tell."""
        return None

    def evaluation_task(self, task_id: str) -> str:
        """The variant of a task that is for evaluation, or the task itself where it has none."""
        return task_id

    def namesakes(self, task_id: str) -> tuple[str, ...]:
        """Tasks whose experiments suit a task: itself, its other spellings, what it is a variant of."""
        return (task_id,)

    def experiment_of_task(self, task_id: str, overrides: Sequence[str]) -> Path | None:
        """The experiment that a task names where it is registered, None where it names none."""
        return None

    def experiment_folders(self, overrides: Sequence[str]) -> Iterator[Path]:
        """Folders whose tasks bring experiments of their own."""
        yield from ()

    def tasks(self, task_id: str | None, overrides: Sequence[str], shipped: Sequence[str]) -> Iterator[TaskRow]:
        """The tasks that are known here.

        Args:
            task_id: A task whose package is to be listed too.
            overrides: Of the command line; they may name the simulator's interpreter.
            shipped: Tasks of this simulator for which an experiment comes with Regrasp.
        """
        yield from ()


class FactoryEnvType(EnvType[EnvConfig]):
    """A simulator that is only known by its factory: it has the keys that every simulator has."""

    def __init__(self, factory: Callable[..., Any]) -> None:
        self._factory = factory

    def create_env(self, config: EnvConfig, name: EnvName, max_chunk: int, seed: int) -> VecEnv:
        """Call the factory, see `EnvType.create_env`."""
        return self._factory(config, name, max_chunk, seed)
