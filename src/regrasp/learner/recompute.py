"""Gradient checkpointing: activations that are computed again instead of kept."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from regrasp.errors import UserError
from regrasp.models.contract import Policy


def recompute_layers(policy: Policy) -> None:
    """Let what is differentiated keep no activations of the policy's layers, and compute them again for gradients.

    Args:
        policy: Changed in place, with its later copies.

    Raises:
        UserError: The policy names no layers.
    """
    methods = policy.methods_to_recompute()
    if not methods:
        key = "actor.fsdp_config.gradient_checkpointing"
        raise UserError(
            "This policy names no layers to compute again",
            key=key,
            value=True,
            expected="false",
            fix=f"set {key}=false",
        )
    for module, name in methods:
        setattr(module, name, _recomputed(getattr(module, name)))


def _recomputed(method: MethodType) -> MethodType:
    """A method of the same module: it holds none, so that a copy of the module computes with its own weights."""
    inner: Callable[..., Any] = method.__func__

    @functools.wraps(inner)
    def again(self: nn.Module, *arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(self, *arguments, **named)
        return checkpoint(inner, self, *arguments, use_reentrant=False, **named)

    return MethodType(again, method.__self__)
