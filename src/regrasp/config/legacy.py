"""Keys of RLinf's configuration files that are read but have no effect here; `legacy.yaml` has them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from regrasp.config.describe import Path as KeyPath
from regrasp.config.describe import dotted, split_key
from regrasp.errors import UserError

_TABLES: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
NO_EFFECT: dict[str, list[str]] = _TABLES["no_effect"]
NEUTRAL: dict[str, Any] = _TABLES["neutral"]
DUPLICATES: dict[str, str] = _TABLES["duplicates"]
SYNONYMS: dict[str, dict[Any, str]] = _TABLES["synonyms"]

_REASONS = {split_key(key): why for why, keys in NO_EFFECT.items() for key in keys}
_PATHS = [*_REASONS, *map(split_key, DUPLICATES)]


def known_children(path: KeyPath) -> tuple[str, ...]:
    """The legacy keys, duplicates and legacy sections directly below a path."""
    depth = len(path)
    below = (str(pattern[depth]) for pattern in _PATHS if len(pattern) > depth and _matches(pattern[:depth], path))
    return tuple(dict.fromkeys(name for name in below if name != "*"))


def merge_duplicates(values: dict[str, Any]) -> list[str]:
    """Remove the keys that RLinf writes twice; a warning for each that disagrees with the one that counts.

    A copy fills the place of an original that is missing or null.
    """
    warnings: list[str] = []
    for copy, original in DUPLICATES.items():
        (source, name), (target, counting) = _place(values, copy), _place(values, original)
        if source is None or target is None or name not in source:
            continue
        value = source.pop(name)
        if target.get(counting) is None:
            target[counting] = value
        elif value not in (None, target[counting]):
            warnings.append(f"{copy} ({value}) differs from {original} ({target[counting]}): {original} is used.")
    return warnings


def translate_synonyms(values: dict[str, Any]) -> None:
    """Give the values that RLinf names otherwise their names here, in place."""
    for key, names in SYNONYMS.items():
        block, name = _place(values, key)
        if block is not None and isinstance(block.get(name), str):
            block[name] = names.get(block[name], block[name])


def strip_legacy(values: dict[str, Any], own: Collection[KeyPath] = ()) -> tuple[dict[str, str], list[UserError]]:
    """Remove every legacy key.

    Args:
        values: The configuration.
        own: Keys that have an effect in this one.

    Returns:
        Why each removed key has no effect (a section that held several and nothing else counts as one), and a problem
        for each whose value would have changed the training.
    """
    problems: list[UserError] = []

    def strip(node: dict[str, Any], above: KeyPath) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in list(node):
            path = (*above, name)
            pattern = next((one for one in _REASONS if path not in own and _matches(one, path)), None)
            if pattern is not None:
                found[dotted(path)] = _REASONS[pattern]
                problems.extend(_unsupported(dotted(path), node.pop(name), pattern))
            elif isinstance(node[name], dict):
                found |= strip(node[name], path)
                if not node[name] and name in known_children(above):
                    del node[name]
        whole_section = above and len(found) > 1 and not node and len(set(found.values())) == 1
        return {dotted(above): next(iter(found.values()))} if whole_section else found

    return strip(values, ()), problems


def _unsupported(key: str, value: Any, pattern: KeyPath) -> Iterator[UserError]:
    """The mistake of a legacy key whose value asks for what is not done here, if it does."""
    neutral = NEUTRAL.get(dotted(pattern), value)
    if value != neutral:
        text = "null" if neutral is None else str(neutral).lower()
        expected, fix = f"{text}: {_REASONS[pattern]}", f"set {key} to {text}, or remove it"
        yield UserError("Not supported", key=key, value=value, expected=expected, fix=fix)


def ignored_warning(reasons: Mapping[str, str], file: object) -> str:
    """One text for all ignored keys, grouped by reason."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for key, why in reasons.items():
        groups[why].append(key)
    lines = [f"  {', '.join(keys)} ({why})" for why, keys in groups.items()]
    return "\n".join([f"These keys of {file} have no effect here:", *lines])


def _matches(pattern: KeyPath, path: KeyPath) -> bool:
    return len(pattern) == len(path) and all(a in ("*", b) for a, b in zip(pattern, path, strict=True))


def _place(values: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    """The block that has a key, None where there is none, and the key's name in it."""
    *parents, name = key.split(".")
    node: Any = values
    for step in parents:
        node = node.get(step) if isinstance(node, dict) else None
    return (node if isinstance(node, dict) else None), name
