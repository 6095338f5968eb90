"""Loading an experiment: search, composition, conversion to frozen dataclasses, checks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from regrasp.config.compose import compose_experiment
from regrasp.config.describe import dotted, spec_at
from regrasp.config.legacy import Active, ignored_warning, merge_duplicates, strip_legacy, translate_synonyms
from regrasp.config.owned import field_infos
from regrasp.config.problems import Problem, raise_problems, schema_problems
from regrasp.config.search import find_config
from regrasp.config.sources import COMMAND_LINE, Sources, split_key
from regrasp.config.task_packages import pythons_in
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig, MappingConfig
from regrasp.experiment.validate import cross_check, oddities

_ADAPTER = TypeAdapter(ExperimentConfig)


@dataclass(frozen=True)
class LoadedConfig:
    """A checked experiment and where it came from."""

    config: ExperimentConfig
    file: Path
    overrides: tuple[str, ...]
    ignored_keys: tuple[str, ...]
    """Keys of the reference that were given and have no effect here; a whole section counts as one."""
    warnings: tuple[str, ...]
    """What the user should be told before the run starts: one text about `ignored_keys`, one per contradiction."""
    sources: Sources
    """Where each value was written."""

    def file_of(self, key: str) -> str:
        """Where a value was written: a file and line, or the command line."""
        return self.sources.locate(split_key(key)).file

    def located(self, error: UserError) -> UserError:
        """The same error, naming the file and line, or the flag, where the value of its key was written."""
        path = split_key(error.key or "")
        if error.file not in (None, str(self.file), COMMAND_LINE) or not path or spec_at(path) is None:
            return error
        place = self.sources.locate(path)
        return error.at(place.file, place.key)

    def to_yaml(self) -> str:
        """Every value, defaults included, as a file that loads to the same configuration."""
        return yaml.safe_dump(_ADAPTER.dump_python(self.config, mode="json"), sort_keys=False, width=120)


def load_config(
    name: str,
    overrides: Sequence[str] = (),
    config_path: Path | None = None,
    flags: Mapping[str, str] | None = None,
) -> LoadedConfig:
    """Load, convert and check an experiment.

    Args:
        name: Name of the experiment, or path of its YAML file.
        overrides: Hydra overrides such as `algorithm.update_epoch=2`; later ones win.
        config_path: Folder that is searched before the shipped experiments.
        flags: The flag of the command line that stands for an override, by the override's text; for messages.

    Raises:
        UserError: The file is not found or broken, an override is bad, or values are wrong. All wrong values are in
            one error.
    """
    file = find_config(name, config_path, pythons_in(overrides))
    composition = compose_experiment(file, overrides, flags)
    values = composition.values
    translate_synonyms(values)
    warnings = merge_duplicates(values)
    reasons, active = strip_legacy(values, _algorithms_own(values))
    if composition.has_idle_hydra_block:
        reasons["hydra"] = "nothing is left to Hydra but composition"
    shared, idle = _share_simulator(values)
    renamed, problems = _rename_mapping(values)
    _drop_nulls(values)
    idle += strip_foreign(values)
    problems += [_active_problem(key) for key in active]
    sources = dataclasses.replace(composition.sources, renamed=renamed | shared)
    try:
        config = _ADAPTER.validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise_problems(problems + schema_problems(error, values), sources)
        raise
    raise_problems(problems + cross_check(config, file.parent), sources)
    config = _without_idle_value_head(config)
    warnings += idle + oddities(config)
    if reasons:
        warnings.insert(0, ignored_warning(reasons, file))
    return LoadedConfig(config, file, tuple(overrides), tuple(reasons), tuple(warnings), sources)


def _algorithms_own(values: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """The keys that the experiment's algorithm has, whatever the reference's others do with them."""
    spec = spec_at(("algorithm",))
    assert spec is not None
    assert spec.by_type is not None
    block = spec.by_type.block_of(values.get("algorithm"))
    return set() if block is None else {("algorithm", name) for name in field_infos(block)}


def _without_idle_value_head(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment without a value head where its algorithm has no use for one."""
    if "value" in config.algorithm.needs:
        return config
    model = dataclasses.replace(config.actor.model, add_value_head=False)
    return dataclasses.replace(config, actor=dataclasses.replace(config.actor, model=model))


