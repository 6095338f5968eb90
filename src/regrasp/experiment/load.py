"""Loading an experiment: search, composition, conversion to frozen dataclasses, checks."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from regrasp.config.compose import compose_experiment
from regrasp.config.describe import Path, Spec, dotted, split_key
from regrasp.config.foreign import take_foreign
from regrasp.config.legacy import (
    merge_names,
    missing_features,
    rlinf_notice,
    strip_legacy,
    translate_synonyms,
    unreleased,
)
from regrasp.config.owned import ByType, field_infos
from regrasp.config.problems import place_of, raise_problems, schema_problems
from regrasp.config.search import find_config
from regrasp.config.sources import COMMAND_LINE, Sources
from regrasp.config.types import changed
from regrasp.envs.registry import experiment_folders
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.simulators import settle_simulators
from regrasp.experiment.validate import cross_check, idle_keys, oddities, unlike_rlinf
from regrasp.models.config import ModelConfig

_ADAPTER = TypeAdapter(ExperimentConfig)
_ROOT = Spec(ExperimentConfig)
_OF_ONE_CALL: Mapping[str, Any] = {
    "actor.model.model_path": None,
    "runner.resume_dir": None,
    "runner.ckpt_path": None,
    "runner.only_eval": False,
    "runner.force": False,
}
"""Keys that say what one command was to do, and what they are otherwise."""
_WHOLE = {"cluster.component_placement"}
"""Blocks that an override replaces, because their keys are of a user's own making."""


@dataclass(frozen=True)
class LoadedConfig:
    """A checked experiment and where it came from."""

    config: ExperimentConfig
    file: pathlib.Path
    overrides: tuple[str, ...]
    ignored_keys: tuple[str, ...]
    """Keys of RLinf that were given and have no effect here; a whole section counts as one."""
    warnings: tuple[str, ...]
    """What the user should be told before the run starts: one text about `ignored_keys`, one per contradiction."""
    sources: Sources
    """Where each value was written."""

    def located(self, error: UserError) -> UserError:
        """The same error, naming the file and line, or the flag, where the value of its key was written."""
        path = split_key(error.key or "")
        if error.file not in (None, str(self.file), COMMAND_LINE) or not self._has(path):
            return error
        place = place_of(error, self.sources)
        return error.at(place.file, place.key)

    def _has(self, path: Path) -> bool:
        node: Any = self.config
        for step in path:
            try:
                node = node[step] if isinstance(step, int) else getattr(node, step)
            except (AttributeError, IndexError, TypeError):
                return False
        return bool(path)

    def to_yaml(self) -> str:
        """Every value, defaults included, as a file that loads to the same configuration."""
        return to_yaml(self.config)


def to_yaml(config: ExperimentConfig) -> str:
    """Every value of an experiment, as a file that loads to the same."""
    return yaml.safe_dump(_ADAPTER.dump_python(config, mode="json"), sort_keys=False, width=120)


def made_with(config: ExperimentConfig) -> tuple[str, str]:
    """Name and YAML of an experiment, as a model's folder keeps them: without what was said of one call."""
    name = config.runner.logger.experiment_name
    for key, value in _OF_ONE_CALL.items():
        config = changed(config, key, value)
    return name, to_yaml(config)


