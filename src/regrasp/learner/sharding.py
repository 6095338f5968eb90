"""Trained weights divided over ranks with FSDP2, whole copies of them, and optimizer steps on the parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.export import register_dataclass
from torch.utils._pytree import tree_map

from regrasp.learner.bfloat16 import shared_copy
from regrasp.learner.optimizer import MOMENTS, Steps, step_unless
from regrasp.models.contract import Evaluation, Policy
from regrasp.ranks import SHARD, Ranks, buckets

if TYPE_CHECKING:
    from regrasp.experiment.fsdp import FsdpConfig

_DTYPES = {None: None, "fp32": torch.float32, "bf16": torch.bfloat16}

register_dataclass(Evaluation)  # FSDP2 looks for what has a gradient in a method's result, as in a tree


class ShardedPolicy:
    """A policy whose trained weights are divided over ranks; what does not train is whole on each.

    A whole copy in the format that passes compute in acts: ranks decide at times of their own, and FSDP2's passes are
    of all ranks together. It shares what does not train, and takes the weights over when asked.

    Args:
        policy: With its weights, on its device; `requires_grad` says which of them train. It is sharded in place: every
            layer of its `stacks`, then what is left of it.
        settings: `actor.fsdp_config`.
        num_shards: Parts of each weight.
        ranks: Those that train.
        param_dtype: Format that passes compute in; None: as weights are stored.
    """

    def __init__(
        self, policy: Policy, settings: FsdpConfig, num_shards: int, ranks: Ranks, param_dtype: torch.dtype | None
    ) -> None:
        names, wholes = zip(*((name, p) for name, p in policy.named_parameters() if p.requires_grad), strict=True)
        self.names: tuple[str, ...] = names
        self.shapes = [weight.shape for weight in wholes]
        """Of the whole weights, in the order of `names`."""
        copies = {weight: nn.Parameter(weight.detach().to(param_dtype or weight.dtype)) for weight in wholes}
        self.policy = shared_copy(policy, copies)
        """The whole copy."""
        self._copies = list(copies.values())
        self._device = wholes[0].device
        mesh = ranks.mesh(num_shards)
        self._group = mesh.get_group(SHARD)
        self._num_shards, self._index = num_shards, mesh.get_local_rank(SHARD)
        _shard(policy, settings, mesh, param_dtype)
        self._sharded = policy
        own = dict(policy.named_parameters())
        self._weights = [own[name] for name in names]
        self._parts = [nn.Parameter(_local(weight)) for weight in self._weights]
        self._accumulates = settings.enable_gradient_accumulation

    @property
    def place(self) -> torch.device:
        """Where the parts are: a policy that is offloaded has them in host memory."""
        return self._parts[0].device

    def part(self, name: str) -> nn.Parameter:
        """This rank's part of a weight, which has its gradient after `take_gradients`."""
        return self._parts[self.names.index(name)]

    def number(self, part: nn.Parameter) -> int:
        """Of the weight that a part is of, among `names`."""
        return next(number for number, own in enumerate(self._parts) if own is part)

    def zero_grad(self) -> None:
        """Forget the gradients of parts and of weights."""
        for parameter in (*self._weights, *self._parts):
            parameter.grad = None

    def begin_pass(self, *, is_last: bool) -> None:
        """Say whether the pass that comes is the last of its minibatch: gradients are summed over the ranks then.

        Those of earlier passes may wait for it only where every pass uses every layer.
        """
        assert isinstance(self._sharded, FSDPModule)
        self._sharded.set_requires_gradient_sync(is_last or not self._accumulates)

    def take_gradients(self) -> None:
        """Give this rank's parts their gradients, summed over all ranks."""
        for weight, part in zip(self._weights, self._parts, strict=True):
            part.data = _local(weight)  # FSDP2 may have moved it
            part.grad = None if weight.grad is None else _local(weight.grad)

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The norm of gradients of which each rank has its part."""
        square = nn.utils.get_total_norm(gradients).to(self._device).square()
        dist.all_reduce(square, group=self._group)
        return square.sqrt()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the weights over into the whole copy."""
        for copy, weight in zip(self._copies, self.whole([copy.dtype for copy in self._copies]), strict=True):
            copy.copy_(weight)

    def whole(self, formats: Sequence[torch.dtype] | None = None) -> Iterator[Tensor]:
        """Every weight whole on its device, in the order of `names`, gathered some 64 MiB at a time.

        Args:
            formats: To send them in; default: as they are stored.
        """
        parts = [_local(weight) for weight in self._weights]
        return self._whole(parts, self.shapes, formats or [part.dtype for part in parts])

    def _whole(
        self, parts: Sequence[Tensor], shapes: Sequence[torch.Size], formats: Sequence[torch.dtype]
    ) -> Iterator[Tensor]:
        meant = [torch.empty(shape, dtype=kind, device="meta") for shape, kind in zip(shapes, formats, strict=True)]
        start = 0
        for bucket in buckets(meant):
            own = parts[start : start + len(bucket)]
            start += len(bucket)
            yield from self._gathered(own, bucket)

    @torch.no_grad()
    def _gathered(self, parts: Sequence[Tensor], meant: Sequence[Tensor]) -> Iterator[Tensor]:
        """Tensors of the shapes and the format of `meant`, of which each rank has its part."""
        lengths = [self._rows(tensor.shape) * tensor.shape[1:].numel() for tensor in meant]
        mine = torch.zeros(sum(lengths), dtype=meant[0].dtype, device=self._device)
        for slot, part in zip(mine.split(lengths), parts, strict=True):
            slot[: part.numel()].copy_(part.flatten())
        table = mine.new_empty(self._num_shards, len(mine))
        dist.all_gather(list(table.unbind()), mine, group=self._group)
        columns = table.split(lengths, dim=1)
        for tensor, column in zip(meant, columns, strict=True):
            yield column.flatten()[: tensor.numel()].view(tensor.shape)

    def whole_moments(
        self, moments: Mapping[int, Mapping[str, Tensor]], order: Sequence[int], *, keep: bool
    ) -> dict[int, dict[str, Tensor]]:
        """What AdamW keeps of each weight, whole and on the CPU; all ranks call this.

        Args:
            moments: Of the parts, by their place in the optimizer.
            order: The number of the weight that each of the optimizer's parts is of.
            keep: Whether this rank wants it; otherwise nothing is returned.
        """
        found = {index: dict(own) for index, own in moments.items()} if keep else {}
        shapes = [self.shapes[order[index]] for index in moments]
        for name in MOMENTS:
            parts = [own[name] for own in moments.values()]
            for index, moment in zip(moments, self._whole(parts, shapes, [p.dtype for p in parts]), strict=True):
                if keep:
                    found[index][name] = moment.cpu()
        return found

    def cut_moments(
        self, moments: Mapping[int, Mapping[str, Tensor]], order: Sequence[int]
    ) -> dict[int, dict[str, Tensor]]:
        """This rank's part of what `whole_moments` returned."""
        return {
            index: {name: self._cut(order[index], kept) if name in MOMENTS else kept for name, kept in own.items()}
            for index, own in moments.items()
        }

    def _cut(self, number: int, whole: Tensor) -> Tensor:
        """This rank's part of something that has the shape of a weight."""
        rows = self._rows(self.shapes[number])
        return whole[self._index * rows : (self._index + 1) * rows].clone()

    def blank(self) -> Policy:
        """The policy with room on the CPU for whole weights as they are stored, for `take`; it shares the others."""
        room = [
            nn.Parameter(torch.empty(shape, dtype=part.dtype))
            for shape, part in zip(self.shapes, self._parts, strict=True)
        ]
        return shared_copy(self.policy, dict(zip(self._copies, room, strict=True)))

    @torch.no_grad()
    def complete(self, *, keep: bool) -> Policy:
        """The policy with whole weights as they are stored, those that train on the CPU; all ranks call this.

        Args:
            keep: Whether this rank wants it; otherwise its trained weights are not filled in.
        """
        policy = self.blank()
        room = dict(policy.named_parameters())
        for name, weight in zip(self.names, self.whole(), strict=True):
            if keep:
                room[name].copy_(weight)
        return policy

    @torch.no_grad()
    def take(self, filled: Policy) -> None:
        """Take over the trained weights of a policy that `blank` returned and that has been filled."""
        given = dict(filled.named_parameters())
        for index, (name, weight) in enumerate(zip(self.names, self._weights, strict=True)):
            _local(weight).copy_(self._cut(index, given[name]))

    def _rows(self, shape: torch.Size) -> int:
        """Rows of a whole tensor that a rank has, the last ones fewer."""
        return -(-shape[0] // self._num_shards)


class ShardedSteps(Steps):
    """Clipped steps of an optimizer that has this rank's parts of the weights.

    Args:
        optimizer: Of the parts.
        max_norm: Of the gradients of an optimizer group.
        sharded: Whose parts.
    """

    def __init__(self, optimizer: torch.optim.AdamW, max_norm: float, sharded: ShardedPolicy) -> None:
        super().__init__(optimizer, {}, max_norm)
        self._sharded = sharded

    def zero_grad(self) -> None:
        """See `Steps.zero_grad`."""
        self._sharded.zero_grad()

    def begin_pass(self, *, is_last: bool) -> None:
        """See `Steps.begin_pass`."""
        self._sharded.begin_pass(is_last=is_last)

    def add_up(self, ranks: Ranks) -> None:
        """Take the gradients, which FSDP2 has summed."""
        del ranks
        self._sharded.take_gradients()

    @torch.no_grad()
    def clip(self, group: int) -> Tensor:
        """See `Steps.clip`."""
        weights = self._weights(group)
        norm = self._sharded.norm([weight.grad for weight in weights if weight.grad is not None])
        nn.utils.clip_grads_with_norm_(weights, self._max_norm, norm)
        return norm

    @torch.no_grad()
    def step_unless(self, forbidden: Tensor) -> None:
        """See `Steps.step_unless`; the host waits where the parts are in its memory."""
        step_unless(self._optimizer, forbidden.to(self._weights(0)[0].device))


def _shard(policy: Policy, settings: FsdpConfig, mesh: DeviceMesh, param_dtype: torch.dtype | None) -> None:
    """Divide the trained weights, each over the ranks of the mesh's last dimension."""
    reduce_dtype = _DTYPES[settings.mixed_precision.reduce_dtype]
    offload = OffloadPolicy()
    if settings.cpu_offload and mesh.device_type != "cpu":
        offload = CPUOffloadPolicy(pin_memory=settings.offload_pin_memory)
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype, reduce_dtype or (param_dtype and torch.float32), cast_forward_inputs=False
        ),
        "offload_policy": offload,
        "ignored_params": {weight for weight in policy.parameters() if not weight.requires_grad},
    }
    layers: list[FSDPModule] = []
    for stack in policy.stacks():
        trained = [layer for layer in stack if any(weight.requires_grad for weight in layer.parameters())]
        units = [fully_shard(layer, reshard_after_forward=not settings.keeps_gathered, **options) for layer in trained]
        if settings.forward_prefetch:
            for unit, following in pairwise(units):
                unit.set_modules_to_forward_prefetch([following])
        layers += units
    whole = fully_shard(policy, reshard_after_forward=False, **options)
    for unit in (*layers, whole):
        unit.set_gradient_divide_factor(1.0)  # losses carry the shares of their samples in the whole minibatch
        unit.set_force_sum_reduction_for_comms(True)  # a CPU's backend has no reduction but sums
    policy.wrap_methods(_without_views)
    for name in (*policy.METHODS, "sft_loss"):
        register_fsdp_forward_method(policy, name)


def _without_views(_: str, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a method whose results FSDP2 puts its hooks on: written in place, a view of something would lose them."""
    return tree_map(_owned, method(*arguments, **named))


def _owned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.requires_grad and value._base is not None else value


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor."""
    part = tensor.detach()
    assert isinstance(part, DTensor)
    return part.to_local()