def strip_foreign(values: Mapping[str, Any]) -> list[str]:
    """Remove, in place, the keys of other models and algorithms than the experiment's; a warning where one is set."""
    actor = values.get("actor")
    model = actor.get("model") if isinstance(actor, dict) else None
    blocks: Sequence[tuple[tuple[str, ...], Any]] = (
        (("actor", "model"), model),
        (("algorithm",), values.get("algorithm")),
    )
    warnings = []
    for path, block in blocks:
        spec = spec_at(path)
        assert spec is not None
        assert spec.by_type is not None
        warnings.append(spec.by_type.strip_foreign(block, dotted(path)) if isinstance(block, dict) else None)
    return [warning for warning in warnings if warning is not None]


_MAPPING_KEYS = {field.name for field in dataclasses.fields(MappingConfig)}
_SHARED: dict[str, tuple[str, ...]] = {"python": ("python",)} | {
    key: ("init_params", key) for key in ("device", "headless", "camera_size", "presets", "hold_action")
}
"""Keys of the block `env.isaaclab`, and the keys of `env.train` and `env.eval` that they are the defaults of."""


def _share_simulator(values: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Spread the block `env.isaaclab` over the environments of that type, in place; keys that it cannot have stay.

    Returns:
        Each key that was given a value so, with the key as written; and a warning where there is no such environment.
    """
    envs = values.get("env")
    if not isinstance(envs, dict):
        return {}, []
    shared = envs.get("isaaclab")
    if shared is None:
        envs.pop("isaaclab", None)
    if not isinstance(shared, dict):
        return {}, []
    blocks = {name: envs.get(name) for name in ("train", "eval")}
    lab = {name: env for name, env in blocks.items() if isinstance(env, dict) and env.get("env_type") == "isaaclab"}
    origins: dict[str, str] = {}
    for key in _SHARED.keys() & shared.keys():
        value, (*block, field) = shared.pop(key), _SHARED[key]
        for name, env in lab.items():
            target = env.setdefault(block[0], {}) if block else env
            if isinstance(target, dict) and target.get(field) is None:
                target[field] = value
                origins[dotted(("env", name, *block, field))] = f"env.isaaclab.{key}"
    if not shared:
        del envs["isaaclab"]
    return origins, [] if lab else ["env.isaaclab has no effect: no environment has env_type isaaclab."]


def _rename_mapping(values: Mapping[str, Any]) -> tuple[dict[str, str], list[Problem]]:
    """Give the reference's `isaaclab` blocks their neutral name `mapping`, in place.

    Returns:
        The new name of each renamed block with its old one, and a problem for each environment that has both.
    """
    renamed: dict[str, str] = {}
    problems: list[Problem] = []
    envs = values.get("env")
    for name in ("train", "eval"):
        env = envs.get(name) if isinstance(envs, dict) else None
        if not isinstance(env, dict) or "isaaclab" not in env:
            continue
        block = env.pop("isaaclab")
        key = f"env.{name}.isaaclab"
        if "mapping" in env:
            problems.append(
                Problem(
                    problem=f"Two names of one block: {key}",
                    path=("env", name, "isaaclab"),
                    value=block,
                    expected=f"{key} or env.{name}.mapping, not both: they are two names of the same block",
                    mend=f"keep env.{name}.mapping and remove {key}, or set the keys of {key} itself",
                )
            )
        else:
            env["mapping"] = block
            renamed[f"env.{name}.mapping"] = key
    return renamed, problems


def _drop_nulls(values: Mapping[str, Any]) -> None:
    """Let null stand for the default of every key of a mapping, in place."""
    envs = values.get("env")
    for name in ("train", "eval"):
        env = envs.get(name) if isinstance(envs, dict) else None
        mapping = env.get("mapping") if isinstance(env, dict) else None
        if isinstance(mapping, dict):
            for key in [key for key in _MAPPING_KEYS & mapping.keys() if mapping[key] is None]:
                del mapping[key]


def _active_problem(active: Active) -> Problem:
    key, neutral = dotted(active.path), active.legacy.neutral[0]
    text = "null" if neutral is None else str(neutral).lower()
    return Problem(
        problem=f"Not supported: {key}",
        path=active.path,
        value=active.value,
        expected=f"{text}: {active.legacy.why}",
        mend=f"set {key} to {text}, or remove it",
    )
