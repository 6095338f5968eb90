"""Makes environments, and says what was wrong where that is not possible."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from regrasp.envs.gymnasium.child.options import EnvOptions
from regrasp.errors import UserError

_NUM_NEAREST = 5
_COLLECTING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
MadeT = TypeVar("MadeT")


def find_specs(options: EnvOptions) -> list[Any]:
    """Gymnasium's record of the environment of each task; see `_find_spec`."""
    key = f"{options.location}.init_params"
    if not options.tasks:
        return [_find_spec(options, options.id, f"{key}.id")]
    return [
        _find_spec(options, task["id"] or options.id, f"{key}.tasks[{number}].id" if task["id"] else f"{key}.id")
        for number, task in enumerate(options.tasks)
    ]


def _find_spec(options: EnvOptions, full: str, key: str) -> Any:
    """Gymnasium's record of an environment, after importing the module of a `module:Id`.

    Raises:
        UserError: The module cannot be imported, or registers no such environment.
    """
    gymnasium = importlib.import_module("gymnasium")
    importlib.import_module("gymnasium.envs")
    module, colon, name = full.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                f"The module that registers the environment cannot be imported: {error}",
                key=key,
                value=full,
                expected="`module:Id` with a module of the simulator's Python, or an id that Gymnasium knows",
                fix=f"install the package, or correct the name; {options.location}.python chooses the interpreter",
            ) from error
    known = gymnasium.registry
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        near = _nearest(name, list(known))
        raise UserError(
            f"Gymnasium knows no such environment: {str(error).splitlines()[0]}",
            key=key,
            value=full,
            expected=f"one of the nearest, {', '.join(near)}" if near else "an id that is registered with Gymnasium",
            fix=f"did you mean '{near[0]}'? An environment of another package is written module:Id"
            if near
            else f"correct it: {module} was imported, and registers none of this name"
            if colon
            else "write it module:Id, with the module that registers it",
        ) from error


def _nearest(name: str, known: list[str]) -> list[str]:
    """Registered ids whose spelling is near, whatever their upper case and version."""
    bare: dict[str, list[str]] = {}
    for full in known:
        bare.setdefault(full.lower().rpartition("-v")[0] or full.lower(), []).append(full)
    stem = name.lower().rpartition("-v")[0] or name.lower()
    names = difflib.get_close_matches(stem, list(bare), _NUM_NEAREST)
    return [sorted(bare[found])[-1] for found in names]


def made(options: EnvOptions, make: Callable[[], MadeT], name: str, kwargs: Mapping[str, Any]) -> MadeT:
    """What `make` makes of the environment `name` with `kwargs`.

    Raises:
        UserError: Code of the environment or of Gymnasium refused; with its message and place.
    """
    try:
        return make()
    except Exception as error:
        raise UserError(
            f"The environment cannot be made: {type(error).__name__}: {error}",
            key=f"{options.location}.init_params.{'tasks' if options.tasks else 'kwargs' if kwargs else 'id'}",
            value=dict(kwargs) or name,
            expected=f"what {name} can be made with{_parameters(name)}",
            fix=how_to_mend(options, error),
        ) from error


def _parameters(name: str) -> str:
    """The arguments that the maker of a registered environment names; empty where it names none."""
    gymnasium = importlib.import_module("gymnasium")
    entry = gymnasium.spec(name.rpartition(":")[2]).entry_point
    try:
        maker = importlib.import_module("gymnasium.envs.registration").load_env_creator(entry)
        named = [one.name for one in inspect.signature(maker).parameters.values() if one.kind not in _COLLECTING]
    except (ImportError, TypeError, ValueError, AttributeError):  # a vector's entry point, a builtin, a missing package
        return ""
    return f": {', '.join(named)}" if named else ""


def how_to_mend(options: EnvOptions, error: Exception) -> str:
    """What to do about an error of an environment's code: a missing package, or what its file and line say."""
    lacks = isinstance(error, ImportError) or type(error).__name__ == "DependencyNotInstalled"  # Gymnasium's
    if not lacks:
        return f"see {place_of(error)}, which raised this"
    return f"install it for {sys.executable}, which runs the environments; {options.location}.python chooses another"


def place_of(error: Exception) -> str:
    """File and line that raised an error."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}, line {last.lineno}"


def load_expert(options: EnvOptions) -> Callable[[Any], Callable[[Any], Any]]:
    """The scripted expert that the options name.

    Raises:
        UserError: There is no such module, or no such function in it.
    """
    assert options.expert is not None
    module_name, _, attribute = options.expert.partition(":")
    place = {
        "key": f"{options.location}.init_params.expert",
        "value": options.expert,
        "expected": "`module:function` of the simulator's Python, a function of an environment",
    }
    try:
        module = importlib.import_module(module_name or ".")
    except (ImportError, TypeError, ValueError) as error:
        fix = f"correct the name, or call from the module's folder; {options.location}.python chooses the interpreter"
        raise UserError(f"The module of the expert cannot be imported: {error}", **place, fix=fix) from error
    if not callable(getattr(module, attribute, None)):
        found = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        fix = f"{module_name} has {', '.join(found) or 'no function'}"
        raise UserError(f"{module_name} has no function '{attribute}'", **place, fix=fix)
    return getattr(module, attribute)
