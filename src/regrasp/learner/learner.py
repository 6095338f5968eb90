"""The actor role: PPO updates of the policy and its value head."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regrasp.algorithms.reduce import Level
from regrasp.errors import RegraspError, TrainingHaltedError, UserError
from regrasp.learner import schedule
from regrasp.learner.bfloat16 import HalvedPolicy, shared_copy
from regrasp.learner.losses import Losses
from regrasp.learner.optimizer import Steps, adamw, reader
from regrasp.models.contract import Evaluation, Policy
from regrasp.rollout.buffers import Rollout
from regrasp.seeding import torch_generator

if TYPE_CHECKING:
    from regrasp.experiment import ActorConfig, AlgorithmConfig


Loss = Callable[[Evaluation, Rollout, Tensor, Tensor | None], tuple[Tensor, dict[str, Tensor]]]
"""See `Losses`."""
Backward = Callable[[Rollout, Tensor], dict[str, Tensor]]
"""From a micro-batch and its shares of the minibatch's means to metrics; gradients are added to the parameters."""


class NonFiniteError(TrainingHaltedError):
    """A loss or gradient is not a number or infinite; carries the batch that caused it."""

    def __init__(self, what: str, batch: Rollout) -> None:
        super().__init__(f"The {what} is not finite. The run stopped before the optimizer's step.")
        self.batch = batch.to(torch.device("cpu"))


class AbandonedError(RegraspError):
    """An update was stopped half-way, on request."""


_POLICY, _VALUE = 0, 1
"""Groups of the optimizer."""


