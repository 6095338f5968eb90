"""What a mapping selects from a simulator's offer, and what it calls it, checked before anything is started.

Imports no numerical library.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from regrasp.errors import UserError

if TYPE_CHECKING:
    from regrasp.envs.mapping_config import ActionMapping, MappingConfig
    from regrasp.envs.process.simulator import ArraySpec


@dataclass(frozen=True)
class StateSource:
    """A contiguous slice of one raw observation that feeds the state vector."""

    key: str
    start: int
    stop: int


_QUARTER_TURNS = ("rotate_90", "rotate_270")
"""What swaps an image's height and width."""
STATE = "state"
"""Name of the whole state vector."""
Range = tuple[int, int]
"""(start, stop) in a vector."""


def camera_names(mapping: MappingConfig) -> tuple[str, ...]:
    """What policies call the main camera and then the extra ones: `gr00t_mapping` says it, else they are numbered."""
    if mapping.main_images is None:
        return ()
    if mapping.gr00t_mapping is None:
        return numbered_cameras(1 + len(mapping.extra_view_images))
    video = mapping.gr00t_mapping.video
    return tuple(name.removeprefix("video.") for name in (video.main_images, *video.extra_view_images))


def numbered_cameras(count: int) -> tuple[str, ...]:
    """Names of cameras that nobody has named, as datasets have them."""
    return ("main", *(f"extra_{index}" for index in range(count - 1)))[:count]


def image_transforms(mapping: MappingConfig) -> tuple[tuple[str, ...], ...]:
    """What is done to the images of the main camera and then of the extra ones."""
    cameras = [name for name in (mapping.main_images, *mapping.extra_view_images) if name is not None]
    return tuple(tuple(mapping.image_transform.get(name, ())) for name in cameras)


def state_names(mapping: MappingConfig) -> dict[str, Range]:
    """What policies call parts of the state vector, and where in it they are: `gr00t_mapping` says it, else nothing."""
    names = mapping.gr00t_mapping
    return {} if names is None else {part.gr00t_key.removeprefix("state."): part.slice for part in names.state}


class ObservationSelection:
    """Which raw observations the configuration asks for.

    Args:
        config: The mapping block.
        raw: What the simulator offers, by `group/key`.
        location: Dotted path of the block, for errors.
        source: What offers them, for errors.
        advice: What to do about an observation that is not offered, for errors; None: correct the name.

    Raises:
        UserError: A key is missing or ambiguous, a slice out of range, an image no image or a state no vector.
    """

    def __init__(
        self,
        config: MappingConfig,
        raw: Mapping[str, ArraySpec],
        location: str,
        source: str = "The simulator",
        advice: str | None = None,
    ) -> None:
        self.raw = raw
        self._location = location
        self._source = source
        self._advice = advice
        self.instruction = config.task_description
        main = [("main_images", config.main_images)] if config.main_images else []
        extra = [("extra_view_images", name) for name in config.extra_view_images]
        self.cameras = tuple(self._camera(field, name) for field, name in main + extra)
        """The main camera and then the extra ones; empty without images."""
        self.states = tuple(self._state(i, entry.key, entry.slice) for i, entry in enumerate(config.states))
        self.camera_names = camera_names(config)
        self.image_transforms = image_transforms(config)
        """Of each of `cameras`."""
        self.state_names = state_names(config)

    @property
    def keys(self) -> tuple[str, ...]:
        """The raw observations needed; the simulator computes no others."""
        return tuple(dict.fromkeys((*self.cameras, *(source.key for source in self.states))))

    @property
    def camera_shapes(self) -> tuple[tuple[int, ...], ...]:
        """(height, width, 3) of each of `cameras`, as the policy sees them."""
        return tuple(
            (width, height, channels) if sum(name in _QUARTER_TURNS for name in transforms) % 2 else (height, width, 3)
            for (height, width, channels), transforms in zip(
                (self.raw[key].shape for key in self.cameras), self.image_transforms, strict=True
            )
        )

    @property
    def state_dim(self) -> int:
        """Width of the state vector."""
        return sum(source.stop - source.start for source in self.states)

    def _camera(self, field: str, name: str) -> str:
        key = self.find(name, field)
        spec = self.raw[key]
        if not _is_camera(spec):
            raise UserError(
                f"'{key}' is not a camera image",
                key=f"{self._location}.{field}",
                value=f"{spec.dtype} {spec.shape}",
                expected="uint8 of shape (height, width, 3)",
                fix=_choice(key for key in self.raw if _is_camera(self.raw[key]))
                + "have the task give 8-bit RGB (in Isaac Lab: data type rgb, normalize=False)",
            )
        return key

    def _state(self, index: int, name: str, bounds: tuple[int, int] | None) -> StateSource:
        field = f"states[{index}]"
        key = self.find(name, field)
        spec = self.raw[key]
        if spec.dtype == "uint8":
            raise UserError(
                f"'{key}' is an image, not a state",
                key=f"{self._location}.{field}",
                value=f"{spec.dtype} {spec.shape}",
                expected="a vector observation",
                fix=_choice(key for key in self.raw if self.raw[key].dtype != "uint8") + "name it in main_images",
            )
        width = width_of(spec)
        start, stop = bounds or (0, width)
        if stop > width:
            raise UserError(
                f"The slice reaches past the end of '{key}'",
                key=f"{self._location}.{field}.slice",
                value=[start, stop],
                expected=f"0 <= start < stop <= {width}, the width of the observation",
                fix="shorten the slice or choose another key",
            )
        return StateSource(key, start, stop)

    def find(self, name: str, field: str) -> str:
        """The `group/key` of an observation that `field` of the mapping names, with or without its group.

        Raises:
            UserError: There is none, or there are several.
        """
        return find_observation(name, self.raw, f"{self._location}.{field}", self._source, self._advice)


