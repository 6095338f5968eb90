"""What RLinf's configuration files have and the schema does not; `legacy.yaml` has the tables."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from regrasp.config.describe import Path as KeyPath
from regrasp.config.describe import Spec, dotted, split_key
from regrasp.errors import UserError

_TABLES: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
NO_EFFECT: dict[str, list[str]] = _TABLES["no_effect"]
NEUTRAL: dict[str, Any] = _TABLES["neutral"]
COPIES: dict[str, str] = _TABLES["copies"]
EVALUATED: list[str] = _TABLES["evaluated"]
NEWER_NAMES: dict[str, str] = _TABLES["newer_names"]
BOTH_GIVEN: list[str] = _TABLES["both_given"]
SYNONYMS: dict[str, dict[str, str | None]] = _TABLES["synonyms"]
NOT_IN_THIS_RELEASE: dict[str, dict[str, str]] = _TABLES["not_in_this_release"]

_REASONS = {split_key(key): why for why, keys in NO_EFFECT.items() for key in keys}
_PATHS = [*_REASONS, *map(split_key, [*COPIES, *NEWER_NAMES])]


def known_children(path: KeyPath) -> tuple[str, ...]:
    """The legacy keys, second names and legacy sections directly below a path."""
    depth = len(path)
    below = (str(pattern[depth]) for pattern in _PATHS if len(pattern) > depth and _matches(pattern[:depth], path))
    return tuple(dict.fromkeys(name for name in below if name != "*"))


@dataclass
class Merged:
    """What became of the keys that have two names."""

    warnings: list[str] = field(default_factory=list)
    """For each pair that disagreed: which one counts."""
    renamed: dict[str, str] = field(default_factory=dict)
    """The keys that have their value of another name, and that name."""


def merge_names(values: dict[str, Any], overridden: Collection[str], newer: Mapping[str, str] | None = None) -> Merged:
    """Remove the second and the newer names of keys, in place; what was set on the command line always counts.

    Args:
        values: The configuration.
        overridden: Keys that were set on the command line.
        newer: Newer names of keys that the experiment's own model has.
    """
    merged, newer_names = Merged(), NEWER_NAMES | dict(newer or {})
    runner = values.get("runner")
    evaluates = isinstance(runner, dict) and (runner.get("only_eval") or runner.get("task_type") == "embodied_eval")
    for other, name in (COPIES | newer_names).items():
        block, last = _place(values, split_key(other))
        counts = other in newer_names or (evaluates and other in EVALUATED)
        if block is not None and last in block:
            _merge(values, split_key(other), block.pop(last), split_key(name), overridden if counts else None, merged)
    return merged


def _merge(
    values: dict[str, Any],
    other: KeyPath,
    value: Any,
    name: KeyPath,
    overridden: Collection[str] | None,
    merged: Merged,
) -> None:
    """Give `name` the value that was written as `other`; blocks key by key.

    Args:
        values: The configuration.
        other: The other name.
        value: Its value.
        name: The key.
        overridden: Keys that count even so where both have a value; None: every key does.
        merged: Is told.
    """
    block, last = _place(values, name, make=value is not None)
    if block is None or value is None:
        return
    present = block.get(last)
    counts = overridden is not None and dotted(name) not in overridden
    if isinstance(value, dict) and isinstance(present, dict):
        for key, inner in value.items():
            _merge(values, (*other, key), inner, (*name, key), overridden, merged)
        return
    if present is None or counts:
        block[last] = value
        merged.renamed[dotted(name)] = dotted(other)
    if present not in (None, value) and dotted(other) not in BOTH_GIVEN:
        used = dotted(other if counts else name)
        merged.warnings.append(f"{dotted(other)} ({value}) differs from {dotted(name)} ({present}): {used} is used.")


def translate_synonyms(values: dict[str, Any]) -> None:
    """Give the values that RLinf names otherwise their names here, in place."""
    for key, names in SYNONYMS.items():
        block, name = _place(values, split_key(key))
        if block is not None and isinstance(block.get(name), str):
            block[name] = names.get(block[name], block[name])


def unreleased(values: Mapping[str, Any], root: Spec) -> Iterator[UserError]:
    """What a configuration names that is not in this release; `values` may be interpolations still."""
    for pattern, names in NOT_IN_THIS_RELEASE.items():
        for path, value in _found(values, split_key(pattern)):
            known = _choices(path, values, root)
            if isinstance(value, str) and value in names and value not in known:
                expected = " or ".join(map(repr, known))
                fix = "set one of these, with the keys that it needs"
                yield UserError(
                    f"Not in this release: {names[value]}", key=dotted(path), value=value, expected=expected, fix=fix
                )


def missing_features(values: Mapping[str, Any], root: Spec, own: Collection[KeyPath] = ()) -> Iterator[UserError]:
    """What a configuration asks for that is not done here: it decides whether anything else in the file matters.

    Args:
        values: The configuration, before `strip_legacy`.
        root: The schema.
        own: Keys of the table without effect that have one in this configuration.
    """
    yield from unreleased(values, root)
    for pattern, names in NOT_IN_THIS_RELEASE.items():
        for path, value in _found(values, split_key(pattern)):
            block, known = root.at(path[:-1]), _choices(path, values, root)
            by_type = block and block.by_type
            if by_type and path[-1] == by_type.key and isinstance(value, str) and value not in (*names, *known):
                yield from by_type.problems(_at(values, path[:-1]))
    for pattern, neutral in NEUTRAL.items():
        accepted = neutral if isinstance(neutral, list) else [neutral]
        for path, value in _found(values, split_key(pattern)):
            if path not in own and value not in (*accepted, None):
                text, key = "null" if accepted[0] is None else str(accepted[0]).lower(), dotted(path)
                expected, fix = f"{text}: {_reason(path)}", f"set {key} to {text}, or remove it"
                yield UserError("Not supported", key=key, value=value, expected=expected, fix=fix)


def strip_legacy(values: dict[str, Any], own: Collection[KeyPath] = ()) -> dict[str, str]:
    """Remove every legacy key, in place.

    Args:
        values: The configuration.
        own: Keys that have an effect in this one.

    Returns:
        Why each removed key has no effect.
    """

    def strip(node: dict[str, Any], above: KeyPath) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in list(node):
            path = (*above, name)
            why = None if path in own else _reason(path)
            if why is not None:
                del node[name]
                found[dotted(path)] = why
            elif isinstance(node[name], dict):
                found |= strip(node[name], path)
                if not node[name] and name in known_children(above):
                    del node[name]
        return found

    return strip(values, ())


def rlinf_notice(reasons: Mapping[str, str], differences: Sequence[str], places: Mapping[str, object]) -> str:
    """One text for all ignored keys, grouped by place and reason, and for those that mean something else.

    Args:
        reasons: Why each key has no effect.
        differences: What keys mean here, and do not mean in RLinf.
        places: Where each of the keys was given.
    """
    groups: defaultdict[object, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for key, why in reasons.items():
        groups[places[key]][why].append(key)
    lines: list[str] = []
    for place, group in groups.items():
        lines.append(f"These keys of {place} have no effect here:")
        lines += [f"  {', '.join(keys)} ({why})" for why, keys in group.items()]
    if differences:
        lines += ["These mean something else than in RLinf (docs/rlinf.md):", *(f"  {text}" for text in differences)]
    return "\n".join(lines)


def _choices(path: KeyPath, values: Mapping[str, Any], root: Spec) -> tuple[Any, ...]:
    """The values that a key may have."""
    spec = root.at(path, values)
    return spec.choices if spec is not None else ()


@functools.cache
def _reason(path: KeyPath) -> str | None:
    """Why a key, or the section that it is in, has no effect; None where it is not in the table."""
    return next((why for pattern, why in _REASONS.items() if _matches(pattern, path[: len(pattern)])), None)


def _matches(pattern: KeyPath, path: KeyPath) -> bool:
    return len(pattern) == len(path) and all(a in ("*", b) for a, b in zip(pattern, path, strict=True))


def _found(node: Any, pattern: KeyPath, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every key that matches a pattern, with its value."""
    if len(path) == len(pattern):
        yield path, node
    elif isinstance(node, dict):
        step = pattern[len(path)]
        for name in node if step == "*" else {step} & node.keys():
            yield from _found(node[name], pattern, (*path, name))


def _at(values: Any, path: KeyPath) -> Any:
    """The value of a key that is there."""
    for step in path:
        values = values[step]
    return values


def _place(values: dict[str, Any], key: KeyPath, *, make: bool = False) -> tuple[dict[str, Any] | None, str]:
    """The block that has a key, None where there is none and none is to be made, and the key's name in it."""
    *parents, name = key
    node: Any = values
    for step in parents:
        if make and isinstance(node, dict) and node.get(step) is None:
            node[step] = {}
        node = node.get(step) if isinstance(node, dict) else None
    return (node if isinstance(node, dict) else None), str(name)
