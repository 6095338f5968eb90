"""Keys of a block that are of other classes than the one that the block is for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from regrasp.config.describe import Path, Spec, dotted

_ABSENT = object()


class Foreign(NamedTuple):
    """A key without effect, whose value is not the default."""

    key: str
    value: Any
    default: Any
    owner: str
    """Name of the class that has it."""


def take_foreign(values: dict[str, Any], own: type, table: Mapping[str, type], path: Path) -> list[Foreign]:
    """Remove, in place, the keys that a block and those inside it have for other classes alone.

    Args:
        values: The block.
        own: Its class.
        table: Every class by its names.
        path: The block's key.
    """
    found: list[Foreign] = []
    for inner, block, value in list(_unknown(values, Spec(own))):
        for owner in table:
            info = None if table[owner] is own else Spec(table[owner]).info_at(inner)
            if info is not None:
                del block[str(inner[-1])]
                default = info.get_default(call_default_factory=True, validated_data={})
                found += _changed((*path, *inner), value, default, owner)
                break
    return found


def _unknown(values: dict[str, Any], spec: Spec, path: Path = ()) -> Iterator[tuple[Path, dict[str, Any], Any]]:
    """Every key that a block's class does not have, with the block that has it and its value."""
    for name, value in values.items():
        child = spec.child(name)
        if child is None:
            yield (*path, name), values, value
        elif child.block is not None and isinstance(value, dict):
            yield from _unknown(value, child, (*path, name))


def _changed(path: Path, value: Any, default: Any, owner: str) -> Iterator[Foreign]:
    """The keys at and below `path` whose value is not the default."""
    if isinstance(value, Mapping) and dataclasses.is_dataclass(default):
        for name, inner in value.items():
            yield from _changed((*path, name), inner, getattr(default, name, _ABSENT), owner)
    elif (list(default) if isinstance(default, tuple) else default) != value:
        yield Foreign(dotted(path), value, default, owner)
