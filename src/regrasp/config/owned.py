"""Blocks that belong to whom they configure: the class of the block is chosen by one of its keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from regrasp.errors import UserError


@dataclass(frozen=True)
class ByType:
    """Annotation metadata of a block: its class is the one that its key `key` names.

    `Annotated[ModelConfig, ByType("model_type", table, find)]` accepts every block of the table; all extend the
    annotated class.
    """

    key: str
    table: Callable[[], Mapping[str, type]]
    """Every name and its class; a class may have several names."""
    find: Callable[[Mapping[str, Any]], type]
    """The class of a block's values, whose name is there; a `UserError` where there is none."""
    default: str | None = None
    """The name of a block that gives none; None: it has to."""

    def blocks(self) -> tuple[type, ...]:
        """The classes, each once."""
        return tuple(dict.fromkeys(self.table().values()))

    def block_of(self, values: Any) -> type | None:
        """The class of a block's values; None where they do not say which."""
        name = values.get(self.key, self.default) if isinstance(values, Mapping) else None
        return self.table().get(name) if isinstance(name, str) else None

    def problems(self, values: Mapping[str, Any]) -> Iterator[UserError]:
        """Why no class is for these values, whose name is there."""
        try:
            self.find(values)
        except UserError as error:
            yield error

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate and write the block as the class that it names."""

        def validate(value: Any, base: Callable[[Any], Any]) -> Any:
            if not isinstance(value, dict):
                return base(value)
            if self.default is not None:
                value = {self.key: self.default, **value}
            if not isinstance(value.get(self.key), str):
                kind = "string_type" if self.key in value else "missing"
                details: Any = [{"type": kind, "loc": (self.key,), "input": value.get(self.key)}]
                raise ValidationError.from_exception_data(self.key, details)
            try:
                block = self.find(value)
            except UserError as error:
                raise PydanticCustomError("user_error", "{error}", {"error": error}) from error
            return TypeAdapter(block).validate_json(json.dumps(value))

        def written(value: Any) -> Any:
            return TypeAdapter(type(value)).dump_python(value, mode="json")

        return core_schema.no_info_wrap_validator_function(
            validate, handler(source), serialization=core_schema.plain_serializer_function_ser_schema(written)
        )


def field_infos(block: type) -> Mapping[str, FieldInfo]:
    """Pydantic's description of the fields of a block."""
    return vars(block)["__pydantic_fields__"]
