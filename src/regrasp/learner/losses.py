"""The PPO loss of a micro-batch and its metrics, from what the policy says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from regrasp.algorithms import ppo
from regrasp.algorithms.reduce import broadcast_like, reduce_log_probs
from regrasp.models.contract import Evaluation
from regrasp.rollout.buffers import Rollout

if TYPE_CHECKING:
    from regrasp.experiment import AlgorithmConfig


@dataclass(frozen=True)
class Losses:
    """Policy, value, entropy and KL terms as an experiment weights them.

    On a GPU nothing here waits for it, and the minibatch comes in tensors alone, so that it can be captured.
    """

    algorithm: AlgorithmConfig

    def __call__(
        self, evaluation: Evaluation, micro: Rollout, shares: Tensor, start_log_probs: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What a micro-batch contributes to loss and metrics of its minibatch: the parts add up to the whole.

        Args:
            evaluation: Of the micro-batch, by the present policy.
            micro: B decisions.
            shares: (3,), its parts in the minibatch's means of policy, value and entropy terms.
            start_log_probs: (B, T, A), by the policy that the run started from, for `kl_beta`.
        """
        config = self.algorithm
        policy_share, critic_share, entropy_share = shares.unbind()
        new, mask = reduce_log_probs(evaluation.log_probs, micro.num_executed, config.logprob_type)
        old, _ = reduce_log_probs(micro.log_probs, micro.num_executed, config.logprob_type)
        actor_loss, actor_metrics = ppo.policy_loss(
            new,
            old,
            broadcast_like(micro.advantages, new),
            mask,
            clip_low=config.clip_ratio_low,
            clip_high=config.clip_ratio_high,
            clip_c=config.clip_ratio_c,
        )
        critic_loss, critic_metrics = self.value(evaluation.values, micro)
        metrics = {f"actor/{name}": policy_share * value for name, value in actor_metrics.items()}
        metrics |= {f"critic/{name}": critic_share * value for name, value in critic_metrics.items()}
        loss = policy_share * actor_loss + critic_share * critic_loss
        if evaluation.entropy is not None:
            term = ppo.entropy_term(evaluation.entropy, micro.num_executed, config.entropy_type)
            entropy = entropy_share * term
            loss = loss - config.entropy_bonus * entropy
            metrics["actor/entropy_loss"] = entropy.detach()
        if start_log_probs is not None:
            start, _ = reduce_log_probs(start_log_probs, micro.num_executed, config.logprob_type)
            divergence = policy_share * ppo.kl_penalty(new, start, mask, config.kl_penalty)
            loss = loss + config.kl_beta * divergence
            metrics["actor/kl_to_start"] = divergence.detach()
        metrics["actor/total_loss"] = loss.detach()
        metrics["actor/max_ratio_error"] = _largest_ratio_error(new, old, mask)
        return loss, metrics

    def value(self, values: Tensor, batch: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """The value term alone, of values (B,)."""
        return ppo.value_loss(
            values,
            batch.values,
            batch.returns,
            value_clip=self.algorithm.value_clip,
            huber_delta=self.algorithm.huber_delta,
        )


def _largest_ratio_error(new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    """Largest |ratio - 1| over `mask`, without selecting by it: the number selected would have to be waited for."""
    return ((new - old).detach().exp() - 1).abs().where(mask, 0.0).max()