class ActorWorker:
    """Owns the optimizer, and in bf16 the copy of the policy that computes losses, see `HalvedPolicy`.

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
        self._trains_backbone = actor.model.trains_backbone
        self._device = device
        self._policy_parameters, self._value_parameters = _split(policy, actor.model.trainable)
        self.optimizer = adamw(self._policy_parameters, self._value_parameters, actor.optim, device)
        self.halved = HalvedPolicy(policy) if actor.model.precision == "bf16" else None
        self.computing = policy if self.halved is None else self.halved.policy
        """What losses are computed with."""
        self._steps = Steps(self.optimizer, self.halved.halves if self.halved else {}, actor.optim.clip_grad)
        self.num_steps = 0
        losses = Losses(algorithm)
        self.losses: Loss = losses
        """From the policy's evaluation to loss and metrics; an engine may put a compiled one in its place."""
        self._value_loss = losses.value
        self.backward: Backward = self._backward
        """Adds a micro-batch's gradients and returns its metrics; an engine may put a captured one in its place."""
        self._reference = _frozen_copy(self.computing) if algorithm.kl_beta else None

    def update(self, rollout: Rollout, update: int, should_abandon: Callable[[], bool]) -> dict[str, float]:
        """Train on one rollout and return the mean of every metric over its minibatches.

        Raises:
            NonFiniteError: A loss or gradient is not finite; the weights are those of the last good step.
            AbandonedError: `should_abandon` said so between two minibatches; the weights are those of the last step.
        """
        if self._reference is not None:
            self._reference.begin_update(update)
        if self.halved is not None:
            self.halved.refresh()
            self.halved.policy.begin_update(update)
        factor = self._learning_rate_factor(update)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        generator = torch_generator(self._seed, "data", update)
        rollout = rollout.decisions_to(self._device)
        metrics: dict[str, list[float]] = defaultdict(list)
        for _ in range(self._algorithm.value_epochs):
            for batch in self._minibatches(rollout, generator, should_abandon):
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
        """Restore moments and step count; learning rates and the like are those of the present configuration.

        Raises:
            UserError: The state is that of other trainable weights.
        """
        groups = self.optimizer.state_dict()["param_groups"]
        counts = [[len(group["params"]) for group in part] for part in (state["optimizer"]["param_groups"], groups)]
        if counts[0] != counts[1] or not self._fits(state["optimizer"]["state"]):
            raise UserError(
                "The checkpoint's optimizer belongs to other trainable weights",
                key="actor.model.trainable",
                value=f"{counts[1]} tensors of policy and value head",
                expected=f"{counts[0]} tensors, of the shapes that the checkpoint's moments have",
                mend="resume with the settings of actor.model that the run was begun with",
            )
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        self.num_steps = state["num_steps"]

    def _fits(self, moments: Mapping[int, Mapping[str, Tensor]]) -> bool:
        """Whether the stored moments have the shapes of what trains."""
        parameters = [*self._policy_parameters, *self._value_parameters]
        return all(kept["exp_avg"].shape == parameters[index].shape for index, kept in moments.items())

    def _epoch(
        self,
        rollout: Rollout,
        generator: torch.Generator,
        metrics: dict[str, list[float]],
        should_abandon: Callable[[], bool],
    ) -> bool:
        """One pass over the rollout; returns True when the target KL ended it early."""
        return any(self._policy_step(b, metrics) for b in self._minibatches(rollout, generator, should_abandon))

    def _minibatches(
        self, rollout: Rollout, generator: torch.Generator, should_abandon: Callable[[], bool]
    ) -> Iterator[Rollout]:
        for batch in rollout.minibatches(self._batch_size, generator):
            if should_abandon():
                raise AbandonedError(
                    "The update was abandoned. To continue, there is the checkpoint before it; if that was not yet"
                    " written, it has the weights of the steps made since, and its run is not repeated bit for bit."
                )
            yield batch

    def _policy_step(self, batch: Rollout, metrics: dict[str, list[float]]) -> bool:
        """One optimizer step; returns True, without stepping, when the policy has moved past the target KL."""
        self._steps.zero_grad()
        parts: list[dict[str, Tensor]] = []
        for micro in batch.split(self._micro_size):
            parts.append(self.backward(micro.to(self._device), self._shares(micro, batch)))
            self._gather(batch)
        if self._warms_up:
            self._steps.drop(_POLICY)
        norms = torch.stack([self._clip(_POLICY), self._clip(_VALUE)])
        table = torch.stack([torch.stack([*part.values()]) for part in parts], dim=1)  # (metrics, micro-batches)
        totals = dict(zip(parts[0], table.unbind(), strict=True))
        target = self._algorithm.target_kl
        moved_too_far = norms.new_zeros(()) if target is None else (totals["actor/approx_kl"].sum() > target).float()
        is_finite = totals["actor/total_loss"].isfinite().all() & norms.isfinite().all()
        # The host prepares the next minibatch while a GPU makes this step: it waits for the numbers alone.
        read = reader(torch.cat([table.flatten(), norms, moved_too_far[None]]))
        self._steps.step_unless(~is_finite | (moved_too_far > 0))
        *numbers, policy_norm, value_norm, stops = read()
        size = len(parts)
        found = {name: numbers[i * size : (i + 1) * size] for i, name in enumerate(totals)}
        if not all(map(math.isfinite, found["actor/total_loss"])):
            raise NonFiniteError("loss", batch)
        for name, values in found.items():
            metrics[name].append(max(values) if name == "actor/max_ratio_error" else sum(values))
        if stops:
            return True
        if not (math.isfinite(policy_norm) and math.isfinite(value_norm)):
            raise NonFiniteError("gradient", batch)
        metrics["actor/grad_norm"].append(policy_norm)
        metrics["critic/grad_norm"].append(value_norm)
        self.num_steps += 1
        return False

    @property
    def _warms_up(self) -> bool:
        """Whether the coming optimizer step trains the value head only."""
        return self.num_steps < self._optim.critic_warmup_steps

    def _shares(self, micro: Rollout, batch: Rollout) -> Tensor:
        """A micro-batch's parts (3,) in its minibatch's means of policy, value and entropy terms."""
        config = self._algorithm
        chunks = batch.values.new_full((), len(micro) / len(batch))
        policy, entropy = (_share(micro, batch, level, chunks) for level in (config.logprob_type, config.entropy_type))
        return torch.stack([policy, chunks, entropy])

    def _backward(self, micro: Rollout, shares: Tensor) -> dict[str, Tensor]:
        loss, metrics = self._loss(micro, shares)
        loss.backward()
        return metrics

    def _loss(self, micro: Rollout, shares: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Losses`."""
        features = self.computing.encode(micro.table) if self._recompute else micro.table
        evaluation: Evaluation = self.computing.evaluate(features, micro.trace)
        if evaluation.entropy is None and self._algorithm.entropy_bonus:
            raise UserError(
                "This policy has no entropy in closed form",
                key="algorithm.entropy_bonus",
                value=self._algorithm.entropy_bonus,
                expected="0",
                mend="set algorithm.entropy_bonus=0; exploration is set by actor.model.rl_head_config.noise_level",
            )
        return self.losses(evaluation, micro, shares, self._start_log_probs(features, micro))

    @torch.no_grad()
    def _start_log_probs(self, features: Any, micro: Rollout) -> Tensor | None:
        """Log-probabilities of a micro-batch by the policy that the run started from, where they are asked for."""
        if self._reference is None:
            return None
        if self._trains_backbone:
            features = self._reference.encode(micro.table)
        return self._reference.evaluate(features, micro.trace).log_probs

    def _value_step(self, batch: Rollout) -> None:
        self._steps.zero_grad()
        for part in batch.split(self._micro_size):
            micro = part.to(self._device)
            features = self.computing.encode(micro.table) if self._recompute else micro.table
            loss, _ = self._value_loss(self.computing.value(features), micro)
            if not torch.isfinite(loss):
                raise NonFiniteError("value loss", batch)
            (loss * (len(micro) / len(batch))).backward()
            self._gather(batch)
        self._steps.drop(_POLICY)
        is_finite = self._clip(_VALUE).isfinite()
        if not is_finite:
            raise NonFiniteError("gradient", batch)
        self._steps.step_unless(~is_finite)

    def _gather(self, batch: Rollout) -> None:
        """Let gradients of several micro-batches add up in float32; a single one's need no sum."""
        if len(batch) > self._micro_size:
            self._steps.gather()

    def _clip(self, group: int) -> Tensor:
        """Clip the gradients of an optimizer group and return their norm before clipping."""
        return self._steps.clip(group).to(self._device)

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
    policy_parameters = [parameter for _, parameter in policy.prepare_training(trainable)]
    value_parameters = [parameter for _, parameter in policy.trainable("value_head")]
    for parameter in value_parameters:
        parameter.requires_grad_(True)
    values = {id(parameter) for parameter in value_parameters}
    return [p for p in policy_parameters if id(p) not in values], value_parameters


def _frozen_copy(policy: Policy) -> Policy:
    """The policy as it is now; weights that are not trained are shared, not copied."""
    own = {weight: nn.Parameter(weight.detach().clone()) for weight in policy.parameters() if weight.requires_grad}
    return shared_copy(policy, own).requires_grad_(False).eval()


def _share(part: Rollout, whole: Rollout, level: Level, of_chunks: Tensor) -> Tensor:
    """The share of `part` in a mean over `whole` of elements at `level`."""
    return of_chunks if level == "chunk_level" else part.num_executed.sum() / whole.num_executed.sum()


def _explained_variance(rollout: Rollout) -> float:
    """1 - Var(R - V) / Var(R) of the values that acted, over the whole rollout; 0 where the returns do not vary."""
    variance = float(rollout.returns.var(correction=0))
    if variance == 0:
        return 0.0
    return 1 - float((rollout.returns - rollout.values).var(correction=0)) / variance
