"""The experiment that a model's folder keeps, held against another one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from regrasp.envs.config import EnvName
from regrasp.errors import UserError, spelled
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import to_yaml
from regrasp.models.origin import EXPERIMENT_FILE, Origin, read_origin

_SEEN_AND_DONE = (
    *("main_images", "extra_view_images", "image_transform", "states", "gr00t_mapping", "action_mapping"),
    *("embodiment_tag", "embodiment_tag_id", "data_config", "data_config_class", "action_bounds"),
)
"""Keys of the mapping that say what a policy sees, and what becomes of what it does."""


def mapping_differences(origin: Origin, config: ExperimentConfig, name: EnvName) -> list[str]:
    """What the policy would see, or do, otherwise than it was trained to, one text for each key of the mapping.

    Args:
        origin: What the model was made with.
        config: The experiment that it is to be used with.
        name: The environments that it is to act in.
    """
    then, now = _mapping(origin.settings or "", "train"), _mapping(to_yaml(config), name)
    differ = [key for key in _SEEN_AND_DONE if then and _bare(then.get(key)) != _bare(now.get(key))]
    return [
        f"env.{name}.mapping.{key} is {spelled(now.get(key))}; the model was trained with {spelled(then.get(key))}"
        for key in differ
    ]


@contextmanager
def naming_its_experiment(folder: str | Path) -> Iterator[None]:
    """Have the errors of what does not fit a model name the experiment that the model was made with, if it is known.

    Args:
        folder: The model's.
    """
    try:
        yield
    except UserError as error:
        own = Path(folder).expanduser() / EXPERIMENT_FILE
        if not own.is_file() or (error.fix is not None and "--config_name" in error.fix):
            raise
        name = read_origin(own.parent).experiment or own.name
        advice = f"use the experiment that the model was made with, {name}: --config_name {own}"
        raise type(error)(**error.fields() | {"fix": f"{error.fix}; or {advice}" if error.fix else advice}) from None


def _mapping(settings: str, name: str) -> dict[str, Any]:
    """The mapping of `env.<name>` in an experiment's YAML; empty where there is none that can be read."""
    try:
        found = yaml.safe_load(settings)["env"][name]["mapping"]
    except (yaml.YAMLError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _bare(value: Any) -> Any:
    """A value without groups in the names of observations: `position` is `policy/position` where it is unique."""
    if isinstance(value, dict):
        return {_bare(key): _bare(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_bare(item) for item in value]
    return value.rpartition("/")[2] if isinstance(value, str) else value
