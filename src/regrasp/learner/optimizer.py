"""Optimizer steps for which the host does not wait: the GPU itself calls off a step that must not be made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from regrasp.algorithms.base import ACTOR
from regrasp.learner.bfloat16 import round_weights
from regrasp.learner.fused_adamw import Bfloat16Weights, FusedAdamW
from regrasp.ranks import Ranks

if TYPE_CHECKING:
    from regrasp.experiment import OptimConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of a weight besides the number of its steps, of its shape."""
_CLIP_EPS = 1e-6
"""As `torch.nn.utils.clip_grads_with_norm_` has it."""


def adamw(
    parameters: Mapping[str, Sequence[nn.Parameter]], optim: OptimConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW with the groups of an algorithm; `base_lr` of a group is what schedules scale.

    Its step is one kernel, which on a CPU too takes a third of the time; sharded weights have it on GPUs alone.
    """
    is_sharded = any(isinstance(weight, DTensor) for own in parameters.values() for weight in own)
    rates = {name: optim.lr if name == ACTOR else optim.value_lr for name in parameters}
    groups = [{"params": list(own), "lr": rates[name], "base_lr": rates[name]} for name, own in parameters.items()]
    return torch.optim.AdamW(
        groups,
        betas=(optim.adam_beta1, optim.adam_beta2),
        eps=optim.adam_eps,
        weight_decay=optim.weight_decay,
        fused=device.type == "cuda" or not is_sharded,
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


class Steps:
    """Clipped steps of an optimizer whose weights may have bfloat16 ones that compute in their place.

    A gradient of the float32 weight itself is clipped where it is, and the optimizer makes the step. A gradient of the
    bfloat16 weight stays as it is: `FusedAdamW` clips it and makes the step, with the moments that the optimizer keeps.

    Args:
        optimizer: Of the float32 weights.
        rounded: The bfloat16 weight of every float32 one that has one.
        max_norm: Of the gradients of an optimizer group.
    """

    def __init__(
        self, optimizer: torch.optim.AdamW, rounded: Mapping[nn.Parameter, nn.Parameter], max_norm: float
    ) -> None:
        self._optimizer = optimizer
        self._rounded = rounded
        self._max_norm = max_norm
        self._fused = [FusedAdamW() for _ in optimizer.param_groups]
        self._coefficients: dict[int, Tensor] = {}

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self._optimizer.zero_grad(set_to_none=True)
        _forget(self._rounded.values())

    def begin_pass(self, *, is_last: bool) -> None:
        """Hear that a forward and backward pass begins, and whether gradients are to be summed over the ranks in it."""

    @torch.no_grad()
    def gather(self) -> None:
        """Move bfloat16 gradients to the float32 weights, where those of several micro-batches add up."""
        for weight, half in self._rounded.items():
            if half.grad is not None:
                weight.grad = half.grad.float() if weight.grad is None else weight.grad.add_(half.grad)
                half.grad = None

    def computing(self) -> list[nn.Parameter]:
        """The weights that gradients are computed of, in all groups."""
        weights = [weight for group in range(len(self._optimizer.param_groups)) for weight in self._weights(group)]
        return [*weights, *(self._rounded[weight] for weight in weights if weight in self._rounded)]

    def add_up(self, ranks: Ranks) -> None:
        """Sum the gradients of all groups over the ranks, each of which has those of the same weights."""
        ranks.add([weight.grad for weight in self.computing() if weight.grad is not None])

    def drop(self, group: int) -> None:
        """Make the next step leave a group and its moments alone."""
        weights = self._weights(group)
        _forget(weights)
        _forget(self._rounded[weight] for weight in weights if weight in self._rounded)

    @torch.no_grad()
    def clip(self, group: int) -> Tensor:
        """Clip the gradients of a group, and return their norm before clipping."""
        weights = self._weights(group)
        of_halves = [half.grad for _, half in self._lent(group) if half.grad is not None]
        if not of_halves:
            return nn.utils.clip_grad_norm_(weights, self._max_norm)
        own = [weight.grad for weight in weights if weight.grad is not None]
        norms = [norm for gradients in (of_halves, own) if gradients for norm in _norms(gradients)]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        nn.utils.clip_grads_with_norm_(weights, self._max_norm, norm)
        self._coefficients[group] = (self._max_norm / (norm + _CLIP_EPS)).clamp(max=1.0)
        return norm

    @torch.no_grad()
    def step_unless(self, forbidden: Tensor) -> None:
        """Step with clipped gradients, unless `forbidden` (), bool, is true; see the function of this name."""
        step_unless(self._optimizer, forbidden)
        round_weights({weight: half for weight, half in self._rounded.items() if weight.grad is not None})
        for group, fused in enumerate(self._fused):
            if lent := self._lent(group):
                settings = self._optimizer.param_groups[group]
                fused.step(self._bfloat16(lent), settings, self._coefficients[group], forbidden)

    def _weights(self, group: int) -> list[nn.Parameter]:
        return self._optimizer.param_groups[group]["params"]

    def _lent(self, group: int) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Weights of a group whose gradient their bfloat16 weight has, with it."""
        pairs = [(weight, self._rounded[weight]) for weight in self._weights(group) if weight in self._rounded]
        return [(weight, half) for weight, half in pairs if half.grad is not None]

    def _bfloat16(self, lent: list[tuple[nn.Parameter, nn.Parameter]]) -> Bfloat16Weights:
        states = [self._state(weight) for weight, _ in lent]
        return Bfloat16Weights(
            weights=[weight for weight, _ in lent],
            rounded=[half for _, half in lent],
            gradients=[half.grad for _, half in lent if half.grad is not None],
            means=[state["exp_avg"] for state in states],
            squares=[state["exp_avg_sq"] for state in states],
            steps=[state["step"] for state in states],
        )

    def _state(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """What the optimizer keeps of a weight, begun as it begins it."""
        state = self._optimizer.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        return state


def _norms(gradients: list[Tensor]) -> Sequence[Tensor]:
    """The norm of each in float32, whatever they are themselves."""
    return torch._foreach_norm(gradients, 2, dtype=torch.float32)  # pyright: ignore[reportPrivateImportUsage]


def _forget(weights: Iterable[nn.Parameter]) -> None:
    for weight in weights:
        weight.grad = None


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
