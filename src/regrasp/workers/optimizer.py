"""Optimizer steps for which the host does not wait: the GPU itself calls off a step that must not be made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from regrasp.config.schema import OptimConfig


def adamw(
    policy: Iterable[nn.Parameter], value: Iterable[nn.Parameter], optim: OptimConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW with a group each for policy and value head; `base_lr` of a group is what schedules scale."""
    groups = [
        {"params": list(policy), "lr": optim.lr, "base_lr": optim.lr},
        {"params": list(value), "lr": optim.value_lr, "base_lr": optim.value_lr},
    ]
    return torch.optim.AdamW(
        groups,
        betas=(optim.adam_beta1, optim.adam_beta2),
        eps=optim.adam_eps,
        weight_decay=optim.weight_decay,
        fused=device.type == "cuda" or None,
    )


def step_unless(optimizer: torch.optim.Optimizer, forbidden: Tensor) -> None:
    """Step, unless `forbidden` (), bool, is true: then weights, moments and step counts stay as they are.

    On a GPU the optimizer must be a fused one, whose kernels look at `forbidden` themselves.
    """
    if not forbidden.is_cuda:
        if not forbidden:
            optimizer.step()
        return
    # torch's gradient scaler hands its finding over in this attribute; fused kernels leave everything alone at 1.
    optimizer.found_inf = forbidden.float()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()


def reader(numbers: Tensor) -> Callable[[], list[float]]:
    """Start to bring `numbers` (N,) to the host; the function returned waits for them, and for nothing asked later."""
    if not numbers.is_cuda:
        return numbers.tolist
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> list[float]:
        arrived.synchronize()
        return host.tolist()

    return read
