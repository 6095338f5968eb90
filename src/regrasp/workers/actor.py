"""The actor role: PPO updates of the policy and its value head."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regrasp.algorithms import ppo, schedule
from regrasp.algorithms.reduce import broadcast_like, reduce_log_probs
from regrasp.config.schema import ActorConfig, AlgorithmConfig, OptimConfig
from regrasp.data.rollout import Rollout
from regrasp.errors import RegraspError, TrainingHaltedError, UserError
from regrasp.models.contract import Evaluation, Policy
from regrasp.streams import torch_generator


class NonFiniteError(TrainingHaltedError):
    """A loss or gradient is not a number or infinite; carries the batch that caused it."""

    def __init__(self, what: str, batch: Rollout) -> None:
        super().__init__(f"The {what} is not finite. The run stopped before the optimizer's step.")
        self.batch = batch


class AbandonedError(RegraspError):
    """An update was stopped half-way, on request."""


class ActorWorker:
    """Owns the optimizer.

    Args:
        policy: The policy to train.
        actor: Batches and optimizer.
        algorithm: Losses.
        num_updates: Length of the run, for learning-rate schedules.
        seed: Minibatch order is drawn from (seed, "data", update).
        recompute_features: Rollouts hold prepared observations, and features are computed in every epoch.
        device: Where the policy lives.
    """

    def __init__(
        self,
        policy: Policy,
        actor: ActorConfig,
        algorithm: AlgorithmConfig,
        *,
        num_updates: int,
        seed: int,
        recompute_features: bool,
        device: torch.device,
    ) -> None:
        self.policy = policy
        self._batch_size, self._micro_size = actor.global_batch_size, actor.micro_batch_size
        self._optim = actor.optim
        self._algorithm = algorithm
        self._num_updates = num_updates
        self._seed = seed
        self._recompute = recompute_features
        self._device = device
        self._policy_parameters, self._value_parameters = _split(policy, actor.model.trainable)
        self.optimizer = _adamw(self._policy_parameters, self._value_parameters, actor.optim)
        self.num_steps = 0
        self._reference = copy.deepcopy(policy).requires_grad_(False) if algorithm.kl_beta else None

    def update(self, rollout: Rollout, update: int, should_abandon: Callable[[], bool]) -> dict[str, float]:
        """Train on one rollout and return the mean of every metric over its minibatches.

        Raises:
            NonFiniteError: A loss or gradient is not finite; the weights are those of the last good step.
            AbandonedError: `should_abandon` said so between two minibatches; the weights are of no use.
        """
        factor = self._learning_rate_factor(update)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        generator = torch_generator(self._seed, "data", update)
        metrics: dict[str, list[float]] = defaultdict(list)
        for _ in range(self._algorithm.value_epochs):
            for batch in rollout.minibatches(self._batch_size, generator):
                self._value_step(batch)
        for _ in range(self._algorithm.update_epoch):
            if self._epoch(rollout, generator, metrics, should_abandon):
                break
        summary = {name: sum(values) / len(values) for name, values in metrics.items()}
        summary["actor/first_ratio_error"] = metrics["actor/max_ratio_error"][0]
        summary["actor/minibatches"] = float(len(metrics.get("actor/grad_norm", ())))
        summary["actor/lr"] = self.optimizer.param_groups[0]["lr"]
        summary["critic/lr"] = self.optimizer.param_groups[1]["lr"]
        summary["critic/explained_variance"] = _explained_variance(rollout)
        return summary

    def state_dict(self) -> dict[str, Any]:
        """Optimizer state and step count."""
        return {"optimizer": self.optimizer.state_dict(), "num_steps": self.num_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_steps = state["num_steps"]

    def _epoch(
        self,
        rollout: Rollout,
        generator: torch.Generator,
        metrics: dict[str, list[float]],
        should_abandon: Callable[[], bool],
    ) -> bool:
        """One pass over the rollout; returns True when the target KL ended it early."""
        for batch in rollout.minibatches(self._batch_size, generator):
            if should_abandon():
                raise AbandonedError("The update was abandoned; the last checkpoint is the state to continue from.")
            if self._policy_step(batch, metrics):
                return True
        return False

    def _policy_step(self, batch: Rollout, metrics: dict[str, list[float]]) -> bool:
        """One optimizer step; returns True, without stepping, when the policy has moved past the target KL."""
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = defaultdict(float)
        worst_ratio_error = 0.0
        for micro in batch.split(self._micro_size):
            weight = len(micro) / len(batch)
            loss, values = self._loss(micro, self._terms(micro) / self._terms(batch) / weight)
            if not torch.isfinite(loss):
                raise NonFiniteError("loss", batch)
            (loss * weight).backward()
            worst_ratio_error = max(worst_ratio_error, float(values.pop("actor/max_ratio_error")))
            for name, value in values.items():
                totals[name] += float(value) * weight
        metrics["actor/max_ratio_error"].append(worst_ratio_error)
        for name, value in totals.items():
            metrics[name].append(value)
        target = self._algorithm.target_kl
        if target is not None and totals["actor/approx_kl"] > target:
            return True
        metrics["actor/grad_norm"].append(self._apply(self._policy_parameters, batch))
        metrics["critic/grad_norm"].append(self._apply(self._value_parameters, batch))
        self.optimizer.step()
        self.num_steps += 1
        return False

    def _terms(self, batch: Rollout) -> int:
        """How many elements the mean of the policy loss is over, up to a constant factor."""
        return len(batch) if self._algorithm.logprob_type == "chunk_level" else int(batch.num_executed.sum())

    def _loss(self, batch: Rollout, policy_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one micro-batch; `policy_weight` corrects for its share of executed actions."""
        config = self._algorithm
        inputs = batch.inputs.to(self._device)
        features = self.policy("encode", inputs=inputs) if self._recompute else inputs
        evaluation: Evaluation = self.policy("evaluate", features=features, trace=batch.trace.to(self._device))
        new, mask = reduce_log_probs(evaluation.log_probs, batch.num_executed, config.logprob_type)
        old, _ = reduce_log_probs(batch.log_probs, batch.num_executed, config.logprob_type)
        actor_loss, actor_metrics = ppo.policy_loss(
            new,
            old,
            broadcast_like(batch.advantages, new),
            mask,
            clip_low=config.clip_ratio_low,
            clip_high=config.clip_ratio_high,
            clip_c=config.clip_ratio_c,
        )
        critic_loss, critic_metrics = self._value_loss(evaluation.values, batch)
        loss = critic_loss
        metrics = {f"actor/{name}": value for name, value in actor_metrics.items()}
        if self.num_steps >= self._optim.critic_warmup_steps:
            loss = loss + policy_weight * actor_loss
        if config.entropy_bonus or evaluation.entropy is not None:
            entropy = self._entropy(evaluation, batch)
            loss = loss - config.entropy_bonus * entropy
            metrics["actor/entropy_loss"] = entropy.detach()
        if self._reference is not None:
            divergence = self._divergence(features, batch, new, mask)
            loss = loss + config.kl_beta * divergence
            metrics["actor/kl_to_start"] = divergence.detach()
        metrics["actor/total_loss"] = loss.detach()
        metrics["actor/max_ratio_error"] = ((new - old).detach()[mask].exp() - 1).abs().max()
        metrics |= {f"critic/{n}": v for n, v in critic_metrics.items() if n != "explained_variance"}
        return loss, metrics

    def _value_loss(self, values: Tensor, batch: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        return ppo.value_loss(
            values,
            batch.values,
            batch.returns,
            value_clip=self._algorithm.value_clip,
            huber_delta=self._algorithm.huber_delta,
        )

    def _entropy(self, evaluation: Evaluation, batch: Rollout) -> Tensor:
        if evaluation.entropy is None:
            raise UserError(
                "This policy has no entropy in closed form",
                key="algorithm.entropy_bonus",
                value=self._algorithm.entropy_bonus,
                expected="0",
                mend="set algorithm.entropy_bonus=0; exploration is set by actor.model.rl_head_config.noise_level",
            )
        return ppo.entropy_term(evaluation.entropy, batch.num_executed, self._algorithm.entropy_type)

    def _divergence(self, features: Any, batch: Rollout, new: Tensor, mask: Tensor) -> Tensor:
        assert self._reference is not None
        with torch.no_grad():
            start: Evaluation = self._reference("evaluate", features=features, trace=batch.trace.to(self._device))
        reference, _ = reduce_log_probs(start.log_probs, batch.num_executed, self._algorithm.logprob_type)
        return ppo.kl_penalty(new, reference, mask, self._algorithm.kl_penalty)

    def _value_step(self, batch: Rollout) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        for micro in batch.split(self._micro_size):
            inputs = micro.inputs.to(self._device)
            features = self.policy("encode", inputs=inputs) if self._recompute else inputs
            loss, _ = self._value_loss(self.policy("value", features=features), micro)
            if not torch.isfinite(loss):
                raise NonFiniteError("value loss", batch)
            (loss * (len(micro) / len(batch))).backward()
        for parameter in self._policy_parameters:
            parameter.grad = None
        self._apply(self._value_parameters, batch)
        self.optimizer.step()

    def _apply(self, parameters: list[nn.Parameter], batch: Rollout) -> float:
        """Clip the gradients of one parameter group and return their norm before clipping."""
        norm = nn.utils.clip_grad_norm_(parameters, self._optim.clip_grad)
        if not torch.isfinite(norm):
            raise NonFiniteError("gradient", batch)
        return float(norm)

    def _learning_rate_factor(self, update: int) -> float:
        optim = self._optim
        if optim.lr_scheduler == "constant":
            return schedule.constant(update, num_warmup_steps=optim.lr_warmup_steps)
        decay = schedule.linear if optim.lr_scheduler == "linear" else schedule.cosine
        return decay(
            update,
            num_steps=self._num_updates,
            num_warmup_steps=optim.lr_warmup_steps,
            min_ratio=optim.min_lr_ratio,
        )


def _split(policy: Policy, trainable: str) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Mark what trains, and return the policy's and the value head's parameters."""
    policy.requires_grad_(False)
    policy_parameters = [parameter for _, parameter in policy.trainable(trainable)]
    value_parameters = [parameter for _, parameter in policy.trainable("value_head")]
    for parameter in (*policy_parameters, *value_parameters):
        parameter.requires_grad_(True)
    values = {id(parameter) for parameter in value_parameters}
    return [p for p in policy_parameters if id(p) not in values], value_parameters


def _adamw(policy: Iterable[nn.Parameter], value: Iterable[nn.Parameter], optim: OptimConfig) -> torch.optim.AdamW:
    groups = [
        {"params": list(policy), "lr": optim.lr, "base_lr": optim.lr},
        {"params": list(value), "lr": optim.value_lr, "base_lr": optim.value_lr},
    ]
    return torch.optim.AdamW(
        groups,
        betas=(optim.adam_beta1, optim.adam_beta2),
        eps=optim.adam_eps,
        weight_decay=optim.weight_decay,
    )


def _explained_variance(rollout: Rollout) -> float:
    """1 - Var(R - V) / Var(R) of the values that acted, over the whole rollout; 0 where the returns do not vary."""
    variance = float(rollout.returns.var(correction=0))
    if variance == 0:
        return 0.0
    return 1 - float((rollout.returns - rollout.values).var(correction=0)) / variance
