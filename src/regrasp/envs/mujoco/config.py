"""What the embedded simulator adds to the blocks `env.train` and `env.eval`."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

from pydantic.dataclasses import dataclass

from regrasp.config.types import BLOCK, Expect
from regrasp.envs.config import EnvConfig, EvalEnvConfig, InitParams, TrainEnvConfig


@dataclass(frozen=True, config=BLOCK)
class MujocoInitParams(InitParams):
    """Which task, and its options."""

    task_options: Annotated[dict[str, Any], Expect("a block of options that the task knows")] = field(
        default_factory=dict
    )
    """The task's own options, which it checks itself."""


@dataclass(frozen=True, config=BLOCK)
class MujocoEnvConfig(EnvConfig):
    """One set of parallel environments of the embedded simulator."""

    init_params: MujocoInitParams
    """Which task, and its options."""


@dataclass(frozen=True, config=BLOCK, kw_only=True)
class MujocoTrainConfig(MujocoEnvConfig, TrainEnvConfig):
    """The environments of training in the embedded simulator."""


@dataclass(frozen=True, config=BLOCK)
class MujocoEvalConfig(MujocoEnvConfig, EvalEnvConfig):
    """The environments of an evaluation in the embedded simulator."""
