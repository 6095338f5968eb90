"""Composition of one experiment by Hydra: the YAML file, what it inherits, and the command line's overrides."""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from regrasp.config.describe import split_key
from regrasp.config.search import SHIPPED
from regrasp.config.sources import COMMAND_LINE, SourceFile, Sources, broken_yaml, compose_nodes
from regrasp.errors import UserError

_UNSET_VARIABLE = re.compile(r"Environment variable '(\w+)' not found")
_RESOLVERS = {
    "multiply": lambda one, other: one * other,
    "int_div": lambda one, other: one // other,
    "subtract": lambda one, other: one - other,
    "not": lambda value: not value,
}
"""The arithmetic that RLinf's files may use in an interpolation, such as `${multiply:2,3}`."""
for _name, _resolver in _RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _resolver, replace=True)


@dataclass(frozen=True)
class Composition:
    """A composed experiment, not yet checked."""

    config: DictConfig
    """Every value, before interpolation."""
    sources: Sources
    has_idle_hydra_block: bool
    """The file sets more of Hydra than its search path, which is all that matters here."""

    def resolved(self) -> dict[str, Any]:
        """Every value, interpolations resolved.

        Raises:
            UserError: A bad interpolation.
        """
        return _resolved(self.config, self.sources)


def compose_experiment(
    file: Path, overrides: Sequence[str], flags: Mapping[str, str] | None = None, whole: Collection[str] = ()
) -> Composition:
    """Compose a file with overrides.

    Args:
        file: The experiment.
        overrides: Hydra overrides.
        flags: The flag that stands for an override, by the override's text.
        whole: Blocks that an override replaces; it adds its keys to those of others.

    Raises:
        UserError: Broken YAML, a bad override, or a missing part of the `defaults` list.
    """
    nodes = compose_nodes(file)
    top_level = {key.value: value for key, value in nodes.value} if nodes else {}
    parsed = [_parse(text) for text in overrides]
    lines: list[str] = []
    for override in parsed:
        if override.key_or_group in whole and override.type in (OverrideType.CHANGE, OverrideType.FORCE_ADD):
            lines.append(f"++{override.key_or_group}=null")
        lines.append(_forced(override, file.parent))
    hydra_keys = _keys(top_level.get("hydra"))
    if "searchpath" not in hydra_keys and all(override.key_or_group != "hydra.searchpath" for override in parsed):
        quoted = as_override("", f"file://{SHIPPED}")[1:]
        lines.append(f"hydra.searchpath=[{quoted}]")
    config, files = _compose(file, lines, parsed, inherits="defaults" in top_level)
    sources = Sources(
        files=files,
        overrides=tuple(override.key_or_group for override in parsed),
        flags=tuple((flags or {}).get(text) for text in overrides),
        written=_container(config, resolve=False),
    )
    return Composition(config, sources, bool(hydra_keys - {"searchpath"}))


def as_override(key: str, value: str | float | bool | None) -> str:
    """The override that sets a key to exactly this value, whatever characters it has; for flags and paths."""
    if not isinstance(value, str):
        return f"{key}={json.dumps(value)}"
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + match[2].replace("'", r"\'"), value)
    return f"{key}='{escaped}'".replace("${", r"\${")


def _parse(text: str) -> Override:
    """An override by Hydra's grammar."""
    key, equals, value = text.partition("=")
    override = None
    with contextlib.suppress(HydraException):
        override = OverridesParser.create().parse_override(text)
    if override is None and not equals:
        problem, fix = f"The override {text} has no value.", f"write key=value, without spaces: {key.strip()}=..."
    elif override is None and key.strip():
        problem = f"The value of the override cannot be read: {value}"
        fix = f"write key=value; close brackets and quotes, and quote special characters: \"{key}='...'\""
        if value.lstrip().startswith("{"):
            fix += r"; in the keys of a block, escape commas: '{a\,b:0}'"
    elif override is None or not override.key_or_group:
        problem, fix = "The override names no key.", "write key=value; quote values with special characters"
    elif override.is_sweep_override():
        problem = f"The override {text} gives several values."
        fix = f"write a list in brackets: '{override.key_or_group}=[{value}]'"
    else:
        return override
    raise _bad_override(text, problem, fix)


def _bad_override(text: str, problem: str, fix: str) -> UserError:
    return UserError(
        problem,
        file=COMMAND_LINE,
        key=text.partition("=")[0].strip() or text,
        value=text,
        expected="key=value, for example algorithm.update_epoch=2",
        fix=fix,
    )


def _forced(override: Override, folder: Path) -> str:
    """The override as Hydra takes it for a key that the file leaves to its default; the schema rejects unknown ones."""
    text = override.input_line or ""
    plain = override.type == OverrideType.CHANGE and override.package is None
    is_group = (folder / override.key_or_group).is_dir() or "/" in override.key_or_group
    return f"++{text}" if plain and not is_group and not override.is_hydra_override() else text


