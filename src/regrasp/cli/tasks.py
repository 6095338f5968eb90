"""`regrasp tasks`: which tasks are known, and where from."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no flags."""


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    return print_tasks()


def print_tasks(task: str | None = None, overrides: Sequence[str] = ()) -> int:
    """Every known task, its simulator, whether it can run here, and its experiments.

    Args:
        task: `package:Task-Id` adds the tasks of that package.
        overrides: `env.train.python=...` adds the tasks of the Isaac Lab that this interpreter has.
    """
    from regrasp.cli.common import shipped_experiments
    from regrasp.envs.mujoco.backend import working_backend
    from regrasp.envs.mujoco.catalog import TASK_IDS

    experiments: dict[str, list[str]] = {task: [] for task in TASK_IDS} | shipped_experiments()
    runnable = "runs here" if working_backend() else "cannot render here, see regrasp doctor"
    for name in TASK_IDS:
        _print_row(name, "mujoco", runnable, experiments[name])
    _print_lab_tasks(task, overrides, experiments)
    return 0


def _print_lab_tasks(task: str | None, overrides: Sequence[str], experiments: dict[str, list[str]]) -> None:
    from regrasp.config.task_packages import (
        LAB_PACKAGE,
        has_simulator,
        package_folder,
        pythons_in,
        registered_tasks,
    )
    from regrasp.envs.mujoco.catalog import TASK_IDS

    packages = [LAB_PACKAGE, *([task.rpartition(":")[0].split(".")[0]] if task and ":" in task else [])]
    pythons = (None, *pythons_in(overrides))
    for python in pythons[1:]:
        if package_folder(LAB_PACKAGE, python) is None:
            _log.warning("%s cannot be started, or has no package %s", python, LAB_PACKAGE)
    for package in packages[1:]:
        if not any(package_folder(package, python) for python in pythons):
            _log.warning("no package %s was found; name the Python that has it: env.isaaclab.python=<it>", package)
    seen: set[str] = set()
    for python in pythons:
        runnable = "Isaac Sim is here" if has_simulator(python) else "no Isaac Sim here"
        for package in packages:
            folder = package_folder(package, python)
            for found in registered_tasks(folder) if folder else ():
                name = found.id if package == LAB_PACKAGE else f"{package}:{found.id}"
                names = [*experiments.get(name, ()), *([str(found.experiment)] if found.experiment else [])]
                if found.lost_experiment is not None:
                    lost = found.lost_experiment
                    _log.warning("%s names an experiment that cannot be found: %s (%s)", name, lost, found.file)
                if name not in seen:
                    _print_row(name, "isaaclab", runnable, names, folder)
                seen.add(name)
    for name in sorted(experiments.keys() - seen - TASK_IDS.keys()):
        _print_row(name, "isaaclab", "not here, see env.isaaclab.python", experiments[name])


def _print_row(
    task: str, simulator: str, runnable: str, experiments: Sequence[str], folder: Path | None = None
) -> None:
    names = f"--config_name {' | '.join(experiments)}" if experiments else "(no experiment)"
    source = "" if folder is None else f"  from {folder}"
    print(f"{task:<58} {simulator:<9} {runnable:<18} {names}{source}")
