"""Makes environments, and says what was wrong where that is not possible."""

from __future__ import annotations

import difflib
import importlib
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from regrasp.envs.gymnasium.child.options import EnvOptions
from regrasp.errors import UserError

_NUM_NEAREST = 5
MadeT = TypeVar("MadeT")


def find_spec(options: EnvOptions) -> Any:
    """Gymnasium's record of the environment, after importing the module of a `module:Id`.

    Raises:
        UserError: The module cannot be imported, or registers no such environment.
    """
    gymnasium = importlib.import_module("gymnasium")
    importlib.import_module("gymnasium.envs")
    key = f"{options.location}.init_params.id"
    module, colon, name = options.id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                f"The module that registers the environment cannot be imported: {error}",
                key=key,
                value=options.id,
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
            value=options.id,
            expected=f"one of the nearest, {', '.join(near)}" if near else "an id that is registered with Gymnasium",
            fix=f"did you mean '{near[0]}'? An environment of another package is written module:Id"
            if near
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


def made(options: EnvOptions, make: Callable[[], MadeT]) -> MadeT:
    """What `make` makes.

    Raises:
        UserError: Code of the environment or of Gymnasium refused; with its message and place.
    """
    try:
        return make()
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"The environment cannot be made: {type(error).__name__}: {error}",
            key=f"{options.location}.init_params.kwargs" if options.kwargs else f"{options.location}.init_params.id",
            value=dict(options.kwargs) or options.id,
            expected=f"what {options.id} can be made with",
            fix=f"see {last.filename}, line {last.lineno}, which raised this",
        ) from error
