"""From what is wrong in a configuration to one message that names every place and its cure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from regrasp.config.describe import Path, Spec, dotted
from regrasp.config.legacy import known_children
from regrasp.config.sources import Place, Sources, split_key
from regrasp.errors import UserError

ABSENT = object()
"""Stands for the value of a key that is missing."""


@dataclass(frozen=True)
class Problem:
    """One mistake in a configuration, before the file is known in which it was made."""

    problem: str
    path: Path
    value: Any
    expected: str
    mend: str

    @classmethod
    def of(cls, error: UserError) -> Problem:
        """What a check beside the blocks found."""
        key = error.key or ""
        return cls(
            f"{error.problem}: {key}", split_key(key), error.value, error.expected or "", error.mend or f"set {key}"
        )


def raise_problems(problems: Sequence[Problem], sources: Sources) -> None:
    """Raise one `UserError` that holds every problem, each with its own file, key, value, expectation and mend."""
    errors: dict[tuple[str, str], UserError] = {}
    for problem in problems:
        place = sources.locate(problem.path)
        errors.setdefault((problem.problem.partition(":")[0], place.identity), _located(problem, place))
    if len(errors) == 1:
        raise next(iter(errors.values()))
    if errors:
        texts = "\n".join(str(error) for error in errors.values())
        raise UserError(f"{len(errors)} problems in the configuration:\n{texts}")


def _located(problem: Problem, place: Place) -> UserError:
    name = dotted(problem.path)

    def as_written(text: str) -> str:
        return text.replace(name, place.key) if name else text

    return UserError(
        as_written(problem.problem),
        file=place.file,
        key=place.key,
        expected=as_written(problem.expected),
        mend=as_written(problem.mend),
        **({} if problem.value is ABSENT else {"value": _short(problem.value)}),
    )


def _short(value: Any) -> Any:
    """A large block by its keys alone."""
    return dict.fromkeys(value, "...") if isinstance(value, Mapping) and len(repr(value)) > 100 else value


def schema_problems(error: ValidationError, values: Mapping[str, Any], root: Spec) -> list[Problem]:
    """Translate Pydantic's errors; alternatives of one value (a union) give one problem."""
    problems: dict[Path, Problem] = {}
    for detail in error.errors(include_url=False):
        path, value = _resolve(detail["loc"], values)
        if detail["type"] == "user_error":
            found = [Problem.of(detail.get("ctx", {})["error"])]
        elif detail["type"] == "unexpected_keyword_argument":
            found = [_unknown_key(*leaf, values, root) for leaf in _unknown_leaves(path, value)]
        elif detail["type"] == "missing" and isinstance(detail["loc"][-1], str):
            path = (*path, detail["loc"][-1])
            found = [_missing_key(path, root.at(path, values))]
        else:
            found = [_bad_value(path, value, values, root)]
        for problem in found:
            problems.setdefault(problem.path, problem)
    above = set(problems)
    return [found for path, found in problems.items() if not any(path[:depth] in above for depth in range(len(path)))]


def _resolve(loc: Path, data: Mapping[str, Any]) -> tuple[Path, Any]:
    """The part of Pydantic's location that exists in the data, and the value there."""
    path: Path = ()
    value: Any = data
    for step in loc:
        match value, step:
            case dict(), str() if step in value:
                value = value[step]
            case list(), int() if step < len(value):
                value = value[step]
            case _:
                break
        path = (*path, step)
    return path, value


def _unknown_leaves(path: Path, value: Any) -> list[tuple[Path, Any]]:
    """The unknown keys below a section of which only the legacy keys are known."""
    is_legacy_section = bool(path) and path[-1] in known_children(path[:-1])
    if not (isinstance(value, Mapping) and value and is_legacy_section):
        return [(path, value)]
    return [leaf for key, inner in value.items() for leaf in _unknown_leaves((*path, key), inner)]


def _unknown_key(path: Path, value: Any, values: Mapping[str, Any], root: Spec) -> Problem:
    *parent, name = path
    above = root.at(tuple(parent), values)
    own = list(above.fields()) if above else []
    siblings = list(dict.fromkeys([*own, *known_children(tuple(parent))]))
    close = [dotted((*parent, key)) for key in get_close_matches(str(name), siblings, n=2)]
    if not close:
        leaves = {str(known[-1]): known for known in reversed(list(root.paths()))}
        close = [dotted(leaves[key]) for key in get_close_matches(str(name), leaves, n=1, cutoff=0.8)]
    where = dotted(tuple(parent)) or "the top level"
    return Problem(
        problem=f"Unknown key: {dotted(path)}",
        path=path,
        value=value,
        expected=f"one of the keys of {where}: {', '.join(siblings)}",
        mend=f"did you mean {' or '.join(close)}?" if close else "remove it, or see docs/configuration.md",
    )


def _missing_key(path: Path, spec: Spec | None) -> Problem:
    assert spec is not None
    return Problem(
        problem=f"Missing key: {dotted(path)}",
        path=path,
        value=ABSENT,
        expected=spec.words(),
        mend=f"add {dotted(path)}: {'a block' if spec.block else spec.words()}",
    )


def _bad_value(path: Path, value: Any, values: Mapping[str, Any], root: Spec) -> Problem:
    spec = root.at(path, values)
    assert spec is not None
    key, expected = dotted(path), spec.words()
    default = root.default_at(path, values)
    close = get_close_matches(str(value), [choice for choice in spec.choices if isinstance(choice, str)], n=1)
    if close:
        mend = f"did you mean {key}={close[0]}?"
    elif expected.startswith("a block with the keys"):
        mend = f"write {key} as a block of keys" + (", or remove it" if default is not None else "")
    elif isinstance(default, (bool, int, float, str)):
        mend = f"set {key} to {expected}, for example {key}={str(default).lower()}"
    else:
        mend = f"set {key} to {expected}"
    return Problem(f"Invalid value: {key or 'the configuration'}", path, value, expected, mend)
