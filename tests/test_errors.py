"""What an error prints of a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from regrasp.errors import UserError, spelled


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (3, "3"),
        (0.5, "0.5"),
        ("a b", "'a b'"),
        ([None, True, ["x"]], "[null, true, ['x']]"),
        ((1, 2), "[1, 2]"),
        ({"a": {"b": None}}, "{a: {b: null}}"),
        (Path("a/b"), "'a/b'"),
    ],
)
def test_values_are_spelled_as_in_a_file(value: Any, text: str) -> None:
    assert spelled(value) == text
    assert f"value:    {text}" in str(UserError("wrong", value=value))
    plain = {tuple: list, Path: str}
    kind = next((plain[known] for known in plain if isinstance(value, known)), None)
    assert yaml.safe_load(text) == (value if kind is None else kind(value))


def test_an_error_without_a_value_prints_none() -> None:
    assert "value" not in str(UserError("wrong", key="a"))
