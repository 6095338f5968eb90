"""Where each value of a composed configuration was written: a file and line, or the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from regrasp.config.describe import Path as KeyPath
from regrasp.config.describe import dotted, split_key
from regrasp.errors import UserError

COMMAND_LINE = "command line"
_REFERENCE = re.compile(r"\$\{\s*([\w.\[\]]+)\s*\}")
_MERGE_TAG = "tag:yaml.org,2002:merge"
_MAX_DEPTH = 100
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class SourceFile:
    """A YAML file of the composition, and the key under which Hydra puts its content."""

    path: Path
    package: str = ""


@dataclass(frozen=True)
class Place:
    """A key as the user wrote it, and where."""

    key: str
    file: str
    identity: str
    """The same for two keys that share one text, by an anchor or an interpolation."""


@dataclass(frozen=True)
class Sources:
    """The files and overrides of one composition, later ones win."""

    files: tuple[SourceFile, ...]
    overrides: tuple[str, ...] = ()
    """Keys set on the command line."""
    flags: tuple[str | None, ...] = ()
    """The flag behind each override, None for one that the user wrote."""
    written: Mapping[str, Any] = field(default_factory=dict)
    """The composed values before interpolation."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Normalised key to the key as written, for aliases such as `isaaclab`."""

    def locate(self, path: KeyPath, *, follow: bool = True) -> Place:
        """The place that a user has to change.

        Args:
            path: The key.
            follow: Whether its value is to change, which stands at the end of its interpolations; otherwise the key
                itself is, which stands where the block around it was written.
        """
        steps = self._as_written(path)
        steps = self._origin(steps) if follow else (*self._origin(steps[:-1]), *steps[-1:])
        key = dotted(steps)
        if self.overrides_key(steps):
            name = self._flag(steps) or key
            return Place(name, COMMAND_LINE, name)
        file, found = self._find(steps)
        start = found.node.start_mark if found.node else None
        position = f"{start.line}:{start.column}" if start else ""
        return Place(key, f"{file}:{found.line}", f"{file}:{position}:{dotted(steps[found.depth :])}")

    def overrides_key(self, path: KeyPath) -> bool:
        """Whether the command line sets a key as it is written, or a part of it."""
        return any(_overlap(split_key(override), path) for override in self.overrides)

    def _flag(self, path: KeyPath) -> str | None:
        """The flag that set a value, if no override of the user came after it."""
        setters = [(split_key(key), flag) for key, flag in zip(self.overrides, self.flags, strict=False)]
        return next((flag for key, flag in reversed(setters) if path[: len(key)] == key), None)

    def value(self, path: KeyPath) -> Any:
        """The value at a key before interpolation; None where there is none."""
        node: Any = self.written
        for step in path:
            try:
                node = node[step]
            except (KeyError, IndexError, TypeError):
                return None
        return node

    def _as_written(self, path: KeyPath) -> KeyPath:
        for name, alias in self.renamed.items():
            prefix = split_key(name)
            if path[: len(prefix)] == prefix:
                return (*split_key(alias), *path[len(prefix) :])
        return path

    def _origin(self, path: KeyPath, hops: int = 20) -> KeyPath:
        """Follow `${...}` at the value or at a block around it."""
        for depth in range(1, len(path) + 1):
            value = self.value(path[:depth])
            match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
            if match and hops:
                return self._origin((*split_key(match[1]), *path[depth:]), hops - 1)
        return path

    def _find(self, path: KeyPath) -> tuple[Path, _Found]:
        """The file that holds most of a path; the later one where two hold as much."""
        candidates: list[tuple[Path, _Found]] = []
        for source in reversed(self.files):
            package = split_key(source.package)
            if path[: len(package)] == package:
                found = _descend(compose_nodes(source.path), path[len(package) :])
                candidates.append((source.path, replace(found, depth=found.depth + len(package))))
        return max(candidates, key=lambda candidate: candidate[1].depth)


