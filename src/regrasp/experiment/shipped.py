"""The experiments that come with Regrasp, as advice: which of them train a task, and which ask for a model."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from regrasp.config.search import SHIPPED
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import load_config
from regrasp.models.config import ModelConfig


@functools.cache
def shipped_experiments() -> Mapping[str, ExperimentConfig]:
    """Every experiment that comes with Regrasp, by name."""
    return {file.stem: load_config(file.stem).config for file in sorted(SHIPPED.glob("*.yaml"))}


def experiments_of_tasks() -> dict[str, list[str]]:
    """Names of the experiments that come with Regrasp, by the task that they train."""
    names: dict[str, list[str]] = {}
    for name, config in shipped_experiments().items():
        names.setdefault(config.env.train.init_params.id, []).append(name)
    return names


def experiments_for(model: type[ModelConfig], task_id: str) -> list[str]:
    """Names of the experiments that come with Regrasp and ask for a model; of this task, where there are any."""
    fitting = {name: config for name, config in shipped_experiments().items() if isinstance(config.actor.model, model)}
    same_task = [name for name, config in fitting.items() if config.env.train.init_params.id == task_id]
    return same_task or list(fitting)
