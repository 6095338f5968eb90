"""`regrasp tasks`: which tasks are known, and where from."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no flags."""


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    return print_tasks()


def print_tasks() -> int:
    """Every known task, its simulator, whether it can run here, and its shipped experiments."""
    from regrasp.config.load import load_config
    from regrasp.config.search import SHIPPED
    from regrasp.envs.mujoco.backend import working_backend
    from regrasp.envs.mujoco.catalog import TASK_IDS

    experiments: dict[str, list[str]] = {task: [] for task in TASK_IDS}
    for file in sorted(SHIPPED.glob("*.yaml")):
        task = load_config(file.stem).config.env.train.init_params.id
        experiments.setdefault(task, []).append(file.stem)
    runnable = "runs here" if working_backend() else "cannot render here, see regrasp doctor"
    width = max(len(task) for task in experiments)
    for task, names in experiments.items():
        configs = " | ".join(names) if names else "(none shipped)"
        print(f"{task:<{width}} mujoco    {runnable:<12} --config_name {configs}")
    return 0
