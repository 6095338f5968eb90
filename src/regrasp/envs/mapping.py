"""From simulator observations to policy inputs, and from policy outputs to actuator commands.

The only place where simulator keys meet policy inputs. Everything is checked against what the simulator really offers
before the first step: a missing key is an error, never a shorter vector.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from regrasp.config.schema import MappingConfig
from regrasp.envs.contract import Observation
from regrasp.envs.selection import ObservationSelection, check_action_mapping, width_of


class ObservationMapping(ObservationSelection):
    """Selects and arranges raw observations as the configuration says; see `ObservationSelection`."""

    def __call__(self, raw: Mapping[str, np.ndarray], instructions: list[str]) -> Observation:
        """Arrange raw arrays (B, ...) into an observation of B environments, which shares their memory."""
        if self.main_camera is None:
            main = torch.zeros(len(instructions), 0, 0, 3, dtype=torch.uint8)
        else:
            main = torch.from_numpy(raw[self.main_camera])
        extra = [torch.from_numpy(raw[name]) for name in self.extra_cameras]
        count = len(instructions)
        columns = [raw[s.key].reshape(count, width_of(self.raw[s.key]))[:, s.start : s.stop] for s in self.states]
        states = np.concatenate(columns, 1) if columns else np.zeros((count, 0))
        return Observation(
            main_images=main,
            extra_view_images=torch.stack(extra, 1) if extra else None,
            states=torch.from_numpy(states.astype(np.float32)),
            task_descriptions=[self.instruction or text for text in instructions],
        )


class ActionMapping:
    """Places policy actions (N, T, A) in the simulator's action vector: zeros before and after, and a scale."""

    def __init__(self, config: MappingConfig, policy_dim: int, simulator_dim: int, location: str) -> None:
        check_action_mapping(config, policy_dim, simulator_dim, location)
        pads = config.action_mapping
        self._pads = (pads.prefix_pad, pads.suffix_pad)
        self._scale = torch.as_tensor(pads.scale, dtype=torch.float32)
        self.policy_dim = policy_dim

    def __call__(self, actions: Tensor) -> Tensor:
        """Policy actions (N, T, A) to simulator actions (N, T, prefix + A + suffix)."""
        return torch.nn.functional.pad(actions * self._scale.to(actions.device), self._pads)

    def inverse(self, actions: Tensor) -> Tensor:
        """The policy part of simulator actions (..., A_sim), for demonstrations."""
        return actions[..., self._pads[0] : self._pads[0] + self.policy_dim] / self._scale.to(actions.device)
