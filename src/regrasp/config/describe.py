"""What the schema says about a key, in words: shared by error messages and the generated reference."""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from regrasp.config.owned import ByType, field_infos
from regrasp.config.types import Expect
from regrasp.errors import spelled

Path = tuple[str | int, ...]
"""Keys and list positions from the top of the file down to a value."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """A type of the schema with its constraints."""

    annotation: Any
    metadata: tuple[Any, ...] = ()

    @staticmethod
    def of(annotation: Any, metadata: Iterable[Any] = ()) -> Spec:
        """Unpack `Annotated` and the constraints inside `Field`."""
        found = list(metadata)
        if get_origin(annotation) is Annotated:
            annotation, *inner = get_args(annotation)
            found += inner
        flat = [item for entry in found for item in (entry.metadata if isinstance(entry, FieldInfo) else (entry,))]
        return Spec(annotation, tuple(flat))

    @property
    def optional(self) -> bool:
        """Whether null is accepted."""
        return type(None) in self._union_args()

    @property
    def by_type(self) -> ByType | None:
        """How the class of a block is chosen, None for a block of one class and for a plain value."""
        return next((item for item in self.metadata if isinstance(item, ByType)), None)

    def chosen(self, values: Any) -> Spec:
        """The spec of the block that these values are for, where they say which; else this one."""
        block = self.by_type and self.by_type.block_of(values)
        return self if block is None else Spec(block)

    @property
    def alternatives(self) -> tuple[Spec, ...]:
        """The accepted types other than null; the spec itself where there is only one."""
        if self.by_type is not None:
            return tuple(Spec(block) for block in self.by_type.blocks())
        args = self._union_args()
        return tuple(Spec.of(arg) for arg in args if arg is not type(None)) if args else (self,)

    @property
    def blocks(self) -> tuple[type, ...]:
        """The dataclasses that a nested block may be of; none for a plain value."""
        found = (spec.annotation for spec in self.alternatives)
        return tuple(kind for kind in found if isinstance(kind, type) and dataclasses.is_dataclass(kind))

    @property
    def block(self) -> type | None:
        """The first of `blocks`, None for a plain value."""
        return next(iter(self.blocks), None)

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a `Literal`, empty for other types."""
        return tuple(
            choice
            for spec in self.alternatives
            if get_origin(spec.annotation) is Literal
            for choice in get_args(spec.annotation)
        )

    def fields(self) -> dict[str, Spec]:
        """The keys of a block; of all that may stand here, where several may."""
        return {name: Spec.of(info.annotation, info.metadata) for name, info in self.infos().items()}

    def infos(self) -> dict[str, FieldInfo]:
        """Pydantic's description of the keys of a block."""
        every = [field_infos(block) for block in self.blocks]
        names = dict.fromkeys(name for infos in every for name in infos)
        return {name: next(infos[name] for infos in every if name in infos) for name in names}

    def child(self, step: str | int) -> Spec | None:
        """The spec one key or one list position further down; None where the schema has none."""
        if self.by_type is not None and step == self.by_type.key:
            return Spec(Literal[tuple(self.by_type.table())])  # pyright: ignore[reportInvalidTypeArguments]
        if isinstance(step, str) and self.block is not None:
            return self.fields().get(step)
        for spec in self.alternatives:
            args = get_args(spec.annotation)
            if get_origin(spec.annotation) is tuple and isinstance(step, int):
                return Spec.of(args[0] if args[-1] is Ellipsis else args[min(step, len(args) - 1)])
            if get_origin(spec.annotation) is dict:
                return Spec.of(args[1])
        return None

    def at(self, path: Path, values: Any = None) -> Spec | None:
        """The spec of a key further down; None where the key is unknown.

        Args:
            path: The key.
            values: The values of this block, which say of which class a block is where several may stand there;
                without them, the key may be of any of these.
        """
        spec: Spec | None = self
        for step in path:
            spec = spec.child(step) if spec is not None else None
            values = values.get(step) if isinstance(values, Mapping) else None
            spec = spec.chosen(values) if spec is not None else None
        return spec

    def info_at(self, path: Path, values: Any = None) -> FieldInfo | None:
        """Pydantic's description of a key further down; None where the key is unknown or a list position."""
        parent = self.at(path[:-1], values) if path else None
        return parent.infos().get(str(path[-1])) if parent is not None else None

    def default_at(self, path: Path, values: Any = None) -> Any:
        """The default of a key further down, None where it has none."""
        info = self.info_at(path, values)
        return None if info is None or info.is_required() else info.get_default(call_default_factory=False)

    def paths(self, path: Path = ()) -> Iterator[Path]:
        """Every key further down, blocks included."""
        for name, inner in self.fields().items():
            yield (*path, name)
            yield from inner.paths((*path, name))

    def words(self) -> str:
        """What a value must look like, for example `an integer of at least 1 or null`."""
        explicit = next((item.text for item in self.metadata if isinstance(item, Expect)), None)
        text = explicit or " or ".join(spec._plain_words() for spec in self.alternatives)
        return f"{text} or null" if self.optional else text

    def _union_args(self) -> tuple[Any, ...]:
        return get_args(self.annotation) if get_origin(self.annotation) in (Union, types.UnionType) else ()

    def _plain_words(self) -> str:
        explicit = next((item.text for item in self.metadata if isinstance(item, Expect)), None)
        if explicit:
            return explicit
        origin, args = get_origin(self.annotation), get_args(self.annotation)
        if origin is Literal:
            return " or ".join(map(spelled, args))
        if origin is tuple:
            filled = "non-empty " if any(isinstance(item, MinLen) for item in self.metadata) else ""
            return f"a {filled}list, each item {Spec.of(args[0]).words()}"
        if self.block is not None:
            return f"a block with the keys {', '.join(self.fields())}"
        if get_origin(self.annotation) is dict:
            return "a value by each name"
        return _SCALARS[self.annotation] + _bounds(self.metadata)


_SCALARS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
_BOUNDS: dict[type, str] = {
    Ge: "of at least {0.ge}",
    Gt: "above {0.gt}",
    Le: "at most {0.le}",
    Lt: "below {0.lt}",
    MinLen: "that is not empty",
}


def _bounds(metadata: Iterable[Any]) -> str:
    words = [_BOUNDS[type(item)].format(item) for item in metadata if type(item) in _BOUNDS]
    return f" {' and '.join(words)}" if words else ""


def dotted(path: Path) -> str:
    """`a.b[0].c` of a path."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def split_key(key: str) -> Path:
    """The path of a dotted key; `a.b[0]` and `a.b.0` both name a list position."""
    steps = [step for step in re.split(r"[.\[\]]+", key) if step]
    return tuple(int(step) if step.isdigit() else step for step in steps)