def load_config(
    name: str,
    overrides: Sequence[str] = (),
    config_path: pathlib.Path | None = None,
    flags: Mapping[str, str] | None = None,
    task: str | None = None,
    *,
    trains: bool = True,
) -> LoadedConfig:
    """Load, convert and check an experiment.

    Args:
        name: Name of the experiment, or path of its YAML file.
        overrides: Hydra overrides such as `algorithm.update_epoch=2`; later ones win.
        config_path: Folder that is searched before the shipped experiments.
        flags: The flag of the command line that stands for an override, by the override's text; for messages.
        task: The task that the overrides name, whose simulator replaces the file's.
        trains: Whether an update is to be made; without one, what its size contradicts does not matter.

    Raises:
        UserError: The file is not found or broken, an override is bad, the experiment asks for what is not in this
            release, or values are wrong. All wrong values are in one error.
    """
    file = find_config(name, config_path, lambda: experiment_folders(overrides))
    composition = compose_experiment(file, overrides, flags, _WHOLE)
    raise_problems(unreleased(composition.sources.written, _ROOT), composition.sources)
    values = composition.resolved()
    merged = merge_names(values, composition.sources.overrides, _models_names(values))
    translate_synonyms(values)
    sources = dataclasses.replace(composition.sources, renamed=merged.renamed)
    own = _own_keys(values)
    raise_problems(missing_features(values, _ROOT, own), sources)
    reasons = strip_legacy(values, own)
    if composition.has_idle_hydra_block:
        reasons["hydra"] = "nothing is left to Hydra but composition"
    simulators = settle_simulators(values.get("env"), task, composition.sources.overrides)
    idle = [*simulators.warnings, *_strip_foreign(values)]
    sources = dataclasses.replace(sources, renamed=merged.renamed | simulators.renamed)
    try:
        config = _ADAPTER.validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise_problems([*simulators.problems, *schema_problems(error, values, _ROOT)], sources)
        raise
    raise_problems([*simulators.problems, *cross_check(config, trains=trains)], sources)
    config = _without_idle_value_head(config)
    told = idle_keys(config, sources.overrides, trains=trains)
    warnings = [*merged.warnings, *idle, *told, *oddities(config, trains=trains)]
    if reasons:
        places = {key: f"the {COMMAND_LINE}" if sources.overrides_key(split_key(key)) else file for key in reasons}
        warnings.insert(0, rlinf_notice(reasons, list(unlike_rlinf(config)), places))
    return LoadedConfig(config, file, tuple(overrides), tuple(reasons), tuple(warnings), sources)


def own_keys(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration that an earlier version wrote, without the keys of other simulators and models, in place."""
    settle_simulators(values.get("env"), None, ())
    _strip_foreign(values)
    return values


def _by_type(path: Path) -> ByType:
    """What chooses the class of a block."""
    spec = _ROOT.at(path)
    assert spec is not None
    assert spec.by_type is not None
    return spec.by_type


def _strip_foreign(values: Mapping[str, Any]) -> list[str]:
    """Remove, in place, the keys of other models and algorithms than the experiment's; a warning where one is set."""
    actor = values.get("actor")
    model = actor.get("model") if isinstance(actor, dict) else None
    blocks: Sequence[tuple[Path, Any]] = ((("actor", "model"), model), (("algorithm",), values.get("algorithm")))
    warnings: list[str] = []
    for path, block in blocks:
        by_type = _by_type(path)
        own = by_type.block_of(block)
        if isinstance(block, dict) and own and (idle := take_foreign(block, own, by_type.table(), path)):
            place = f"{dotted(path)}.{by_type.key}: {block.get(by_type.key, by_type.default)}"
            warnings.append(f"These keys have no effect with {place}: {', '.join(found.key for found in idle)}.")
    return warnings


def _own_keys(values: Mapping[str, Any]) -> set[Path]:
    """The keys that the experiment's algorithm and its model have, whatever RLinf's others do with them."""
    paths: Sequence[Path] = (("algorithm",), ("actor", "model"))
    blocks = ((path, _by_type(path).block_of(_values_at(values, path))) for path in paths)
    return {(*path, name) for path, block in blocks if block is not None for name in field_infos(block)}


def _models_names(values: Mapping[str, Any]) -> Mapping[str, str]:
    """What RLinf writes elsewhere and the experiment's model reads in its own block, by RLinf's key."""
    path = ("actor", "model")
    block = _by_type(path).block_of(_values_at(values, path))
    return block.written_elsewhere if block is not None and issubclass(block, ModelConfig) else {}


def _values_at(values: Any, path: Path) -> Any:
    """The values of a block; None where there is none."""
    for step in path:
        values = values.get(step) if isinstance(values, Mapping) else None
    return values


def _without_idle_value_head(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment without a value head where its algorithm has no use for one."""
    if "value" in config.algorithm.needs:
        return config
    return changed(config, "actor.model.add_value_head", False)
