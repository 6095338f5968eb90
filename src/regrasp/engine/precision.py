"""Number format of the policy's forward pass."""

from __future__ import annotations

from types import MethodType

import torch

from regrasp.config.schema import ModelConfig
from regrasp.models.contract import Policy


def apply_precision(policy: Policy, model: ModelConfig, device: torch.device) -> None:
    """Run every mode of the policy under autocast where `actor.model.precision` is bf16; weights stay float32."""
    if model.precision == "bf16":
        forward = torch.autocast(device.type, torch.bfloat16)(type(policy).forward)
        policy.forward = MethodType(forward, policy)  # a method, so that a copy of the policy calls itself
