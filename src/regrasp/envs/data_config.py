"""What a GR00T checkpoint sees and gives, as data: block `data_config` of a mapping, and of a model folder."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, field_validator
from pydantic.dataclasses import dataclass

from regrasp.config.parse import refusal
from regrasp.config.types import BLOCK, Expect, Name, NormalizationMode, PositiveInt, Rotation, bare_key

HUMAN_TASK = "annotation.human.task_description"
_BareKey = Annotated[Name, AfterValidator(bare_key)]


@dataclass(frozen=True, config=BLOCK)
class KeyConfig:
    """A part of the state or of the action, and how GR00T scales it."""

    key: _BareKey
    """Name in the checkpoint's metadata; `state.` and `action.` may be left out."""
    mode: NormalizationMode = "min_max"
    """Normalisation; `sin_cos` is for states only, `binary` is 1 above 0.5 and else 0, `none` changes nothing."""
    rotation: Rotation | None = None
    """Representation into which a rotation is turned first; null: the data's own."""
    width: PositiveInt | None = field(default=None, compare=False)
    """Entries of the action that the key covers; null: as many as the state key of its name, or those left over."""


def _block_of_key(value: Any) -> Any:
    return {"key": value} if isinstance(value, str) else value


_BY_KEY = BeforeValidator(_block_of_key)
_Key = Annotated[KeyConfig, _BY_KEY, Expect("a key, or a block with the keys key, mode and rotation")]
_Keys = Annotated[tuple[_Key, ...], Field(strict=False, min_length=1)]


@dataclass(frozen=True, config=BLOCK)
class DataConfig:
    """What a GR00T checkpoint sees and gives, in the order in which it was trained.

    A state is one time step; the action horizon is the network's.
    """

    video: Annotated[tuple[_BareKey, ...], Field(strict=False, min_length=1)]
    """Cameras."""
    state: _Keys
    """Parts of the state; each a key or `{key, mode, rotation}`."""
    action: _Keys
    """Parts of the action; each a key or `{key, mode, rotation}`."""
    language: Name = HUMAN_TASK
    """Annotation of the demonstrations that held the instruction."""
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Side of the images' centre crop, as a part of the whole."""

    @field_validator("video", "state", "action")
    @classmethod
    def _check_once(cls, items: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [item.key if isinstance(item, KeyConfig) else item for item in items]
        if len(set(names)) < len(names):
            raise refusal("A key is there twice", names, "each key once")
        return items

    @field_validator("state")
    @classmethod
    def _check_widths(cls, state: tuple[KeyConfig, ...]) -> tuple[KeyConfig, ...]:
        if any(item.width is not None for item in state):
            raise refusal("A width of a part of the state", "width", "none: gr00t_mapping.state has the ranges")
        return state

    @field_validator("action")
    @classmethod
    def _check_ways_back(cls, action: tuple[KeyConfig, ...]) -> tuple[KeyConfig, ...]:
        if any(item.mode == "sin_cos" for item in action):
            raise refusal("sin_cos has no way back to an action", "sin_cos", "another mode, such as min_max")
        return action
