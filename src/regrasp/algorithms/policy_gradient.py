"""What PPO and its critic-free relatives share: epochs over a rollout, the clipped surrogate, penalties."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from regrasp.algorithms.base import ACTOR, Algorithm, AlgorithmConfig, Minibatch
from regrasp.config.types import BLOCK, Fraction, Level, NonNegativeFloat, PositiveFloat
from regrasp.errors import UserError
from regrasp.logging.columns import Column, percent

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from regrasp.envs.config import TrainEnvConfig
    from regrasp.models.config import ModelConfig
    from regrasp.models.contract import Evaluation, Policy
    from regrasp.rollout.decisions import Decisions


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class PolicyGradientConfig(AlgorithmConfig):
    """The clipped surrogate, entropy and penalty."""

    logprob_type: Level = "chunk_level"
    """Over what the probability ratio is taken: a whole chunk, each action, or each action dimension."""
    entropy_type: Level = "chunk_level"
    """Over what the entropy is summed: a whole chunk, each action, or each action dimension."""
    entropy_bonus: NonNegativeFloat = 0.0
    """Weight of the entropy in the loss."""
    kl_beta: NonNegativeFloat = 0.0
    """Weight of the penalty on the divergence from the policy that the run started from."""
    kl_penalty: Literal["kl", "abs", "mse", "low_var_kl"] = "kl"
    """Estimator of that divergence."""
    target_kl: PositiveFloat | None = None
    """An update stops its epochs when a minibatch's divergence from the rollout policy passes this; null: never."""
    clip_ratio_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The probability ratio is clipped below 1 minus this."""
    clip_ratio_high: PositiveFloat = 0.2
    """The probability ratio is clipped above 1 plus this."""
    clip_ratio_c: Annotated[float, Field(gt=1)] | None = None
    """Dual clip: bound on the ratio where the advantage is negative; null: none."""
    loss_weighting: Literal["decision", "trajectory"] = "decision"
    """What weighs the same in the losses of policy and value: every decision, so that long episodes count more; or, as
    in RLinf without `auto_reset`, every trajectory of an environment, so that its decisions weigh the less the more it
    has."""

    def idle(self, model: ModelConfig) -> Iterator[tuple[str, str]]:
        """The estimator of a divergence without weight."""
        yield from super().idle(model)
        if not self.kl_beta:
            yield "kl_penalty", "algorithm.kl_beta is 0"

    @property
    def needs(self) -> frozenset[str]:
        """Log-probabilities, and an entropy where it is rewarded."""
        return super().needs | ({"entropy"} if self.entropy_bonus else set())

    @property
    def shown(self) -> tuple[Column, ...]:
        """The losses, and how far the update moved the policy."""
        return (
            Column("policy", "actor/policy_loss", "clipped surrogate, a loss"),
            Column("loss", "actor/total_loss", "total loss"),
            Column("KL", "actor/approx_kl", "divergence from the policy that acted", 5),
            Column("clip", "actor/clip_fraction", "share of losses that the clip changed", 5, percent),
            Column("ratio", "actor/ratio", "mean probability ratio", 5),
            Column("grad", "actor/grad_norm", "norm of the policy's gradient", 5),
        )

    @property
    def keeps_start(self) -> bool:
        """Whether the divergence from the start is penalized."""
        return bool(self.kl_beta)

    def unlike_rlinf(self, env: TrainEnvConfig) -> Iterator[str]:
        """Weights of trajectories, and keys that RLinf's training of robots leaves without effect."""
        if self.loss_weighting == "decision" and not (env.auto_reset or env.ignore_terminations):
            yield "algorithm.loss_weighting: every decision weighs the same; in RLinf every trajectory (trajectory)"
        if self.clip_ratio_c is not None:
            yield "algorithm.clip_ratio_c: it bounds the ratio; RLinf heeds it for GR00T N1.6 and N1.7 only (null)"
        if self.kl_beta:
            yield "algorithm.kl_beta: the divergence is penalized; RLinf's training of robots ignores it (0)"


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class DiscountedConfig(PolicyGradientConfig):
    """Returns are discounted, and their advantages normalized over an update."""

    normalize_advantages: bool = True
    """Give the advantages of an update mean 0 and standard deviation 1, over all its samples."""
    reward_type: Literal["chunk_level", "action_level"] = "chunk_level"
    """`chunk_level`: gamma counts decisions; `action_level`: gamma counts environment steps."""
    gamma: Fraction = 0.99
    """Discount, per decision or per environment step (see `reward_type`)."""

    def unlike_rlinf(self, env: TrainEnvConfig) -> Iterator[str]:
        """Also: RLinf normalizes whatever the key says."""
        yield from super().unlike_rlinf(env)
        if not self.normalize_advantages:
            yield "algorithm.normalize_advantages: they are not; RLinf always normalizes them (true)"