def find_observation(
    name: str, offered: Iterable[str], location: str, source: str = "The simulator", advice: str | None = None
) -> str:
    """The key `group/key` of the observation called `name`, which may leave the group out.

    Args:
        name: As the user wrote it.
        offered: All keys.
        location: Dotted path of the configuration key that names it, for errors.
        source: What offers them, for errors.
        advice: What to do about an observation that is not offered, for errors; None: correct the name.

    Raises:
        UserError: No observation has that name, or several.
    """
    offered = list(offered)
    matches = [key for key in offered if is_name_of(name, key)]
    if len(matches) == 1:
        return matches[0]
    raise UserError(
        f"{source} offers {'several observations' if matches else 'no observation'} named '{name}'",
        key=location,
        value=name,
        expected=f"one of {matches or sorted(offered)}",
        fix="write it as group/key" if matches else _correction(name, offered, advice),
    )


def is_name_of(name: str, key: str) -> bool:
    """Whether `name`, which may leave the group out, is that of the observation `group/key`."""
    return name in (key, _short(key))


def _correction(name: str, offered: Sequence[str], advice: str | None) -> str:
    members = [key for key in offered if key.startswith(f"{name}/")]
    if members:
        return f"'{name}' is a group of separate observations: name them, such as '{members[0]}'"
    near = difflib.get_close_matches(name, [key if "/" in name else _short(key) for key in offered], 1)
    if not near:
        return advice or "correct the name"
    return f"did you mean '{near[0]}'?" + (f" Otherwise {advice}" if advice else "")


def _choice(keys: Iterable[str]) -> str:
    """The beginning of a piece of advice, which goes on with another way."""
    fitting = sorted(keys)
    return f"choose one of {fitting}, or " if fitting else ""


def _short(key: str) -> str:
    return key.split("/", 1)[-1]


def _is_camera(spec: ArraySpec) -> bool:
    return spec.dtype == "uint8" and len(spec.shape) == 3 and spec.shape[2] == 3


def width_of(spec: ArraySpec) -> int:
    """Number of values of one environment's observation."""
    return math.prod(spec.shape)


