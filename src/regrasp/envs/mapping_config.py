"""Block `env.<name>.mapping`: what the policy sees of the simulator, and how its actions reach the actuators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from regrasp.config.types import (
    BLOCK,
    NEW_EMBODIMENT,
    Expect,
    Name,
    Names,
    NonNegativeInt,
    Slice,
    bare_key,
)
from regrasp.envs.data_config import DataConfig
from regrasp.envs.quaternions import QuaternionOrder
from regrasp.envs.ranges import NamedRange, gaps, overlaps, repeated_values
from regrasp.errors import UserError


@dataclass(frozen=True, config=BLOCK)
class StateEntry:
    """One observation vector of the simulator that becomes part of the policy's state."""

    key: Name
    """Observation key, with or without its group (`policy/gripper_position`)."""
    slice: Slice | None = None
    """Range of the vector that is used; null: all of it."""


def _entry_from_key(value: Any) -> Any:
    return StateEntry(key=value) if isinstance(value, str) and value else value


_BY_KEY = BeforeValidator(_entry_from_key)
_State = Annotated[StateEntry, _BY_KEY, Expect("an observation key, or a block with the keys key and slice")]
States = Annotated[tuple[_State, ...], Field(strict=False)]


@dataclass(frozen=True, config=BLOCK)
class Gr00tVideoMapping:
    """GR00T's names of the camera views; `video.` may be left out."""

    main_images: Name
    """Name of the main view (`video.room_view`)."""
    extra_view_images: Names = ()
    """Names of the extra views, in the order of the mapping's `extra_view_images`."""


@dataclass(frozen=True, config=BLOCK)
class Gr00tStateEntry:
    """GR00T's name of a part of the state."""

    gr00t_key: Name
    """Name of the part (`state.left_arm`); `state.` may be left out."""
    slice: Slice
    """Range of the concatenated state that it covers."""


@dataclass(frozen=True, config=BLOCK)
class Gr00tMapping:
    """How the policy's inputs are called in the statistics of a GR00T checkpoint."""

    video: Gr00tVideoMapping
    """Names of the camera views."""
    state: Annotated[tuple[Gr00tStateEntry, ...], Field(strict=False)]
    """Names of the parts of the state."""

    def ranges(self) -> list[NamedRange]:
        """The parts of the state by where they start."""
        parts = [NamedRange(bare_key(entry.gr00t_key), *entry.slice) for entry in self.state]
        return sorted(parts, key=lambda part: (part.start, part.stop))

    def problems(self, key: str, num_extra_views: int) -> Iterator[UserError]:
        """Names that do not fit the mapping; parts that overlap, so that a model would see a value as another."""
        if len(self.video.extra_view_images) != num_extra_views:
            yield UserError(
                "One name per camera",
                key=f"{key}.video.extra_view_images",
                value=list(self.video.extra_view_images),
                expected=f"{num_extra_views} names, one for each of extra_view_images",
                fix=f"give {key}.video.extra_view_images one name per extra view, in the same order",
            )
        keys = [bare_key(entry.gr00t_key) for entry in self.state]
        twice = overlaps(self.ranges())
        if len(set(keys)) < len(keys):
            yield UserError(
                "A part of the state is named twice",
                key=f"{key}.state",
                value=keys,
                expected="each key once",
                fix=f"give each key of {key}.state one range",
            )
        elif twice:
            first, second = twice[0]
            yield UserError(
                "Slices of the state overlap",
                key=f"{key}.state",
                value="; ".join(f"{one} and {other}" for one, other in twice),
                expected="slices of which none has values of another",
                fix=f"correct the slices in {key}.state, such as {second.moved_to(first.stop)};"
                " a value that is meant for two parts is listed twice in the mapping's states",
            )


Numbers = Annotated[tuple[float, ...], Field(strict=False)]
ImageTransform = Literal["rotate_90", "rotate_180", "rotate_270", "flip_horizontal", "flip_vertical"]
"""What is done to an image; rotations are clockwise, `flip_horizontal` swaps left and right."""
ImageTransforms = Annotated[
    tuple[ImageTransform, ...], Field(strict=False), Expect(f"a list of {', '.join(get_args(ImageTransform))}")
]


@dataclass(frozen=True, config=BLOCK)
class ActionSlice:
    """Where a part of the policy's action goes."""

    policy: Slice
    """Range of the policy's action."""
    simulator: Slice
    """Range of the simulator's action, as long."""


@dataclass(frozen=True, config=BLOCK)
class ActionConstant:
    """Entries of the simulator's action that the policy does not drive."""

    slice: Slice
    """Range of the simulator's action."""
    value: float | Numbers
    """One number, or one per entry."""


