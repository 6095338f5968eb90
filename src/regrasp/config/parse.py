"""JSON files, and their plain values as a pydantic dataclass; an error names the file and the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, from_json

from regrasp.config.describe import Spec, dotted
from regrasp.errors import UserError

T = TypeVar("T")


def refusal(problem: str, value: Any, expected: str) -> PydanticCustomError:
    """What a field's validator raises, for `parse` to say where the field is."""
    error = UserError(problem, value=value, expected=expected)
    return PydanticCustomError("user_error", "{error}", {"error": error})


def read_json(file: Path, *, fix: str, missing: str = "The file is missing") -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        file: The file.
        fix: What to do about one that cannot be read, for errors.
        missing: The problem where there is none.

    Raises:
        UserError: The file is missing, cannot be read, or holds no JSON object.
    """
    try:
        content = from_json(file.read_bytes())
    except FileNotFoundError:
        raise UserError(missing, file=file, fix=fix) from None
    except OSError as error:
        raise UserError(f"The file cannot be read: {error.strerror}", file=file, fix=fix) from None
    except ValueError as error:
        raise UserError(f"Not valid JSON: {error}", file=file, fix=fix) from None
    if not isinstance(content, dict):
        raise UserError("Not a JSON object", file=file, expected="{...}", fix=fix)
    return content


def parse(kind: type[T], content: Any, *, file: Any, key: str = "", fix: str | None = None) -> T:
    """Read plain values.

    Args:
        kind: A pydantic dataclass.
        content: What `json.loads` gives.
        file: Where they stand, for errors.
        key: Of `content` there; empty for all of the file.
        fix: What to do about a value that is wrong, for errors.

    Raises:
        UserError: A key is missing or unknown, or a value is of the wrong kind; the first that is found. Or what the
            dataclass itself raises, in that file.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(content))
    except ValidationError as error:
        detail: Any = error.errors(include_url=False)[0]
    except UserError as error:
        raise error.in_file(file) from None
    path, problem = detail["loc"], "A value of the wrong kind"
    spec, place = Spec(kind).at(path), dotted((key, *path) if key else path) or None
    if detail["type"] == "missing":
        raise UserError("A key is missing", file=file, key=place, expected=spec and spec.words(), fix=fix)
    if detail["type"] == "unexpected_keyword_argument":
        problem, spec = "Unknown key", Spec(kind).at(path[:-1])
    elif detail["type"] == "user_error":
        raise detail["ctx"]["error"].at(file, place)
    expected = spec and spec.words()
    raise UserError(problem, file=file, key=place, value=detail["input"], expected=expected, fix=fix)
