"""`regrasp tasks`: which tasks are known, and where from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regrasp.envs.env_type import TaskRow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no flags."""


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    return print_tasks()


def print_tasks(task: str | None = None, overrides: Sequence[str] = ()) -> int:
    """Every known task, its simulator, whether it can run here, and its experiments.

    Args:
        task: `package:Task-Id` adds the tasks of that package, `module:Class` that task.
        overrides: `env.train.python=...` adds the tasks of the Isaac Lab that this interpreter has.
    """
    from regrasp.envs.registry import EnvTypes
    from regrasp.experiment.shipped import experiments_of_tasks, shipped_experiments

    experiments = experiments_of_tasks()
    shipped_envs = [config.env.train for config in shipped_experiments().values()]
    for env_type, simulator in EnvTypes().items():
        shipped = [env.init_params.id for env in shipped_envs if env.env_type == env_type]
        for row in simulator.tasks(task, overrides, shipped):
            _print_row(row, env_type, [*experiments.get(row.task_id, ()), *row.experiments])
    return 0


def _print_row(row: TaskRow, simulator: str, experiments: Sequence[str]) -> None:
    names = f"--config_name {' | '.join(experiments)}" if experiments else "(no experiment)"
    source = "" if row.source is None else f"  from {row.source}"
    print(f"{row.task_id:<58} {simulator:<9} {row.runnable:<18} {names}{source}")
