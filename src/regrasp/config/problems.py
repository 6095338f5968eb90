"""From what is wrong in a configuration to one message that names every place and its cure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from regrasp.config.describe import Path, Spec, dotted, split_key
from regrasp.config.legacy import known_children
from regrasp.config.sources import Place, Sources
from regrasp.errors import UserError

_UNKNOWN_KEY = "Unknown key"


def not_a_multiple(key: str, value: int, of: str, divisor: int) -> Iterator[UserError]:
    """The mistake of a key whose value is no multiple of another key's, if it is one."""
    if value % divisor:
        near = max(1, round(value / divisor)) * divisor
        expected = f"a multiple of {of} ({divisor})"
        fix = f"set {key}={near}, or {of} to a divisor of {value}"
        yield UserError("Not divisible", key=key, value=value, expected=expected, fix=fix)


def raise_problems(problems: Iterable[UserError], sources: Sources) -> None:
    """Raise one `UserError` that holds every problem, each with the file and the key as they were written."""
    errors: dict[tuple[str, str], UserError] = {}
    for error in problems:
        place = place_of(error, sources)
        errors.setdefault((error.problem, place.identity), _located(error, place))
    if len(errors) == 1:
        raise next(iter(errors.values()))
    if errors:
        texts = "\n".join(str(error) for error in errors.values())
        raise UserError(f"{len(errors)} problems in the configuration:\n{texts}")


def place_of(error: UserError, sources: Sources) -> Place:
    """Where a mistake is mended: where the value comes from, or the key itself where that one is to go."""
    goes = error.problem == _UNKNOWN_KEY or "remove" in (error.fix or "")
    return sources.locate(split_key(error.key or ""), follow=not goes)


def _located(error: UserError, place: Place) -> UserError:
    """The error with its key, in all its texts, as it was written."""
    fields, key = error.fields(), error.key or ""
    fields |= {"problem": f"{error.problem}: {key or 'the configuration'}", "fix": error.fix or f"set {key}"}
    for name in ("problem", "expected", "fix") if key else ():
        fields[name] = (fields[name] or "").replace(key, place.key)
    if "value" in fields:
        fields["value"] = _short(fields["value"])
    return UserError(**{**fields, "file": place.file, "key": place.key})


def _short(value: Any) -> Any:
    """A large block by its keys alone."""
    return dict.fromkeys(value, "...") if isinstance(value, Mapping) and len(repr(value)) > 100 else value


def schema_problems(error: ValidationError, values: Mapping[str, Any], root: Spec) -> list[UserError]:
    """Translate Pydantic's errors; alternatives of one value (a union) give one problem."""
    problems: dict[Path, UserError] = {}
    for detail in error.errors(include_url=False):
        path, value = _resolve(detail["loc"], values)
        if detail["type"] == "too_short" and value:
            continue  # items that are wrong are not counted: they are the problem
        if detail["type"] == "user_error":
            problem = detail.get("ctx", {})["error"]
            found = [(path, problem if problem.key else problem.at(None, dotted(path)))]
        elif detail["type"] == "unexpected_keyword_argument":
            found = [(leaf, _unknown_key(leaf, value, values, root)) for leaf, value in _unknown_leaves(path, value)]
        elif detail["type"] == "missing" and isinstance(detail["loc"][-1], str):
            path = (*path, detail["loc"][-1])
            found = [(path, _missing_key(path, root.at(path, values)))]
        else:
            found = [(path, _bad_value(path, value, values, root))]
        for place, problem in found:
            problems.setdefault(place, problem)
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


def _unknown_key(path: Path, value: Any, values: Mapping[str, Any], root: Spec) -> UserError:
    *parent, name = path
    above = root.at(tuple(parent), values)
    own = list(above.fields()) if above else []
    accepted = known_children(tuple(parent))
    low = str(name).lower()
    near = get_close_matches(low, own, n=2) or get_close_matches(low, accepted, n=2)
    close = [dotted((*parent, key)) for key in near]
    leaves = {str(known[-1]): known for known in reversed(list(root.paths()))}
    if low in leaves and low not in own:
        close = [dotted(leaves[low]), *close][:2]
    elif not close:
        close = [dotted(leaves[key]) for key in get_close_matches(low, leaves, n=1, cutoff=0.8)]
    where = dotted(tuple(parent)) or "the top level"
    return UserError(
        _UNKNOWN_KEY,
        key=dotted(path),
        value=value,
        expected=f"one of the keys of {where}: {', '.join(own or accepted)}",
        fix=f"did you mean {' or '.join(close)}?" if close else "remove it, or see docs/configuration.md",
    )


def _missing_key(path: Path, spec: Spec | None) -> UserError:
    assert spec is not None
    fix = f"add {dotted(path)}: {'a block' if spec.block else spec.words()}"
    return UserError("Missing key", key=dotted(path), expected=spec.words(), fix=fix)


def _bad_value(path: Path, value: Any, values: Mapping[str, Any], root: Spec) -> UserError:
    spec = root.at(path, values)
    assert spec is not None
    key, expected = dotted(path), spec.words()
    default = root.default_at(path, values)
    close = get_close_matches(str(value), [choice for choice in spec.choices if isinstance(choice, str)], n=1)
    if close:
        fix = f"did you mean {key}={close[0]}?"
    elif expected.startswith("a block with the keys"):
        fix = f"write {key} as a block of keys" + (", or remove it" if default is not None else "")
    elif isinstance(default, (bool, int, float, str)):
        fix = f"set {key} to {expected}, for example {key}={str(default).lower()}"
    else:
        fix = f"set {key} to {expected}"
    return UserError("Invalid value", key=key, value=value, expected=expected, fix=fix)
