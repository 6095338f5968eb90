"""From simulator observations to policy inputs, and from policy outputs to actuator commands.

The only place where simulator keys meet policy inputs. Everything is checked against what the simulator really offers
before the first step: a missing key is an error, never a shorter vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from regrasp.envs.contract import Observation
from regrasp.envs.mapping_config import MappingConfig
from regrasp.envs.selection import STATE, ObservationSelection, Range, action_layout, width_of


class ObservationMapping(ObservationSelection):
    """Selects and arranges raw observations as the configuration says; see `ObservationSelection`."""

    def __call__(self, raw: Mapping[str, np.ndarray], instructions: list[str]) -> Observation:
        """Arrange raw arrays (B, ...) into an observation of B environments.

        Its images share their memory, except for those that are transformed.
        """
        images = zip(self.camera_names, self.cameras, self.image_transforms, strict=True)
        return Observation(
            images={name: transformed(torch.from_numpy(raw[key]), names) for name, key, names in images},
            state=named_state(self._state_vector(raw, len(instructions)), self.state_names),
            instruction=[self.instruction or text for text in instructions],
        )

    def _state_vector(self, raw: Mapping[str, np.ndarray], count: int) -> Tensor:
        columns = [raw[s.key].reshape(count, width_of(self.raw[s.key]))[:, s.start : s.stop] for s in self.states]
        states = np.concatenate(columns, 1) if columns else np.zeros((count, 0))
        return torch.from_numpy(states.astype(np.float32))


_TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "rotate_90": lambda images: images.rot90(-1, (1, 2)),
    "rotate_180": lambda images: images.flip(1, 2),
    "rotate_270": lambda images: images.rot90(1, (1, 2)),
    "flip_horizontal": lambda images: images.flip(2),
    "flip_vertical": lambda images: images.flip(1),
}


def transformed(images: Tensor, names: Iterable[str]) -> Tensor:
    """Images (B, H, W, 3) after the transforms of `image_transform` that are named, one after the other."""
    for name in names:
        images = _TRANSFORMS[name](images)
    return images


def named_state(vector: Tensor, names: Mapping[str, Range]) -> dict[str, Tensor]:
    """The whole state vector (B, D) and its named parts, which share its memory."""
    return {name: vector[:, start:stop] for name, (start, stop) in names.items()} | {STATE: vector}


class ActionMapping:
    """Scales and moves policy actions (N, T, A) and places them in the simulator's action vector, among constants."""

    def __init__(self, config: MappingConfig, policy_dim: int, simulator_dim: int, location: str) -> None:
        targets, base = action_layout(config, policy_dim, simulator_dim, location)
        self._targets = torch.tensor(targets)
        self._base = torch.tensor(base)
        self._scale = torch.as_tensor(config.action_mapping.scale, dtype=torch.float32)
        self._offset = torch.as_tensor(config.action_mapping.offset, dtype=torch.float32)
        self.policy_dim = policy_dim

    def __call__(self, actions: Tensor) -> Tensor:
        """Policy actions (N, T, A) to simulator actions (N, T, A_sim)."""
        mapped = self._base.to(actions).expand(*actions.shape[:-1], -1).clone()
        mapped[..., self._targets.to(actions.device)] = actions * self._scale.to(actions) + self._offset.to(actions)
        return mapped

    def inverse(self, actions: Tensor) -> Tensor:
        """The policy part of simulator actions (..., A_sim), for demonstrations."""
        return (actions[..., self._targets.to(actions.device)] - self._offset.to(actions)) / self._scale.to(actions)