@dataclass(frozen=True, config=BLOCK)
class ActionMapping:
    """How a policy's action becomes a simulator's action: scale, offset, then place among constants (0 by default)."""

    keys: Names = ()
    """The parts of the policy's action in their order, by GR00T's names (`action.left_arm`), compared with the model's;
    empty: as the model has them."""
    prefix_pad: NonNegativeInt = 0
    """Entries before the policy's action."""
    suffix_pad: NonNegativeInt = 0
    """Entries after the policy's action."""
    scale: float | Numbers = 1.0
    """Factor of the policy's action: one number, or one per dimension."""
    offset: float | Numbers = 0.0
    """What is added to the scaled action: one number, or one per dimension (a gripper of 0 and 1 becomes -1 and 1 by
    `scale: 2`, `offset: -1`)."""
    slices: Annotated[tuple[ActionSlice, ...], Field(strict=False)] = ()
    """Where each part of the policy's action goes, in place of the pads; each a block `{policy, simulator}`."""
    constants: Annotated[tuple[ActionConstant, ...], Field(strict=False)] = ()
    """Values other than 0 of entries that the policy does not drive; each a block `{slice, value}`."""


@dataclass(frozen=True, config=BLOCK)
class MappingConfig:
    """Which observations of the simulator the policy sees and how its actions reach the actuators.

    In a YAML file null stands for a key's default.
    """

    task_description: Name | None = None
    """Instruction given to the policy; null: the task's own."""
    main_images: Name | None = None
    """Key of the main camera; null: no images."""
    extra_view_images: Names = ()
    """Keys of further cameras."""
    image_transform: dict[Name, ImageTransforms] = field(default_factory=dict)
    """What is done to a camera's images, in order, by the camera's key: a list of `rotate_90`, `rotate_180`,
    `rotate_270` (clockwise), `flip_horizontal` and `flip_vertical`; a camera that is not named stays as it is."""
    states: States = ()
    """State vectors, concatenated in this order; each a key or `{key, slice}`."""
    quaternions: QuaternionOrder | None = None
    """Order of the quaternions in `states`, real part first or last; null: as the simulator, or a recording, says."""
    gr00t_mapping: Gr00tMapping | None = None
    """Names of these inputs in a GR00T checkpoint; null: the checkpoint was made by Regrasp."""
    action_mapping: ActionMapping = ActionMapping()
    """How the policy's action becomes the simulator's."""
    obs_converter_type: Name | None = None
    """Name of the robot's layout in RLinf; it must agree with `actor.model`."""
    embodiment_tag: Name = NEW_EMBODIMENT
    """Embodiment whose normalisation statistics are used."""
    embodiment_tag_id: Annotated[int, Field(ge=0, le=31)] | None = None
    """Slot of the embodiment's projectors in a GR00T checkpoint; null: the model folder's own, in a published
    folder the slot of `embodiment_tag`."""
    data_config_class: Name | None = None
    """Published data configuration of the checkpoint, a short name or `module:Class`; null: as the checkpoint says."""
    data_config: DataConfig | None = None
    """The same written out, in place of `data_config_class`."""

    def instruction_choice(self) -> tuple[str | None, tuple[str, ...]]:
        """The observation that chooses the instruction, and what it chooses from; (None, ()) without a choice."""
        return None, ()

    def problems(self, key: str) -> Iterator[UserError]:
        """What keys that are right one by one say against each other.

        Args:
            key: Where this block stands.
        """
        if self.main_images is None and (self.extra_view_images or not self.states):
            yield UserError(
                "The policy has extra views without a main one, or would see nothing",
                key=f"{key}.main_images",
                value=None,
                expected="a camera key; or null, with states and without extra_view_images",
                fix=f"set {key}.main_images, or {key}.states alone",
            )
        cameras = [name for name in (self.main_images, *self.extra_view_images) if name is not None]
        if unknown := [name for name in self.image_transform if name not in cameras]:
            yield UserError(
                "No camera of the mapping has this key",
                key=f"{key}.image_transform",
                value=unknown,
                expected=f"{cameras}, as main_images and extra_view_images have them",
                fix="correct the key",
            )
        if self.data_config is not None and self.data_config_class is not None:
            yield UserError(
                "Two data configurations",
                key=f"{key}.data_config_class",
                value=self.data_config_class,
                expected=f"null, since {key}.data_config is given",
                fix=f"remove {key}.data_config_class or {key}.data_config",
            )
        if self.gr00t_mapping is not None:
            yield from self.gr00t_mapping.problems(f"{key}.gr00t_mapping", len(self.extra_view_images))

    def oddities(self, key: str) -> Iterator[str]:
        """Values that the policy's state holds twice, and values that no part of it takes."""
        for first, second in repeated_values(self.states):
            yield f"{key}.states gives the policy some values twice: {first} and {second}."
        parts = self.gr00t_mapping.ranges() if self.gr00t_mapping else []
        left_over = [] if overlaps(parts) else gaps(parts)
        if left_over:
            where = "; ".join(f"between {one} and {other}" if one else f"before {other}" for one, other in left_over)
            yield f"{key}.gr00t_mapping.state leaves values of the state out: {where}."