class PolicyGradient(Algorithm):
    """Epochs of minibatches over one rollout, on the clipped surrogate of advantages that `prepare` gives."""

    config: PolicyGradientConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    maxima = frozenset({"actor/max_ratio_error"})
    compiled = ("objective",)
    passes_over_unexecuted = True

    def lacking(self, need: str) -> UserError:
        """Also: the entropy."""
        if need != "entropy":
            return super().lacking(need)
        return UserError(
            "This policy has no entropy in closed form",
            key="algorithm.entropy_bonus",
            value=self.config.entropy_bonus,
            expected="0",
            fix="set algorithm.entropy_bonus=0; how much the policy explores is a matter of its noise",
        )

    def parameters(self, policy: Policy, trainable: str) -> dict[str, list[nn.Parameter]]:
        """The policy alone; a value head that it may have stays as it is."""
        trained = policy.prepare_training(trainable)
        values = {id(parameter) for _, parameter in policy.trainable("value_head")}
        for _, parameter in policy.trainable("value_head"):
            parameter.requires_grad_(False)
        return {ACTOR: [parameter for _, parameter in trained if id(parameter) not in values]}

    def minibatches(self, decisions: Decisions, size: int, generator: torch.Generator) -> Iterator[Minibatch]:
        """`update_epoch` passes in random orders."""
        for _ in range(self.config.update_epoch):
            for batch in decisions.minibatches(size, generator):
                yield Minibatch(batch, (ACTOR,))

    def weighed(self, decisions: Decisions) -> Decisions:
        """Prepared decisions, with `weights` (B,), over the executed steps of mean 1, where not all weigh the same."""
        import torch

        if self.config.loss_weighting == "decision" or not len(decisions):
            return decisions
        steps, column = decisions["num_executed"], decisions["column"]
        lengths = torch.zeros(int(column.max()) + 1, dtype=torch.float64).index_add(0, column, steps.double())
        trajectories = (lengths > 0).sum()
        weights = lengths.sum() / (trajectories * lengths[column])
        return decisions.with_columns(weights=weights.to(decisions["advantages"].dtype))

    def shares(self, micro: Decisions, batch: Decisions) -> Tensor:
        """(3,): of the policy's terms, of terms with one value per decision, of the entropy."""
        from regrasp.algorithms.reduce import share

        levels: tuple[Level, ...] = (self.config.logprob_type, "chunk_level", self.config.entropy_type)
        return share(micro["num_executed"], batch["num_executed"], levels)

    def loss(
        self, policy: Policy, micro: Decisions, shares: Tensor, groups: tuple[str, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The surrogate, and what else the configuration weighs; see `Algorithm.loss`."""
        del groups
        evaluation = policy.evaluate(micro.features(policy), micro.trace)
        return self.objective(evaluation, micro.columns, shares, self._start_log_probs(micro))

    def objective(
        self, evaluation: Evaluation, columns: Mapping[str, Tensor], shares: Tensor, start_log_probs: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of B decisions, from tensors alone.

        Args:
            evaluation: Of the decisions, by the present policy.
            columns: Their record, with `advantages` (B,).
            shares: (3,), see `shares`.
            start_log_probs: (B, T, A), by the policy that the run started from, for `kl_beta`.
        """
        from regrasp.algorithms import losses
        from regrasp.algorithms.reduce import broadcast_like, reduce_log_probs

        config = self.config
        policy_share, value_share, entropy_share = shares.unbind()
        new, mask = reduce_log_probs(evaluation.log_probs, columns["num_executed"], config.logprob_type)
        old, _ = reduce_log_probs(columns["log_probs"], columns["num_executed"], config.logprob_type)
        advantages = columns["advantages"]
        if "weights" in columns:  # of the advantages, because the surrogate is linear in them
            advantages = advantages * columns["weights"]
        surrogate, found = losses.policy_loss(
            new,
            old,
            broadcast_like(advantages, new),
            mask,
            clip_low=config.clip_ratio_low,
            clip_high=config.clip_ratio_high,
            clip_c=config.clip_ratio_c,
        )
        metrics = {f"actor/{name}": policy_share * value for name, value in found.items()}
        loss = policy_share * surrogate
        if critic := self.critic_loss(evaluation.values, columns):
            loss = loss + value_share * critic[0]
            metrics |= {f"critic/{name}": value_share * value for name, value in critic[1].items()}
        if evaluation.entropy is not None:
            term = losses.entropy_term(evaluation.entropy, columns["num_executed"], config.entropy_type)
            entropy = entropy_share * term
            loss = loss - config.entropy_bonus * entropy
            metrics["actor/entropy_loss"] = entropy.detach()
        if start_log_probs is not None:
            start, _ = reduce_log_probs(start_log_probs, columns["num_executed"], config.logprob_type)
            divergence = policy_share * losses.kl_penalty(new, start, mask, config.kl_penalty)
            loss = loss + config.kl_beta * divergence
            metrics["actor/kl_to_start"] = divergence.detach()
        metrics["actor/total_loss"] = loss.detach()
        metrics["actor/max_ratio_error"] = losses.largest_ratio_error(new, old, mask)
        return loss, metrics

    def critic_loss(
        self, values: Tensor | None, columns: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """The term of values (B,) and its metrics; None, the default, without a critic."""
        return None

    def forbids(self, metrics: Mapping[str, Tensor]) -> Tensor | None:
        """A step is not made once the policy has moved past the target KL."""
        target = self.config.target_kl
        return None if target is None else metrics["actor/approx_kl"] > target

    def summary(self, decisions: Decisions, history: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """How far the ratio of the first minibatch is from 1, where it has to be."""
        del decisions
        if not history:
            return {}
        return {"actor/first_ratio_error": history["actor/max_ratio_error"][0]}

    def _start_log_probs(self, micro: Decisions) -> Tensor | None:
        """Log-probabilities of a micro-batch by the policy that the run started from, where they are asked for."""
        import torch

        if self.start is None:
            return None
        with torch.no_grad():
            return self.start.evaluate(micro.features(self.start), micro.trace).log_probs
