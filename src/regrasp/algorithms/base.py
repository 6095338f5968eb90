"""The contract that every algorithm keeps. Learner and engine know this file and nothing of a loss.

An algorithm says what it needs of a policy, turns experience into minibatches, and gives the scalar that each of them
minimizes. What it keeps from one update to the next, it gives to checkpoints. Configurations are
loaded without torch: where an algorithm's file has its `Config` too, its methods import what is heavy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass

from regrasp.config.types import BLOCK, Name, PositiveInt
from regrasp.errors import UserError
from regrasp.logging.columns import Column
from regrasp.logging.text import counted

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from regrasp.envs.config import TrainEnvConfig
    from regrasp.models.config import ModelConfig
    from regrasp.models.contract import Policy
    from regrasp.rollout.decisions import Decisions

Bootstrap = Literal["never", "cut", "truncated", "stored"]
"""`cut`: those of episodes that the rollout's end cuts; `truncated`: those that the step limit cuts, too; `stored`: the
latter, and instead of a value the observation is stored, as a decision that executes nothing."""
ACTOR = "actor"
"""Optimizer group of the policy; it has the learning rate `actor.optim.lr`, every other group `value_lr`."""


@plain_dataclass(frozen=True)
class Minibatch:
    """Decisions of one optimizer step."""

    decisions: Decisions
    groups: tuple[str, ...]
    """Optimizer groups that the step moves; gradients of the others are dropped."""
    rate: float = 1.0
    """What the learning rates of the update are multiplied by in it."""


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class AlgorithmConfig(ABC):
    """How an update collects its experience and what it optimizes; each algorithm's own block extends this one."""

    adv_type: Name
    """Advantage estimator; it chooses the algorithm."""
    loss_type: Name
    """Loss, which has to go with `adv_type`."""
    rollout_epoch: PositiveInt = 1
    """Times every training environment is rolled out before one update."""
    eval_rollout_epoch: PositiveInt = 1
    """Passes over the episodes of an evaluation."""
    group_size: PositiveInt = 1
    """Environments that share an initial state, for group-relative advantages; 1: none."""
    update_epoch: PositiveInt = 1
    """Passes over the rollout in one update."""

    @property
    def needs(self) -> frozenset[str]:
        """What the algorithm asks of a policy, see `Policy.offers`: compared before anything starts."""
        return frozenset({"log_prob"})

    @property
    def keeps_start(self) -> bool:
        """Whether the policy is compared with the one that the run started from."""
        return False

    @property
    def stores_experience(self) -> bool:
        """Whether features of earlier updates are trained on again."""
        return self.stored_decisions > 0

    @property
    def demonstrations(self) -> str | None:
        """Folder of demonstrations that are trained on beside what is collected; by default there are none."""
        return None

    @property
    def stored_decisions(self) -> int:
        """Decisions of earlier updates that are kept at most."""
        return 0

    @property
    def max_stored_bytes(self) -> int | None:
        """Memory that these may take, what is beyond being memory-mapped; None, the default: there is no bound."""
        return None

    @property
    def storage_path(self) -> str | None:
        """Folder of the memory-mapped files; None, the default: the system's for temporary files, or there are none."""
        return None

    def optimizer_steps(self, samples: int, batch_size: int) -> tuple[int, str]:
        """Of an update: their number, and how it comes about, as the end of a sentence on its minibatches.

        Args:
            samples: Decisions collected for it.
            batch_size: Decisions of a minibatch.
        """
        count = -(-samples // batch_size) * self.update_epoch
        return count, f" x {counted(self.update_epoch, 'epoch')} = {counted(count, 'optimizer step')} per update"

    @property
    def shown(self) -> tuple[Column, ...]:
        """The metrics of an update that the terminal shows, each of which updates have; by default none."""
        return ()

    @abstractmethod
    def build(self) -> Algorithm:
        """The algorithm of this configuration."""

    def problems(self, env: TrainEnvConfig) -> Iterator[UserError]:
        """What is wrong with values that are right by themselves, among them those of the training environments."""
        yield from ()

    def idle(self, model: ModelConfig) -> Iterator[tuple[str, str]]:
        """Keys and blocks of this block that others leave without effect, and why; by default none.

        Args:
            model: The policy's block.
        """
        yield from ()

    def unlike_rlinf(self, env: TrainEnvConfig) -> Iterator[str]:
        """What RLinf does otherwise with the same values, and the value that does as RLinf, where there is one."""
        yield from ()

    def no_groups(self, learner: str) -> Iterator[UserError]:
        """That groups of environments are asked for and have no effect with `learner`."""
        if self.group_size != 1:
            yield UserError(
                f"Groups of environments have no effect with {learner}",
                key="algorithm.group_size",
                value=self.group_size,
                expected="1",
                fix="set algorithm.group_size=1, or choose a group-relative algorithm, such as adv_type grpo",
            )

    def group_problems(self, env: TrainEnvConfig) -> Iterator[UserError]:
        """What keeps the environments from forming groups whose episodes can be compared one by one."""
        if self.group_size > 1 and not env.seeds_each:
            yield UserError(
                "The episodes of a group begin alike, and this simulator cannot begin single environments alike",
                key="algorithm.group_size",
                value=self.group_size,
                expected=f"1 with env_type {env.env_type}",
                fix="take an algorithm that compares no groups: adv_type gae, or reinpp without use_reinpp_baseline",
            )
        if env.total_num_envs % self.group_size:
            yield UserError(
                "The training environments do not divide into groups",
                key="algorithm.group_size",
                value=self.group_size,
                expected=f"a divisor of env.train.total_num_envs ({env.total_num_envs})",
                fix="change one of the two",
            )
        if env.auto_reset:
            yield UserError(
                "With groups, an environment rests after its episode",
                key="env.train.auto_reset",
                value=True,
                expected="false: the episodes of a group are compared one by one",
                fix="set env.train.auto_reset=false, and algorithm.rollout_epoch for more episodes",
            )


class Algorithm(ABC):
    """What an update is: which experience, which minibatches, which losses.

    Args:
        config: Its block of the experiment.
    """

    maxima: frozenset[str] = frozenset()
    """Metrics of which a minibatch has the largest of its micro-batches'; of all others it has the sum."""
    compiled: tuple[str, ...] = ()
    """Methods from tensors to tensors that a GPU may compile."""
    passes_over_unexecuted: bool = False
    """Whether a decision of whose chunk nothing was executed counts nowhere in `loss`, in which micro-batches may then
    be filled up with such decisions to the size that is compiled."""

    def __init__(self, config: AlgorithmConfig) -> None:
        self.config = config
        self.start: Policy | None = None
        """The policy that the run started from, where the configuration `keeps_start`; the learner sets it."""

    @property
    def group_size(self) -> int:
        """Environments that share an episode's seed and instruction."""
        return self.config.group_size

    @property
    def bootstrap(self) -> Bootstrap:
        """Which returns go on with the value of the observation reached."""
        return "never"

    def optimizer_settings(self, group: str) -> dict[str, float]:
        """`lr` and `weight_decay` of a group where they are not those of `actor.optim`; by default nowhere."""
        del group
        return {}

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
        for missing in sorted(self.config.needs - policy.offers):
            raise self.lacking(missing)

    def lacking(self, need: str) -> UserError:
        """What to tell of a policy that lacks something of `needs`."""
        texts = {"value": "has no value head", "log_prob": "has no density, so no probability ratio"}
        return UserError(
            f"The policy {texts.get(need, f'does not offer: {need}')}",
            key="algorithm.loss_type",
            value=self.config.loss_type,
            expected="an algorithm that suits the policy",
            fix="choose another algorithm, or another policy; with add_value_head=true a policy gets a value head",
        )

    def wants_more(self, decisions: Decisions, num_epochs: int) -> bool:
        """Whether a rollout goes on for another epoch after those of `rollout_epoch`.

        Args:
            decisions: All so far, not prepared.
            num_epochs: Rollout epochs so far.
        """
        del decisions, num_epochs
        return False

    def demonstrate(self, decisions: Decisions) -> None:
        """Take the decisions of `demonstrations`, before the first update and after a resume."""
        raise NotImplementedError(f"{type(self).__name__} trains on no demonstrations")

    @abstractmethod
    def prepare(self, decisions: Decisions) -> Decisions:
        """All decisions of an update, on the CPU, with what the losses need of them all at once (advantages)."""

    def why_nothing(self, decisions: Decisions) -> str:
        """Why `prepare` kept none of an update's decisions, one sentence."""
        return f"None of the update's {len(decisions)} decisions can be learned from."

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

    def state_dict(self) -> dict[str, Tensor]:
        """What it keeps from one update to the next, for a checkpoint; by default nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        del state

    def summary(self, decisions: Decisions, history: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Further metrics of an update.

        Args:
            decisions: All of the update's.
            history: The metrics of its minibatches, in their order.
        """
        del decisions, history
        return {}
