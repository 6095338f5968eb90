"""From simulator observations to policy inputs, and from policy outputs to actuator commands.

The only place where simulator keys meet policy inputs. Everything is checked against what the simulator really offers
before the first step: a missing key is an error, never a shorter vector.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regrasp.config.schema import MappingConfig
from regrasp.envs.contract import ArraySpec, Observation
from regrasp.errors import UserError


@dataclass(frozen=True)
class StateSource:
    """A contiguous slice of one raw observation that feeds the state vector."""

    key: str
    start: int
    stop: int


class ObservationMapping:
    """Selects and arranges raw observations as the configuration says.

    Args:
        config: The mapping block.
        raw: What the simulator offers, by `group/key`.
        location: Dotted path of the block, for errors.
    """

    def __init__(self, config: MappingConfig, raw: Mapping[str, ArraySpec], location: str) -> None:
        self._raw = raw
        self._location = location
        self.instruction = config.task_description
        self.main_camera = self._camera(config.main_images, "main_images") if config.main_images else None
        self.extra_cameras = tuple(self._camera(name, "extra_view_images") for name in config.extra_view_images)
        self.states = tuple(self._state(i, entry.key, entry.slice) for i, entry in enumerate(config.states))
        self._check_equal_sizes()

    @property
    def keys(self) -> tuple[str, ...]:
        """The raw observations needed; the simulator computes no others."""
        cameras = () if self.main_camera is None else (self.main_camera, *self.extra_cameras)
        return tuple(dict.fromkeys((*cameras, *(source.key for source in self.states))))

    @property
    def state_dim(self) -> int:
        """Width of the state vector."""
        return sum(source.stop - source.start for source in self.states)

    def __call__(self, raw: Mapping[str, np.ndarray], instructions: list[str]) -> Observation:
        """Arrange raw arrays (B, ...) into an observation of B environments, which shares their memory."""
        if self.main_camera is None:
            main = torch.zeros(len(instructions), 0, 0, 3, dtype=torch.uint8)
        else:
            main = torch.from_numpy(raw[self.main_camera])
        extra = [torch.from_numpy(raw[name]) for name in self.extra_cameras]
        count = len(instructions)
        columns = [raw[s.key].reshape(count, _width(self._raw[s.key]))[:, s.start : s.stop] for s in self.states]
        states = np.concatenate(columns, 1) if columns else np.zeros((count, 0))
        return Observation(
            main_images=main,
            extra_view_images=torch.stack(extra, 1) if extra else None,
            states=torch.from_numpy(states.astype(np.float32)),
            task_descriptions=[self.instruction or text for text in instructions],
        )

    def _camera(self, name: str, field: str) -> str:
        key = self._find(name, field)
        spec = self._raw[key]
        if not _is_camera(spec):
            raise UserError(
                f"'{key}' is not a camera image",
                key=f"{self._location}.{field}",
                value=f"{spec.dtype} {spec.shape}",
                expected="uint8 of shape (height, width, 3)",
                mend=f"choose one of {sorted(key for key in self._raw if _is_camera(self._raw[key]))}",
            )
        return key

    def _state(self, index: int, name: str, bounds: tuple[int, int] | None) -> StateSource:
        field = f"states[{index}]"
        key = self._find(name, field)
        spec = self._raw[key]
        if spec.dtype == "uint8":
            raise UserError(
                f"'{key}' is an image, not a state",
                key=f"{self._location}.{field}",
                expected="a vector observation",
                mend=f"choose one of {sorted(key for key in self._raw if self._raw[key].dtype != 'uint8')}",
            )
        width = _width(spec)
        start, stop = bounds or (0, width)
        if stop > width:
            raise UserError(
                f"The slice reaches past the end of '{key}'",
                key=f"{self._location}.{field}.slice",
                value=[start, stop],
                expected=f"0 <= start < stop <= {width}, the width that the simulator reports",
                mend="shorten the slice or choose another key",
            )
        return StateSource(key, start, stop)

    def _find(self, name: str, field: str) -> str:
        matches = [key for key in self._raw if name in (key, _short(key))]
        if len(matches) == 1:
            return matches[0]
        near = difflib.get_close_matches(name, [key if "/" in name else _short(key) for key in self._raw], 1)
        raise UserError(
            f"The simulator offers {'several observations' if matches else 'no observation'} named '{name}'",
            key=f"{self._location}.{field}",
            value=name,
            expected=f"one of {matches or sorted(self._raw)}",
            mend="write it as group/key" if matches else (f"did you mean '{near[0]}'?" if near else "correct the name"),
        )

    def _check_equal_sizes(self) -> None:
        sizes = {self._raw[key].shape for key in self.extra_cameras}
        if len(sizes) > 1:
            raise UserError(
                "Extra cameras differ in size, so they cannot be stacked",
                key=f"{self._location}.extra_view_images",
                value=list(self.extra_cameras),
                expected="cameras of one size",
                mend="give the cameras the same width and height in the task",
            )


def _short(key: str) -> str:
    return key.split("/", 1)[-1]


def _is_camera(spec: ArraySpec) -> bool:
    return spec.dtype == "uint8" and len(spec.shape) == 3 and spec.shape[2] == 3


def _width(spec: ArraySpec) -> int:
    return math.prod(spec.shape)


class ActionMapping:
    """Places policy actions (N, T, A) in the simulator's action vector: zeros before and after, and a scale."""

    def __init__(self, config: MappingConfig, policy_dim: int, simulator_dim: int, location: str) -> None:
        mapping = config.action_mapping
        total = mapping.prefix_pad + policy_dim + mapping.suffix_pad
        if total != simulator_dim:
            raise UserError(
                "The mapped action does not have the simulator's width",
                key=f"{location}.action_mapping",
                value=f"prefix_pad {mapping.prefix_pad} + action_dim {policy_dim} + suffix_pad {mapping.suffix_pad}"
                f" = {total}",
                expected=f"{simulator_dim} in total",
                mend="change the pads, or actor.model.action_dim",
            )
        scale = torch.as_tensor(mapping.scale, dtype=torch.float32)
        if scale.ndim == 1 and len(scale) != policy_dim:
            raise UserError(
                "The action scale has the wrong length",
                key=f"{location}.action_mapping.scale",
                value=list(mapping.scale) if isinstance(mapping.scale, tuple) else mapping.scale,
                expected=f"one number, or {policy_dim} numbers",
                mend="give one factor per policy action",
            )
        if not scale.all():
            raise UserError(
                "The action scale has a zero, so demonstrations cannot be told in the policy's units",
                key=f"{location}.action_mapping.scale",
                value=list(mapping.scale) if isinstance(mapping.scale, tuple) else mapping.scale,
                expected="factors other than 0",
                mend="leave the dimension out of the policy's action and pad it instead",
            )
        self._pads = (mapping.prefix_pad, mapping.suffix_pad)
        self._scale = scale
        self.policy_dim = policy_dim

    def __call__(self, actions: Tensor) -> Tensor:
        """Policy actions (N, T, A) to simulator actions (N, T, prefix + A + suffix)."""
        return torch.nn.functional.pad(actions * self._scale.to(actions.device), self._pads)

    def inverse(self, actions: Tensor) -> Tensor:
        """The policy part of simulator actions (..., A_sim), for demonstrations."""
        return actions[..., self._pads[0] : self._pads[0] + self.policy_dim] / self._scale.to(actions.device)
