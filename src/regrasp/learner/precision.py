"""Number formats: what is stored and computed in bfloat16 when `actor.model.precision` is bf16."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch

from regrasp.learner.bfloat16 import Bfloat16Policy, shared_copy
from regrasp.models.contract import Policy

if TYPE_CHECKING:
    from regrasp.models.config import ModelConfig


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

    def in_bfloat16(name: str, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=not (name == "encode" and frozen_features)):
            return method(*arguments, **named)

    policy.wrap_methods(in_bfloat16)


class PolicyCopy(Protocol):
    """A copy of a policy that shares what does not train, such as `Bfloat16Policy`."""

    policy: Policy

    def refresh(self) -> None:
        """Take over the trained weights."""


class ActingPolicy:
    """The policy that rollouts and evaluations run.

    In float32 it is the policy that trains, or the whole copy of one that is sharded. In bf16 it is a copy that shares
    all weights with the one that computes losses (see `Bfloat16Policy`), and computes once per update what depends on
    weights alone. Its results are those of the policy under autocast, but for the order of sums where several products
    are made one.

    Args:
        policy: What trains; `requires_grad` says which of its weights do.
        model: `precision`.
        device: Where it acts; weights that it shares are moved there.
        source: The copy whose weights it shares, where there is one; None for a policy that is not going to train.
    """

    def __init__(
        self, policy: Policy, model: ModelConfig, device: torch.device, source: PolicyCopy | None = None
    ) -> None:
        self._prepares = model.precision == "bf16"
        self._source = source or (Bfloat16Policy(policy) if self._prepares else None)
        self.policy = policy if self._source is None else shared_copy(self._source.policy).eval()
        self.policy.to(device)
        if self._prepares:
            with torch.no_grad():
                self.policy.prepare_acting()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the trained weights; where they are sharded, all ranks call this."""
        if self._source is not None:
            self._source.refresh()
        if self._prepares:
            self.policy.prepare_acting()
        self.policy.eval()
