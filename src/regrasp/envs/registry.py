"""Simulators by `env_type`. A new one registers here in one line, or by an entry point of group `regrasp.envs`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from regrasp.envs.selection import ArraySpec, ObservationSelection, check_action_mapping
from regrasp.envs.task_choice import lab_settings
from regrasp.errors import UserError
from regrasp.experiment import EnvConfig, ExperimentConfig

if TYPE_CHECKING:
    from regrasp.envs.contract import VecEnv

_FACTORIES = {
    "mujoco": "regrasp.envs.mujoco.env:create_env",
    "isaaclab": "regrasp.envs.isaaclab.env:create_env",
}
"""`env_type` to `module:callable`, called as (config, name, max_chunk, seed)."""


def create_env(config: EnvConfig, name: Literal["train", "eval"], max_chunk: int, seed: int = 0) -> VecEnv:
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

    module, function = _factory(config, name)
    _check_lab_keys(config, name)
    return getattr(module, function)(config, name, max_chunk, construction_seed(seed, name, config.seed))


def check_expert(config: EnvConfig, name: str) -> None:
    """Check, before an environment starts, what the scripted expert of `env.<name>` needs.

    A simulator takes part by a function `check_expert(config, name)` beside its factory.

    Raises:
        UserError: Names what is missing.
    """
    module, _ = _factory(config, name)
    if hasattr(module, "check_expert"):
        module.check_expert(config, name)


def step_seconds(config: EnvConfig, name: str) -> float | None:
    """Simulated seconds per step of `env.<name>`, None where that is only known once the simulator has started.

    Raises:
        UserError: The simulator or task is unknown.
    """
    module, _ = _factory(config, name)
    return module.describe(config, name).step_seconds if hasattr(module, "describe") else None


def preflight(config: ExperimentConfig, file_of: Callable[[str], str]) -> None:
    """Check task, mapping and action width of training and evaluation without starting an environment.

    A simulator takes part by a function `describe(config, name) -> SimulatorSpec` beside its factory, or by
    `check(config, name)` where what it offers is only known once it has started.

    Args:
        config: The experiment.
        file_of: Where the value of a key was written.

    Raises:
        UserError: Names the file, the key, what was found and what the simulator offers.
    """
    for name, env in (("train", config.env.train), ("eval", config.env.eval)):
        try:
            _check(env, name, config.actor.model.action_dim)
        except UserError as error:
            raise error.in_file(file_of(error.key or f"env.{name}")) from None


def _check(env: EnvConfig, name: str, action_dim: int) -> None:
    module, _ = _factory(env, name)
    _check_lab_keys(env, name)
    if hasattr(module, "check"):
        module.check(env, name)
    if not hasattr(module, "describe"):
        return
    spec = module.describe(env, name)
    raw = {key: ArraySpec(tuple(shape), dtype) for key, (shape, dtype) in spec.raw_observations.items()}
    ObservationSelection(env.mapping, raw, f"env.{name}.mapping")
    check_action_mapping(env.mapping, action_dim, spec.action_dim, f"env.{name}.mapping")


def _check_lab_keys(config: EnvConfig, name: str) -> None:
    """Check that no key is set that has no effect with this simulator."""
    if config.env_type == "isaaclab":
        options, key = config.init_params.task_options, f"env.{name}.init_params.task_options"
        if options:
            raise UserError(
                "Tasks of Isaac Lab have no task_options",
                key=key,
                value=options,
                expected="no options",
                mend=f"remove {key}",
            )
        return
    for block, key, value, default in lab_settings(config):
        raise UserError(
            "The key has an effect with Isaac Lab only",
            key=f"env.{name}.{block}.{key}",
            value=value,
            expected=f"{default!r} with env_type {config.env_type}",
            mend=f"remove it, or set env.{name}.env_type=isaaclab",
        )


def _factory(config: EnvConfig, name: str) -> tuple[ModuleType, str]:
    """Module and function name of the simulator's factory."""
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
    return importlib.import_module(module), function


def known_env_types() -> dict[str, str]:
    """Every registered `env_type` and its factory."""
    return _FACTORIES | {entry.name: entry.value for entry in entry_points(group="regrasp.envs")}
