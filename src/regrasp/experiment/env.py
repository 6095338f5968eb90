"""Block `env`: the environments of training and of evaluation, each with the keys of its own simulator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any

from pydantic.dataclasses import dataclass

from regrasp.config.owned import ByType
from regrasp.config.types import BLOCK
from regrasp.envs.config import EnvName, EvalEnvConfig, TrainEnvConfig
from regrasp.envs.registry import EnvTypes, unknown_env_type


@plain_dataclass(frozen=True)
class _Blocks(Mapping[str, type]):
    """The block `env.<name>` of each simulator, which is imported when its block is asked for."""

    name: EnvName

    def __getitem__(self, env_type: str) -> type:
        return getattr(EnvTypes()[env_type], self.name)

    def __iter__(self) -> Iterator[str]:
        return iter(EnvTypes())

    def __len__(self) -> int:
        return len(EnvTypes())

    def table(self) -> Mapping[str, type]:
        """Itself, as `ByType` asks for it."""
        return self

    def find(self, values: Mapping[str, Any]) -> type:
        """The class of a block.

        Raises:
            UserError: No such simulator.
        """
        if values["env_type"] not in self:
            raise unknown_env_type(values["env_type"], f"env.{self.name}")
        return self[values["env_type"]]


_TRAIN, _EVAL = _Blocks("train"), _Blocks("eval")


@dataclass(frozen=True, config=BLOCK)
class EnvsConfig:
    """The environments of training and of evaluation."""

    train: Annotated[TrainEnvConfig, ByType("env_type", _TRAIN.table, _TRAIN.find)]
    """Environments of training."""
    eval: Annotated[EvalEnvConfig, ByType("env_type", _EVAL.table, _EVAL.find)]
    """Environments of evaluation."""
