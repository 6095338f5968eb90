"""Creates the environments inside their process."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from regrasp.envs.gymnasium.child.options import EnvOptions
from regrasp.envs.process.simulator import with_tuples
from regrasp.errors import UserError
from regrasp.extras import install_command

if TYPE_CHECKING:
    from regrasp.envs.gymnasium.child.simulator import GymnasiumSimulator


def create(num_envs: int, options: Mapping[str, Any]) -> GymnasiumSimulator:
    """The factory, called by name with the JSON of `EnvOptions`.

    Raises:
        UserError: Gymnasium is missing, or the environment cannot be had as the options say.
    """
    from regrasp.envs.gymnasium.child.simulator import GymnasiumSimulator
    from regrasp.envs.gymnasium.child.single import SingleEnvironments
    from regrasp.envs.gymnasium.child.vector import VectorEnvironments

    settings, specs = look_up(options)
    use_vector = specs[0].entry_point is None if settings.vector is None else settings.vector
    if use_vector and not settings.tasks:
        environments = VectorEnvironments(specs[0], num_envs, settings)
    else:
        environments = SingleEnvironments(specs, num_envs, settings)
    return GymnasiumSimulator(environments, num_envs, settings)


def look_up(options: Mapping[str, Any]) -> tuple[EnvOptions, list[Any]]:
    """The options, and Gymnasium's record of the environment of each of their tasks, which is not made.

    Raises:
        UserError: Gymnasium is missing, or knows no such environment.
    """
    settings = EnvOptions(**with_tuples(options))
    if importlib.util.find_spec("gymnasium") is None:
        raise UserError(
            "Gymnasium is not installed",
            key=f"{settings.location}.env_type",
            value="gymnasium",
            expected="a Python that has Gymnasium",
            fix=install_command("gymnasium"),
        )
    from regrasp.envs.gymnasium.child.make import find_specs

    return settings, find_specs(settings)
