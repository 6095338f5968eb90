"""The contract that every algorithm keeps. Learner and engine know this file and nothing of a loss.

An algorithm says what it needs of a policy, turns experience into minibatches, and gives the scalar that each of them
minimizes. It holds its configuration and no tensors but those of the policy that a run started from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from regrasp.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from regrasp.models.contract import Policy
    from regrasp.rollout.decisions import Decisions

ACTOR = "actor"
"""Optimizer group of the policy; it has the learning rate `actor.optim.lr`, every other group `value_lr`."""


@dataclass(frozen=True)
class Minibatch:
    """Decisions of one optimizer step."""

    decisions: Decisions
    groups: tuple[str, ...]
    """Optimizer groups that the step moves; gradients of the others are dropped."""


class Algorithm(ABC):
    """What an update is: which experience, which minibatches, which losses.

    Args:
        config: An instance of `Config`.
    """

    Config: ClassVar[type]
    """The block `algorithm` of an experiment, a frozen dataclass; `adv_type` and `loss_type` choose it."""
    needs: frozenset[str] = frozenset({"log_prob"})
    """What it asks of a policy, see `Policy.offers`: compared before anything starts."""
    keeps_start: bool = False
    """Whether it compares with the policy that the run started from, `start`."""
    maxima: frozenset[str] = frozenset()
    """Metrics of which a minibatch has the largest of its micro-batches'; of all others it has the sum."""
    compiled: tuple[str, ...] = ()
    """Methods from tensors to tensors that a GPU may compile."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.start: Policy | None = None
        """The policy that the run started from, where `keeps_start`; the learner sets it."""

    @property
    def group_size(self) -> int:
        """Environments that share an episode's seed and instruction."""
        return self.config.group_size

    @property
    def bootstraps_truncated(self) -> bool:
        """Whether a return that the step limit cuts goes on with the value of the final observation."""
        return False

    @abstractmethod
    def parameters(self, policy: Policy, trainable: str) -> dict[str, list[nn.Parameter]]:
        """Freeze what does not train, and return what does, by optimizer group.

        Args:
            policy: On its device.
            trainable: `actor.model.trainable`.
        """

    def check(self, policy: Policy) -> None:
        """Check that the policy offers what the algorithm needs.

        Raises:
            UserError: It does not.
        """
        for missing in sorted(self.needs - policy.offers):
            raise self.lacking(missing)

    def lacking(self, need: str) -> UserError:
        """What to tell of a policy that lacks something of `needs`."""
        texts = {"value": "has no value head", "log_prob": "has no density, so no probability ratio"}
        return UserError(
            f"The policy {texts.get(need, f'does not offer: {need}')}",
            key="algorithm.loss_type",
            value=self.config.loss_type,
            expected="an algorithm that suits the policy",
            mend="choose another algorithm, or another policy; with add_value_head=true a policy gets a value head",
        )

    def wants_more(self, decisions: Decisions, num_epochs: int) -> bool:
        """Whether a rollout goes on for another epoch after those of `rollout_epoch`.

        Args:
            decisions: All so far, not prepared.
            num_epochs: Rollout epochs so far.
        """
        del decisions, num_epochs
        return False

    @abstractmethod
    def prepare(self, decisions: Decisions) -> Decisions:
        """All decisions of an update, on the CPU, with what the losses need of them all at once (advantages)."""

    @abstractmethod
    def minibatches(self, decisions: Decisions, size: int, generator: torch.Generator) -> Iterator[Minibatch]:
        """The optimizer steps of an update on prepared decisions.

        Args:
            decisions: What `prepare` returned.
            size: Decisions of a minibatch, `actor.global_batch_size`.
            generator: Draws their order.
        """

    @abstractmethod
    def shares(self, micro: Decisions, batch: Decisions) -> Tensor:
        """A micro-batch's parts in the means over its minibatch, in the order that `loss` reads them."""

    @abstractmethod
    def loss(
        self, policy: Policy, micro: Decisions, shares: Tensor, groups: tuple[str, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What a micro-batch contributes to its minibatch's loss and metrics: the parts add up to the whole.

        On a GPU nothing here waits for it, so that it can be captured.

        Args:
            policy: Computes the losses.
            micro: On the policy's device.
            shares: See `shares`.
            groups: Of the minibatch.

        Returns:
            A scalar, and detached scalars by the name that they are logged under; a step that gives no metrics is not
            logged.
        """

    def forbids(self, _metrics: Mapping[str, Tensor]) -> Tensor | None:
        """Whether a minibatch's metrics forbid its step, a scalar on their device: the update then ends before it."""
        return None

    def summary(self, decisions: Decisions, history: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Further metrics of an update.

        Args:
            decisions: All of the update's.
            history: The metrics of its minibatches, in their order.
        """
        del decisions, history
        return {}
