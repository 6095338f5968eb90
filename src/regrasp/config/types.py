"""Value types that the configuration blocks share: ranges, lists, slices, aliases."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from regrasp.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

BLOCK = ConfigDict(
    extra="forbid",
    strict=True,
    allow_inf_nan=False,
    use_attribute_docstrings=True,
)
"""Settings of every block: no unknown key, no silent conversion, descriptions from attribute docstrings."""


_LONGEST_NAME = 200


@dataclass(frozen=True)
class Expect:
    """Annotation metadata: what a value should look like, where the type alone does not say it."""

    text: str


def _in_64_bits(value: int) -> int:
    if value >= 2**63:
        error = UserError("A number too large", value=value, expected="a whole number below 2^63")
        raise PydanticCustomError("user_error", "{error}", {"error": error})
    return value


def _ordered(bounds: tuple[int, int]) -> tuple[int, int]:
    start, stop = bounds
    if not 0 <= start < stop:
        raise ValueError("not 0 <= start < stop")
    return bounds


def _one_folder(name: str) -> str:
    if not is_folder_name(name):
        raise ValueError("not the name of one folder")
    return name


def is_folder_name(name: str) -> bool:
    """Whether a name stays the one of a folder wherever it is put, with room for what is written beside it."""
    return name not in ("", ".", "..") and not set("/\0") & set(name) and len(os.fsencode(name)) <= _LONGEST_NAME


def _canonical_precision(value: Any) -> Any:
    names = {"32": "fp32", "32-true": "fp32", "bf16-mixed": "bf16"}
    return value if isinstance(value, bool) else names.get(str(value), value)


Name = Annotated[str, Field(min_length=1)]
PositiveInt = Annotated[int, Field(ge=1), AfterValidator(_in_64_bits)]
NetworkSize = Annotated[int, Field(ge=1, le=2**20)]
"""A width, a count or a length in a model folder; none is larger, and a damaged one costs no memory."""
NonNegativeInt = Annotated[int, Field(ge=0), AfterValidator(_in_64_bits)]
FolderName = Annotated[
    str,
    AfterValidator(_one_folder),
    Expect(f"the name of one folder: no /, not . or .., at most {_LONGEST_NAME} bytes in UTF-8"),
]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""What every generator and every simulator's protocol can hold."""
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Interval = Annotated[int, Field(ge=-1)]
"""A period counted in updates; -1 or 0 turns it off."""
Names = Annotated[tuple[Name, ...], Field(strict=False)]
Sizes = Annotated[tuple[PositiveInt, ...], Field(strict=False)]
Slice = Annotated[
    tuple[int, int],
    Field(strict=False),
    AfterValidator(_ordered),
    Expect("[start, stop] with 0 <= start < stop"),
]
"""Half-open range [start, stop) of a vector."""
Precision = Annotated[
    Literal["fp32", "bf16"],
    BeforeValidator(_canonical_precision),
    Expect("'fp32' (or '32') or 'bf16'"),
]
Level = Literal["chunk_level", "action_level", "token_level"]
NormalizationMode = Literal["min_max", "q99", "mean_std", "binary", "sin_cos", "none"]
Rotation = Literal[
    "axis_angle",
    "quaternion",
    "rotation_6d",
    "euler_angles_rpy",
    "euler_angles_ryp",
    "euler_angles_pry",
    "euler_angles_pyr",
    "euler_angles_yrp",
    "euler_angles_ypr",
]
"""Representations of a rotation, under the names of GR00T's metadata; quaternions are (w, x, y, z)."""

NEW_EMBODIMENT = "new_embodiment"
"""Tag of what a published model was not trained for."""


def changed(block: T, key: str, value: Any) -> T:
    """A block with another value of a key, which may stand in a block inside it (`runner.max_epochs`)."""
    name, _, rest = key.partition(".")
    return replace(block, **{name: changed(getattr(block, name), rest, value) if rest else value})


def bare_key(name: str) -> str:
    """`left_arm` of `state.left_arm`: the modality before the point is optional."""
    prefix, _, rest = name.partition(".")
    return rest if prefix in ("video", "state", "action") and rest else name
