"""Simulators by `env_type`. A new one registers here in one line, or by an entry point of group `regrasp.envs`."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

from regrasp.config.schema import EnvConfig
from regrasp.envs.contract import VecEnv
from regrasp.errors import UserError

_FACTORIES = {"mujoco": "regrasp.envs.mujoco.env:create_env"}
"""`env_type` to `module:callable`, called as (config, name, max_chunk)."""


def create_env(config: EnvConfig, name: str, max_chunk: int) -> VecEnv:
    """Start the environments of `env.<name>`.

    Args:
        config: The block `env.train` or `env.eval`.
        name: "train" or "eval".
        max_chunk: Longest action chunk that will be stepped.

    Raises:
        UserError: The simulator or task is unknown, or its observations do not fit the mapping.
    """
    factories = known_env_types()
    if config.env_type not in factories:
        raise UserError(
            "Unknown simulator",
            key=f"env.{name}.env_type",
            value=config.env_type,
            expected=f"one of {sorted(factories)}",
            mend="correct the name, or install the package that offers it through the entry point group regrasp.envs",
        )
    module, function = factories[config.env_type].split(":")
    return getattr(importlib.import_module(module), function)(config, name, max_chunk)


def known_env_types() -> dict[str, str]:
    """Every registered `env_type` and its factory."""
    return _FACTORIES | {entry.name: entry.value for entry in entry_points(group="regrasp.envs")}
