"""Block `env`: the environments of training and of evaluation, each with the keys of its own simulator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any

from pydantic.dataclasses import dataclass

from regrasp.config.owned import ByType
from regrasp.config.types import BLOCK
from regrasp.envs.config import EvalEnvConfig, TrainEnvConfig
from regrasp.envs.registry import EnvTypes, unknown_env_type


class EnvBlocks(Mapping[str, type]):
    """The block `env.<name>` of each simulator, which is imported when its block is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._known = EnvTypes()

    def __getitem__(self, env_type: str) -> type:
        return getattr(self._known[env_type], self._name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def _block(name: str, values: Mapping[str, Any]) -> type:
    blocks = EnvBlocks(name)
    if values["env_type"] not in blocks:
        raise unknown_env_type(values["env_type"], f"env.{name}")
    return blocks[values["env_type"]]


@dataclass(frozen=True, config=BLOCK)
class EnvsConfig:
    """The environments of training and of evaluation."""

    train: Annotated[TrainEnvConfig, ByType("env_type", partial(EnvBlocks, "train"), partial(_block, "train"))]
    """Environments of training."""
    eval: Annotated[EvalEnvConfig, ByType("env_type", partial(EnvBlocks, "eval"), partial(_block, "eval"))]
    """Environments of evaluation."""