@dataclass(frozen=True)
class _Found:
    """How far a path leads into a file."""

    depth: int
    line: int
    node: yaml.Node | None


def _check_depth(text: str) -> None:
    """Refuse blocks inside blocks without end, which would overflow the stack of libyaml's composer."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"more than {_MAX_DEPTH} blocks inside one another")


def compose_nodes(file: Path) -> yaml.MappingNode | None:
    """The YAML nodes of a file, with their lines; None for an empty file.

    Raises:
        UserError: The file is not readable YAML, or not a block of keys.
    """
    try:
        text = file.read_text(encoding="utf-8")
        _check_depth(text)
        node = yaml.compose(text, Loader=_LOADER)
        wrong = None if node is None else _unusable_node(node, (), set())
    except yaml.MarkedYAMLError as error:
        raise broken_yaml(error, file) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(
            f"Unreadable configuration file: {error}",
            file=file,
            expected="a YAML file in UTF-8",
            fix="check the file's permissions and its encoding",
        ) from error
    if wrong is not None:
        raise UserError(
            "This YAML stands for no plain values: a key is a block, or an anchor holds itself",
            file=f"{file}:{wrong.start_mark.line + 1}",
            expected="keys that are words, and anchors outside of what they name",
            fix="correct this line",
        )
    if node is not None and not isinstance(node, yaml.MappingNode):
        raise UserError(
            "The configuration is not a block of keys.",
            file=file,
            expected="a YAML block of `key: value` lines at the top level",
            fix="start from a shipped configuration",
        )
    return node


def _unusable_node(node: yaml.Node, parents: tuple[yaml.Node, ...], sound: set[int]) -> yaml.Node | None:
    """The first node that is inside itself, or that is a key and no scalar; `sound` collects those looked at before."""
    if any(node is parent for parent in parents):
        return node
    if id(node) in sound or isinstance(node, yaml.ScalarNode):
        return None
    children = node.value
    if isinstance(node, yaml.MappingNode):
        if (wrong := next((key for key, _ in node.value if not isinstance(key, yaml.ScalarNode)), None)) is not None:
            return wrong
        children = [value for _, value in node.value]
    inside = (*parents, node)
    found = next((wrong for child in children if (wrong := _unusable_node(child, inside, sound)) is not None), None)
    if found is None:
        sound.add(id(node))
    return found


def broken_yaml(error: yaml.MarkedYAMLError, file: Path) -> UserError:
    """The user's view of a YAML parser's error."""
    mark = error.problem_mark or error.context_mark
    return UserError(
        f"Broken YAML: {error.problem or error.context}",
        file=f"{file}:{mark.line + 1}" if mark else file,
        expected="a YAML block of `key: value` lines",
        fix="check indentation, brackets, quotes, anchors and colons at this line and just above it",
    )


def _descend(node: yaml.Node | None, path: KeyPath) -> _Found:
    line = 1
    for depth, step in enumerate(path):
        child = _child(node, step)
        if child is None:
            return _Found(depth, line, node)
        mark, node = child
        line = mark.line + 1
    return _Found(len(path), line, node)


def _child(node: yaml.Node | None, step: str | int) -> tuple[yaml.Mark, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step].start_mark, node.value[step]
    if not isinstance(node, yaml.MappingNode):
        return None
    own = ((key.start_mark, value) for key, value in node.value if key.value == str(step))
    inherited = (_child(merged, step) for merged in _merged(node))
    return next(own, None) or next((found for found in inherited if found), None)


def _merged(node: yaml.MappingNode) -> Iterator[yaml.Node]:
    for key, value in node.value:
        if key.tag == _MERGE_TAG:
            yield from value.value if isinstance(value, yaml.SequenceNode) else (value,)


def _overlap(override: KeyPath, path: KeyPath) -> bool:
    """Whether one of two keys is, or lies in, the other."""
    shared = min(len(override), len(path))
    return override[:shared] == path[:shared]
