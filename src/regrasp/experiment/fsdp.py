"""Block `actor.fsdp_config`: how the ranks that train a policy together divide its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from regrasp.config.types import BLOCK, Expect, Precision
from regrasp.errors import UserError


def _all_or_some(size: int) -> int:
    if size == 0:
        raise ValueError("no rank")
    return size


@dataclass(frozen=True, config=BLOCK)
class MixedPrecision:
    """Number formats of weights and gradients that are sharded."""

    param_dtype: Precision | None = None
    """Format of the weights in the forward pass: that of `actor.model.precision`, or null, which means the same."""
    reduce_dtype: Precision | None = None
    """Format in which gradients are summed over the ranks; null: float32, or that of the weights where it is finer.
    Without shards, bf16 is for the gradients of bfloat16 weights in minibatches of which each rank has one
    micro-batch."""


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class FsdpConfig:
    """Sharding of the trained weights over the ranks that train; one rank alone has nothing to shard."""

    strategy: Literal["fsdp", "fsdp2"] = "fsdp2"
    """PyTorch's implementation; FSDP2 runs either way."""
    sharding_strategy: Literal["full_shard", "shard_grad_op", "hybrid_shard", "no_shard"] = "no_shard"
    """`no_shard`: every rank has all weights, gradients and optimizer state. `full_shard`: each has its part, and
    gathers the weights of one layer at a time. `shard_grad_op`: a layer's weights stay gathered until its gradient is
    known. `hybrid_shard`: as full_shard among `fsdp_size` ranks, and copies of that over all."""
    fsdp_size: Annotated[int, Field(ge=-1), AfterValidator(_all_or_some), Expect("-1, or at least 1")] = -1
    """Ranks that shard together with `hybrid_shard`; -1: all."""
    reshard_after_forward: bool = True
    """Give a layer's gathered weights up after its forward pass, and gather them again for its gradient."""
    cpu_offload: bool = False
    """Keep sharded weights, gradients and optimizer state in host memory; a CPU has nothing to offload."""
    offload_pin_memory: bool = False
    """Pin that host memory, for faster copies."""
    gradient_checkpointing: bool = False
    """Compute a layer's activations again for its gradient instead of keeping them; with one rank too."""
    enable_gradient_accumulation: bool = True
    """Sum sharded gradients over the ranks once for a whole minibatch, which keeps them unsharded over its
    micro-batches; false: after every micro-batch."""
    forward_prefetch: bool = False
    """Begin to gather the next layer's weights before the present layer runs."""
    mixed_precision: MixedPrecision = MixedPrecision()
    """Number formats."""

    def num_shards(self, num_ranks: int) -> int:
        """Parts that the trained weights are divided into; 1: every rank has them whole.

        Args:
            num_ranks: That train.

        Raises:
            UserError: The ranks cannot be divided so.
        """
        if self.sharding_strategy == "no_shard" or num_ranks == 1:
            return 1
        if self.sharding_strategy != "hybrid_shard" or self.fsdp_size == -1:
            return num_ranks
        if num_ranks % self.fsdp_size:
            raise UserError(
                "The ranks that train do not divide into groups of this size",
                key="actor.fsdp_config.fsdp_size",
                value=self.fsdp_size,
                expected=f"a divisor of their number, {num_ranks}, or -1",
                fix="change it, or the placement of the actor",
            )
        return self.fsdp_size

    @property
    def keeps_gathered(self) -> bool:
        """Whether a layer's weights stay gathered between its forward pass and its gradient."""
        return self.sharding_strategy == "shard_grad_op" or not self.reshard_after_forward

    def problems(self, precision: Precision, compiles: bool) -> Iterator[UserError]:
        """What the keys say against each other, and against keys of `actor.model`."""
        key = "actor.fsdp_config"
        if self.fsdp_size != -1 and self.sharding_strategy != "hybrid_shard":
            yield UserError(
                "A number of ranks that shard together is for hybrid_shard",
                key=f"{key}.fsdp_size",
                value=self.fsdp_size,
                expected=f"-1 with sharding_strategy {self.sharding_strategy}",
                fix=f"set {key}.sharding_strategy=hybrid_shard, or {key}.fsdp_size=-1",
            )
        if self.cpu_offload and self.sharding_strategy == "no_shard":
            yield UserError(
                "Only sharded weights are offloaded",
                key=f"{key}.cpu_offload",
                value=True,
                expected="false with sharding_strategy no_shard",
                fix=f"set {key}.sharding_strategy=full_shard, or {key}.cpu_offload=false",
            )
        if self.mixed_precision.param_dtype not in (None, precision):
            yield UserError(
                "Contradiction with actor.model.precision",
                key=f"{key}.mixed_precision.param_dtype",
                value=self.mixed_precision.param_dtype,
                expected=f"null, or {precision} as actor.model.precision says",
                fix=f"set actor.model.precision={self.mixed_precision.param_dtype}, or remove the key",
            )
        if self.gradient_checkpointing and compiles:
            yield UserError(
                "Passes that are compiled or recorded do not compute layers twice",
                key=f"{key}.gradient_checkpointing",
                value=True,
                expected="false with actor.model.compile",
                fix=f"set actor.model.compile=false, or {key}.gradient_checkpointing=false",
            )

    def idle_with(self, num_ranks: int) -> Iterator[str]:
        """What has no effect with a number of ranks that train."""
        if num_ranks == 1 and self.cpu_offload:
            yield (
                "actor.fsdp_config.cpu_offload has no effect: only sharded weights are offloaded, and the one process"
                " that trains has all weights, gradients and optimizer state on its device."
            )

    def oddities(self) -> Iterator[str]:
        """Keys that others leave without effect."""
        key = "actor.fsdp_config"
        if self.sharding_strategy == "no_shard":
            default = FsdpConfig()
            for name in ("reshard_after_forward", "enable_gradient_accumulation", "forward_prefetch"):
                if getattr(self, name) != getattr(default, name):
                    yield f"{key}.{name} says nothing with sharding_strategy no_shard."
        if self.sharding_strategy == "shard_grad_op" and not self.reshard_after_forward:
            yield f"{key}.reshard_after_forward says nothing with sharding_strategy shard_grad_op, which never does."
        if self.offload_pin_memory and not self.cpu_offload:
            yield f"{key}.offload_pin_memory says nothing without cpu_offload."