def _keys(node: yaml.Node | None) -> set[str]:
    return {key.value for key, _ in node.value} if isinstance(node, yaml.MappingNode) else set()


def _compose(
    file: Path, lines: list[str], overrides: Sequence[Override], *, inherits: bool
) -> tuple[DictConfig, tuple[SourceFile, ...]]:
    with warnings.catch_warnings(record=True, action="always") as notes:  # Hydra's
        try:
            with initialize_config_dir(str(file.parent), job_name="regrasp", version_base="1.3"):
                config = compose(file.stem, lines, return_hydra_config=True)
                sources = config.hydra.runtime.config_sources
                folders = [Path(source.path) for source in sources if source.schema == "file"]
                with open_dict(config):
                    del config["hydra"]
                return config, _inherited_files(file, lines, folders) if inherits else (SourceFile(file),)
        except yaml.MarkedYAMLError as error:
            raise broken_yaml(error, _marked_file(error, file)) from error
        except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
            absent = [str(note.message) for note in notes if "is not available" in str(note.message)]
            raise _composition_error(error, file, overrides, absent) from error


def _marked_file(error: yaml.MarkedYAMLError, file: Path) -> Path:
    name = error.problem_mark.name if error.problem_mark else ""
    return Path(name) if name.endswith(".yaml") else file


def _inherited_files(file: Path, lines: list[str], folders: Sequence[Path]) -> tuple[SourceFile, ...]:
    """The files of Hydra's defaults list, in its order, each in the first of the folders that has it."""
    loader = GlobalHydra.instance().config_loader()
    files: list[SourceFile] = []
    for entry in loader.compute_defaults_list(file.stem, lines, RunMode.RUN).defaults:
        paths = (folder / f"{entry.config_path}.yaml" for folder in folders)
        if (path := next(filter(Path.is_file, paths), None)) is not None:
            files.append(SourceFile(path, entry.package or ""))
    return tuple(files)


def _composition_error(error: Exception, file: Path, overrides: Sequence[Override], absent: Sequence[str]) -> UserError:
    reasons = [error, error.__cause__, error.__context__]
    text = next((text for reason in reasons if (text := str(reason or ""))), type(error).__name__)
    if (unset := _unset_variable("".join(map(str, reasons)))) is not None:
        return unset.in_file(file)
    texts = [override.input_line or "" for override in overrides if _is_blamed(override, text)]
    reason = " ".join([*text.splitlines()[:2], *absent])
    if isinstance(error, RecursionError):
        reason = "a file of the `defaults` list inherits from itself"
    if texts:
        return _bad_override(
            texts[0],
            f"The override cannot be applied: {str(error.__cause__ or error.__context__ or reason).splitlines()[0]}",
            fix="set a key that exists; docs/configuration.md lists them",
        )
    return UserError(
        f"The configuration cannot be composed: {reason}",
        file=file,
        key="defaults",
        expected="a `defaults` list whose entries exist beside this file, in a folder of hydra.searchpath, or among the"
        " shipped configurations",
        fix="remove the entry from `defaults` (or from a `hydra` block), or add the file it names",
    )


def _unset_variable(text: str) -> UserError | None:
    """What to tell of an interpolation that reads an environment variable, where that is what is wrong."""
    match = _UNSET_VARIABLE.search(text)
    if match is None:
        return None
    name, known = match[1], " (RLinf's: the folder examples/embodiment)" if match[1] == "EMBODIED_PATH" else ""
    return UserError(
        f"The environment variable {name} is not set.",
        key=f"${{oc.env:{name}}}",
        expected=f"the folder or name that this file reads from {name}{known}",
        fix=f"export {name}=... before the command, or write the value itself",
    )


def _is_blamed(override: Override, message: str) -> bool:
    return f"'{override.key_or_group}'" in message or (override.input_line or override.key_or_group) in message


def _container(config: DictConfig, *, resolve: bool) -> dict[str, Any]:
    container = OmegaConf.to_container(config, resolve=resolve, throw_on_missing=resolve)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _resolved(config: DictConfig, sources: Sources) -> dict[str, Any]:
    try:
        return _container(config, resolve=True)
    except OmegaConfBaseException as error:
        path = split_key(error.full_key or "")
        place = sources.locate(path, follow=False)
        if (unset := _unset_variable(str(error))) is not None:
            raise unset.at(place.file, place.key) from error
        if isinstance(error, MissingMandatoryValue):
            problem, expected, fix = f"{place.key} has no value.", "a value instead of ???", f"set {place.key}"
        else:
            problem = f"The interpolation in {place.key} cannot be resolved: {str(error).splitlines()[0]}"
            expected, fix = "${key} of an existing key", "correct the key between ${ and }, or write the value itself"
        raise UserError(
            problem, file=place.file, key=place.key, value=sources.value(path), expected=expected, fix=fix
        ) from error
