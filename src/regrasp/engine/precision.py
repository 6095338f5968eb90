"""Number formats: what is stored and computed in bfloat16 when `actor.model.precision` is bf16."""

from __future__ import annotations

import copy
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from regrasp.models.contract import Mode, Policy

if TYPE_CHECKING:
    from regrasp.config.schema import ModelConfig


def apply_precision(policy: Policy, model: ModelConfig, device: torch.device) -> None:
    """With bf16, store what does not train in bfloat16 and compute in bfloat16; what trains stays float32.

    Features of a wholly frozen backbone are bfloat16 arithmetic throughout, as the published code runs it; every other
    pass is under autocast. Call it before the optimizer is made, and before the weights are moved, which then costs
    half.

    Args:
        policy: With its weights; freezes what `model.trainable` leaves out.
        model: `precision` and `trainable`.
        device: Where the policy will live.
    """
    if model.precision != "bf16":
        return
    trained = {id(p) for _, p in (*policy.prepare_training(model.trainable), *policy.trainable("value_head"))}
    for parameter in policy.parameters():
        if id(parameter) not in trained:
            parameter.data = parameter.data.to(torch.bfloat16)
    backbone = policy.trainable("backbone")
    frozen_features = bool(backbone) and not any(id(parameter) in trained for _, parameter in backbone)

    def forward(self: Policy, mode: Mode, **inputs: Any) -> Any:
        uses_autocast = not (mode == "encode" and frozen_features)
        with torch.autocast(device.type, torch.bfloat16, enabled=uses_autocast):
            return type(self).forward(self, mode, **inputs)

    policy.forward = MethodType(forward, policy)  # a method, so that a copy of the policy calls itself


class ActingPolicy:
    """The policy that rollouts and evaluations run.

    In float32 it is the policy that trains. In bf16 it is a copy that shares the frozen weights and holds the trained
    layers' weights in bfloat16, as autocast would cast them, so that they are cast once per update and not in every
    pass; what depends on weights alone is computed once per update too. Its results are those of the policy under
    autocast, but for the order of sums where several products are made one.

    Args:
        policy: What trains; `requires_grad` says which of its weights do.
        model: `precision`.
    """

    def __init__(self, policy: Policy, model: ModelConfig) -> None:
        self.policy = policy
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        if model.precision == "bf16":
            constants = (*(p for p in policy.parameters() if not p.requires_grad), *policy.buffers())
            self.policy = copy.deepcopy(policy, {id(tensor): tensor for tensor in constants}).eval()
            self._pairs = [
                (own, trained)
                for own, trained in zip(self.policy.parameters(), policy.parameters(), strict=True)
                if trained.requires_grad
            ]
            for own, _ in self._pairs:
                own.requires_grad_(False)
            _halve_layers(self.policy)
            with torch.no_grad():
                self.policy.prepare_acting()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the trained weights."""
        for own, trained in self._pairs:
            own.copy_(trained)
        if self._pairs:
            self.policy.prepare_acting()
        self.policy.eval()


def _halve_layers(policy: Policy) -> None:
    """Cast the weights that autocast casts; norms and embeddings keep their format."""
    for layer in policy.modules():
        if isinstance(layer, policy.product_layers):
            for parameter in layer.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)
