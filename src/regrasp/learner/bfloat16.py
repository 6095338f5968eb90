"""A policy that computes with bfloat16 weights, while the weights that are stored and stepped are float32."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from regrasp.models.contract import Policy

PolicyT = TypeVar("PolicyT", bound=Policy)


class Bfloat16Policy:
    """A copy of a policy, in which the trained weights that autocast would cast in every pass are bfloat16.

    Everything else is shared with the policy: what does not train, norms, embeddings, buffers. A bfloat16 weight is a
    leaf: its gradient is the one that autocast would turn into float32.

    Args:
        policy: What is stored; `requires_grad` says which of its weights train.
    """

    def __init__(self, policy: Policy) -> None:
        self.rounded: dict[nn.Parameter, nn.Parameter] = {
            weight: nn.Parameter(weight.detach().to(torch.bfloat16))
            for layer in policy.modules()
            if isinstance(layer, policy.product_layers)
            for weight in layer.parameters(recurse=False)
            if weight.requires_grad
        }
        """The bfloat16 weight of every float32 one that has one."""
        self.policy = shared_copy(policy, self.rounded)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the float32 weights, wherever they came from."""
        round_weights(self.rounded)


def shared_copy(policy: PolicyT, replaced: Mapping[nn.Parameter, nn.Parameter] | None = None) -> PolicyT:
    """A copy that shares all weights and buffers, except those that are `replaced` by others."""
    same: dict[int, Tensor] = {id(tensor): tensor for tensor in (*policy.parameters(), *policy.buffers())}
    return copy.deepcopy(policy, same | {id(weight): other for weight, other in (replaced or {}).items()})


def round_weights(rounded: Mapping[nn.Parameter, nn.Parameter]) -> None:
    """Round float32 weights to the bfloat16 ones that they are given with."""
    if rounded:
        torch._foreach_copy_([*rounded.values()], [*rounded])  # pyright: ignore[reportPrivateImportUsage]