def action_layout(
    config: MappingConfig, policy_dim: int, simulator_dim: int, location: str
) -> tuple[list[int], list[float]]:
    """Check that the action mapping makes simulator actions of policy actions, and resolve it.

    Returns:
        The entry of the simulator's action that each entry of the policy's action becomes, and the simulator's action
        with zeros for the policy's.

    Raises:
        UserError: The widths do not add up, an entry is set twice, scale or offset have a wrong length, or a factor
            is zero.
    """
    location = f"{location}.action_mapping"
    mapping = config.action_mapping
    _check_scale(mapping.scale, policy_dim, location)
    if isinstance(mapping.offset, tuple) and len(mapping.offset) != policy_dim:
        raise UserError(
            "The action offset does not fit the policy's action",
            key=f"{location}.offset",
            value=mapping.offset,
            expected=f"one number, or {policy_dim} numbers",
            fix="give one offset per policy action",
        )
    place = _targets_of_slices if mapping.slices else _targets_of_pads
    targets = place(mapping, policy_dim, simulator_dim, location)
    return targets, _base(mapping, targets, simulator_dim, location)


def _check_scale(scale: float | tuple[float, ...], policy_dim: int, location: str) -> None:
    factors = scale if isinstance(scale, tuple) else (scale,) * policy_dim
    if len(factors) != policy_dim or not all(factors):
        raise UserError(
            "The action scale does not fit the policy's action",
            key=f"{location}.scale",
            value=scale,
            expected=f"one number, or {policy_dim} numbers, none of them 0, so that demonstrations can be scaled back",
            fix="give one factor per policy action, and pad a dimension instead of scaling it by 0",
        )


def _targets_of_pads(mapping: ActionMapping, policy_dim: int, simulator_dim: int, location: str) -> list[int]:
    total = mapping.prefix_pad + policy_dim + mapping.suffix_pad
    if total != simulator_dim:
        raise UserError(
            "The mapped action does not have the simulator's width",
            key=location,
            value=f"prefix_pad {mapping.prefix_pad} + action_dim {policy_dim} + suffix_pad {mapping.suffix_pad}"
            f" = {total}",
            expected=f"{simulator_dim} in total",
            fix="change the pads, or actor.model.action_dim",
        )
    return list(range(mapping.prefix_pad, mapping.prefix_pad + policy_dim))


def _targets_of_slices(mapping: ActionMapping, policy_dim: int, simulator_dim: int, location: str) -> list[int]:
    if mapping.prefix_pad or mapping.suffix_pad:
        raise UserError(
            "The policy's action is placed twice, by slices and by pads",
            key=f"{location}.slices",
            expected="slices, or prefix_pad and suffix_pad",
            fix="remove the pads",
        )
    targets: dict[int, int] = {}
    for number, part in enumerate(mapping.slices):
        ours, theirs = range(*part.policy), range(*part.simulator)
        outside = len(ours) != len(theirs) or ours.stop > policy_dim or theirs.stop > simulator_dim
        if outside or targets.keys() & set(ours) or set(targets.values()) & set(theirs):
            raise UserError(
                "A part of the policy's action does not fit where it is to go",
                key=f"{location}.slices[{number}]",
                value={"policy": list(part.policy), "simulator": list(part.simulator)},
                expected=f"two ranges of one length, within [0, {policy_dim}) and [0, {simulator_dim}), that do not"
                " overlap those before: no entry is placed twice",
                fix="correct the range",
            )
        targets |= dict(zip(ours, theirs, strict=True))
    missing = [i for i in range(policy_dim) if i not in targets]
    if missing:
        raise UserError(
            "Entries of the policy's action go nowhere",
            key=f"{location}.slices",
            value=missing,
            expected=f"slices that cover all {policy_dim} entries of the policy's action",
            fix="add them to the slices, or lower actor.model.action_dim",
        )
    return [targets[i] for i in range(policy_dim)]


def _base(mapping: ActionMapping, targets: list[int], simulator_dim: int, location: str) -> list[float]:
    base = [0.0] * simulator_dim
    taken = set(targets)
    for number, constant in enumerate(mapping.constants):
        entries = range(*constant.slice)
        values = constant.value if isinstance(constant.value, tuple) else (constant.value,) * len(entries)
        if entries.stop > simulator_dim or len(values) != len(entries) or taken.intersection(entries):
            raise UserError(
                "A constant of the action does not fit",
                key=f"{location}.constants[{number}]",
                value={"slice": list(constant.slice), "value": constant.value},
                expected=f"one value per entry, within [0, {simulator_dim}), for entries that nothing else sets",
                fix="correct the range or the values",
            )
        taken.update(entries)
        base[entries.start : entries.stop] = values
    return base
