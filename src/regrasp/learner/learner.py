"""Gradient steps on an algorithm's minibatches. Knows no loss and no model."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from regrasp.algorithms import schedule
from regrasp.algorithms.base import ACTOR, Algorithm, Minibatch
from regrasp.errors import RegraspError, TrainingHaltedError, UserError
from regrasp.learner.bfloat16 import Bfloat16Policy, shared_copy
from regrasp.learner.log_probs import log_probs_anew
from regrasp.learner.optimizer import MOMENTS, Steps, adamw, reader
from regrasp.learner.recompute import recompute_layers
from regrasp.learner.summing import SumsInPass
from regrasp.models.contract import Policy
from regrasp.ranks import Ranks
from regrasp.rollout.decisions import Decisions
from regrasp.seeding import torch_generator

if TYPE_CHECKING:
    from regrasp.experiment import ActorConfig
    from regrasp.learner.sharding import ShardedPolicy

Backward = Callable[[Decisions, Tensor, tuple[str, ...]], dict[str, Tensor]]
"""From a micro-batch, its shares and its groups to metrics and `LOSS`; gradients are added to the parameters."""
T = TypeVar("T")
LOSS = "loss"
"""The metric that is minimized; it is checked, and not logged."""
UNDER_WAY = {"cuda": 1}
"""Steps that a device may still be making when it is given the next one, so that it need not wait for that."""
_ABANDONS = "abandons"
"""How many ranks want the update to end: told with the metrics of a step, so that no rank waits for the answer."""
_ABANDONED = (
    "The update was abandoned. To continue, there is the checkpoint before it; if that was not yet written, it has the"
    " weights of the steps made since, and its run is not repeated bit for bit."
)


class NonFiniteError(TrainingHaltedError):
    """A loss or gradient is not a number or infinite; carries the batch that caused it."""

    def __init__(self, what: str, batch: Decisions) -> None:
        super().__init__(f"The {what} is not finite. The run stopped before the optimizer's step.")
        self.batch = batch.to(torch.device("cpu"))


class AbandonedError(RegraspError):
    """An update was stopped half-way, on request."""


@dataclass(frozen=True)
class _UnderWay:
    """A step that was begun."""

    minibatch: Minibatch
    names: list[str]
    """Of its metrics."""
    read: Callable[[], list[float]]
    """Waits for their numbers, the norms of the groups' gradients, and whether the step is forbidden."""

    @property
    def counts(self) -> bool:
        """See `_counts`."""
        return _counts(self.names)


class Learner:
    """Owns the optimizer, and in bf16 the copy of the policy that computes losses, see `Bfloat16Policy`.

    With `actor.fsdp_config` the weights are divided over the ranks, and the optimizer has this rank's parts.

    Args:
        policy: The policy to train.
        algorithm: Minibatches and losses.
        actor: Batches and optimizer.
        num_updates: Length of the run, for learning-rate schedules.
        seed: Minibatch order is drawn from (seed, "data", update).
        device: Where the policy lives.
        ranks: Those that train together: gradients and metrics are summed over them.
    """

    def __init__(
        self,
        policy: Policy,
        algorithm: Algorithm,
        actor: ActorConfig,
        *,
        num_updates: int,
        seed: int,
        device: torch.device,
        ranks: Ranks | None = None,
    ) -> None:
        algorithm.check(policy)
        self._ranks = ranks or Ranks()
        self.policy = policy
        self.algorithm = algorithm
        self._batch_size, self._micro_size = actor.global_batch_size, actor.micro_batch_size
        self._optim = actor.optim
        self._num_updates = num_updates
        self.recomputes_log_probs = False
        """Whether ratios are to log-probabilities that are computed here before the first step."""
        self._seed = seed
        self._device = device
        self._reduces_halves = actor.fsdp_config.mixed_precision.reduce_dtype == "bf16"
        self._groups = algorithm.parameters(policy, actor.model.trainable)
        if actor.fsdp_config.gradient_checkpointing:
            recompute_layers(policy)
        self.bfloat16: Bfloat16Policy | None = None
        self.sharded: ShardedPolicy | None = None
        num_shards = actor.fsdp_config.num_shards(self._ranks.count)
        if num_shards > 1:
            self._shard(actor, num_shards)
        elif actor.model.precision == "bf16":
            self.bfloat16 = Bfloat16Policy(policy)
        self.optimizer = adamw(self._groups, actor.optim, device if self.sharded is None else self.sharded.place)
        for name, group in zip(self._groups, self.optimizer.param_groups, strict=True):
            group |= algorithm.optimizer_settings(name)
            group["base_lr"] = group["lr"]
        self.computing = policy if self.bfloat16 is None else self.bfloat16.policy
        """What losses are computed with."""
        self._steps = self._make_steps()
        self._most_under_way = UNDER_WAY.get(device.type, 0)
        self._sums = SumsInPass(self.weights(), self._ranks) if self._sums_in_pass() else None
        self._factor = 1.0
        """Of the learning rates in the present update."""
        self.num_steps = 0
        self.backward: Backward = self._backward
        """An engine may put a captured one in its place."""
        if algorithm.config.keeps_start:
            algorithm.start = _frozen_copy(self.computing if self.sharded is None else self.sharded.policy)

    def _shard(self, actor: ActorConfig, num_shards: int) -> None:
        from regrasp.learner.sharding import ShardedPolicy

        names = {parameter: name for name, parameter in self.policy.named_parameters()}
        groups = {group: [names[weight] for weight in weights] for group, weights in self._groups.items()}
        dtype = torch.bfloat16 if actor.model.precision == "bf16" else None
        self.sharded = ShardedPolicy(self.policy, actor.fsdp_config, num_shards, self._ranks, dtype)
        self._groups = {group: [self.sharded.part(name) for name in own] for group, own in groups.items()}

    def _make_steps(self) -> Steps:
        if self.sharded is None:
            return Steps(self.optimizer, self.bfloat16.rounded if self.bfloat16 else {}, self._optim.clip_grad)
        from regrasp.learner.sharding import ShardedSteps

        return ShardedSteps(self.optimizer, self._optim.clip_grad, self.sharded)

    def update(self, decisions: Decisions, update: int, should_abandon: Callable[[], bool]) -> dict[str, float]:
        """Train on prepared decisions and return the mean of every metric over the minibatches.

        Raises:
            NonFiniteError: A loss or gradient is not finite; the weights are those of the last good step.
            AbandonedError: `should_abandon` said so between two minibatches; the weights are those of the last step.
        """
        if self.algorithm.start is not None:
            self.algorithm.start.begin_update(update)
        if self.bfloat16 is not None:
            self.bfloat16.refresh()
            self.bfloat16.policy.begin_update(update)
        self._factor = schedule.factor(self._optim, update, self._num_updates)
        generator = torch_generator(self._seed, "data", update)
        decisions = decisions.record_to(self._device)
        acted = decisions
        if self.recomputes_log_probs and len(decisions):
            decisions = self._with_own_log_probs(decisions)
        history: dict[str, list[float]] = defaultdict(list)
        loaded = self._loaded(self.algorithm.minibatches(decisions, self._batch_size, generator))
        current = next(loaded, None)
        called_off = torch.zeros((), dtype=torch.bool, device=self._device)
        under_way = deque[_UnderWay]()
        while current is not None:
            abandons = should_abandon()
            if abandons and self._ranks.count == 1:
                self._finish(under_way, 0, history)
                raise AbandonedError(_ABANDONED)
            ahead = sum(step.counts for step in under_way)
            under_way.append(self._step(*current, called_off, ahead, abandons=abandons))
            current = next(loaded, None)  # the host's work, while a GPU makes the step
            if self._finish(under_way, self._most_under_way, history):
                break
        self._finish(under_way, 0, history)
        summary = {name: sum(values) / len(values) for name, values in history.items()}
        summary |= self.algorithm.summary(decisions, history)
        if decisions is not acted:
            difference = (decisions["log_probs"] - acted["log_probs"]).abs()
            summary["actor/acting_log_prob_error"] = float(difference.max())
        summary["actor/minibatches"] = float(len(history.get(f"{ACTOR}/grad_norm", ())))
        for name, group in zip(self._groups, self.optimizer.param_groups, strict=True):
            summary[f"{name}/lr"] = group["base_lr"] * self._factor
        return summary

    def weights(self) -> list[nn.Parameter]:
        """What gradients are computed of, in all groups."""
        return self._steps.computing()

    def state_dict(self) -> dict[str, Any]:
        """Optimizer state and step count, whole; where weights are sharded, all ranks call this."""
        state = self.optimizer.state_dict()
        if self.sharded is not None:
            state["state"] = self.sharded.whole_moments(state["state"], self._order(), keep=self._ranks.index == 0)
        return {"optimizer": state, "num_steps": self.num_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore moments and step count; learning rates and the like are those of the present configuration.

        Raises:
            UserError: The state is that of other trainable weights.
        """
        groups = self.optimizer.state_dict()["param_groups"]
        try:
            counts = [[len(group["params"]) for group in part] for part in (state["optimizer"]["param_groups"], groups)]
            fits = counts[0] == counts[1] and self._fits(state["optimizer"]["state"])
            num_steps = int(state["num_steps"])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                "The checkpoint does not hold the state of an optimizer", fix="take another checkpoint of the run"
            ) from error
        if not fits:
            raise UserError(
                "The checkpoint's optimizer belongs to other trainable weights",
                key="actor.model.trainable",
                value=f"{counts[1]} tensors of {' and '.join(self._groups)}",
                expected=f"{counts[0]} tensors, of the shapes that the checkpoint's moments have",
                fix="resume with the settings of actor.model that the run was begun with",
            )
        moments = state["optimizer"]["state"]
        if self.sharded is not None:
            moments = self.sharded.cut_moments(moments, self._order())
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.num_steps = num_steps

    def _fits(self, moments: Mapping[int, Mapping[str, Tensor]]) -> bool:
        """Whether the stored moments have the shapes of what trains."""
        shapes = [parameter.shape for group in self._groups.values() for parameter in group]
        if self.sharded is not None:
            shapes = [self.sharded.shapes[number] for number in self._order()]
        return all(kept[name].shape == shapes[index] for index, kept in moments.items() for name in MOMENTS)

    def _order(self) -> list[int]:
        """The numbers that the weights of a sharded policy have, in the optimizer's order."""
        assert self.sharded is not None
        return [self.sharded.number(part) for group in self._groups.values() for part in group]

    def _with_own_log_probs(self, decisions: Decisions) -> Decisions:
        found = log_probs_anew(
            self.computing,
            decisions,
            self._micro_size,
            self._device,
            self._ranks,
            as_it_learns=self.sharded is None,
        )
        return decisions.with_columns(log_probs=found)

    def _loaded(self, minibatches: Iterable[Minibatch]) -> Iterator[tuple[Minibatch, Iterator[Decisions]]]:
        """Each minibatch with its micro-batches on the device, the first of which is on its way there."""
        for minibatch in minibatches:
            micros = (micro.to(self._device) for micro in minibatch.decisions.micro_batches(self._micro_size))
            yield minibatch, chain([next(micros)], micros)

    def _step(
        self, minibatch: Minibatch, micros: Iterable[Decisions], called_off: Tensor, ahead: int, *, abandons: bool
    ) -> _UnderWay:
        """One optimizer step, unless the algorithm forbids it; on a GPU it is under way then.

        Args:
            minibatch: What it is made of.
            micros: Its parts, on the device.
            called_off: () bool, whether a step before it was forbidden; then this one is not made either. Set where
                this one is forbidden.
            ahead: Steps of the policy that are under way.
            abandons: Told to all ranks.
        """
        batch = minibatch.decisions
        self._steps.zero_grad()
        parts: list[dict[str, Tensor]] = []
        for micro, is_last in _with_last(micros):
            # On GPUs, torch 2.11 lost gradients that waited for a later pass where passes left layers out.
            self._steps.begin_pass(is_last=is_last or len(minibatch.groups) < len(self._groups))
            shares = self.algorithm.shares(micro, batch)
            if micro.is_idle:
                shares = torch.zeros_like(shares)
            parts.append(self.backward(micro, shares, minibatch.groups))
            if self._adds_up(len(batch)):
                self._steps.gather()
        if self._sums is None:
            self._steps.add_up(self._ranks)
        totals = self._totals(parts, abandons)
        norms = torch.stack(
            [self._clip(group, name in self._moved(minibatch, ahead)) for group, name in enumerate(self._groups)]
        )
        forbids = self.algorithm.forbids(totals) if _counts(totals) else None
        stops = norms.new_zeros(()) if forbids is None else forbids.float()
        is_finite = totals[LOSS].isfinite() & norms.isfinite().all()
        read = reader(torch.cat([torch.stack([*totals.values()]), norms, stops[None]]))
        called_off |= ~is_finite | (stops > 0)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * self._factor * minibatch.rate
        self._steps.step_unless(called_off)
        return _UnderWay(minibatch, [*totals], read)

    def _sums_in_pass(self) -> bool:
        """Whether gradients are summed over the ranks during the backward pass.

        Every minibatch is then one pass, which all ranks make alike, and gradients stay in the format they are in.
        """
        if self._ranks.count == 1 or self.sharded is not None or not self.algorithm.passes_over_unexecuted:
            return False
        is_one_pass = -(-self._batch_size // self._ranks.count) <= self._micro_size
        return is_one_pass and (self.bfloat16 is None or self._reduces_halves)

    def _adds_up(self, size: int) -> bool:
        """Whether gradients of several micro-batches or ranks are summed in float32 for a minibatch of this size."""
        share = -(-size // self._ranks.count)
        return share > self._micro_size or (self._ranks.count > 1 and not self._reduces_halves)

    def _totals(self, parts: Sequence[Mapping[str, Tensor]], abandons: bool) -> dict[str, Tensor]:
        """The metrics of a minibatch from those of its micro-batches, on all ranks; and whether one abandons."""
        table = torch.stack([torch.stack([*part.values()]) for part in parts])  # (micro-batches, metrics)
        sums, largest = torch.cat([table.sum(0), table.new_full((1,), float(abandons))]), table.amax(0)
        self._ranks.add([sums])
        self._ranks.largest(largest)
        *sums, num_abandoning = sums.unbind()
        pairs = zip(parts[0], sums, largest.unbind(), strict=True)
        totals = {name: most if name in self.algorithm.maxima else total for name, total, most in pairs}
        return {**totals, _ABANDONS: num_abandoning}

    def _finish(self, under_way: deque[_UnderWay], most: int, history: dict[str, list[float]]) -> bool:
        """Wait until at most `most` steps are under way, and keep the numbers of the others.

        Returns:
            Whether one was forbidden: those after it were called off, and are forgotten.

        Raises:
            AbandonedError: A rank wants that; no step is under way any more.
            NonFiniteError: See `update`.
        """
        abandons = False
        while len(under_way) > (0 if abandons else most):
            step = under_way.popleft()
            *values, stops = step.read()
            wants_end = self._record(step, values, history, is_made=not stops)
            if stops:
                under_way.clear()
                return True
            abandons |= wants_end
        if abandons:
            raise AbandonedError(_ABANDONED)
        return False

    def _record(self, step: _UnderWay, values: list[float], history: dict[str, list[float]], *, is_made: bool) -> bool:
        """Check and keep the numbers of a step; returns whether a rank abandons."""
        found = dict(zip(step.names, values, strict=False))
        norms = values[len(step.names) :]
        abandons = found.pop(_ABANDONS) > 0
        if not math.isfinite(found.pop(LOSS)):
            what = "loss" if found else f"{step.minibatch.groups[0]} loss"
            raise NonFiniteError(what, step.minibatch.decisions)
        for name, value in found.items():
            history[name].append(value)
        if is_made and not all(map(math.isfinite, norms)):
            raise NonFiniteError("gradient", step.minibatch.decisions)
        if is_made and found:
            for name, norm in zip(self._groups, norms, strict=True):
                if name in step.minibatch.groups:
                    history[f"{name}/grad_norm"].append(norm)
            self.num_steps += 1
        return abandons

    def _moved(self, minibatch: Minibatch, ahead: int) -> set[str]:
        """Groups that a minibatch's step moves; the first steps of a run may leave the policy alone."""
        warms_up = self.num_steps + ahead < self._optim.critic_warmup_steps
        return {name for name in minibatch.groups if not (warms_up and name == ACTOR)}

    def _clip(self, group: int, is_moved: bool) -> Tensor:
        """Clip the gradients of an optimizer group, or drop them, and return their norm before clipping."""
        if not is_moved:
            self._steps.drop(group)
        return self._steps.clip(group).to(self._device)

    def _backward(self, micro: Decisions, shares: Tensor, groups: tuple[str, ...]) -> dict[str, Tensor]:
        loss, metrics = self.algorithm.loss(self.computing, micro, shares, groups)
        with contextlib.nullcontext() if self._sums is None else self._sums.of_pass():
            loss.backward()
        return {**metrics, LOSS: loss.detach()}


def _counts(names: Iterable[str]) -> bool:
    """Whether a step with such metrics is one of the run's; passes that train the value head alone are not."""
    return {*names} > {LOSS, _ABANDONS}


def _with_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Each item, and whether it is the last one."""
    for item, following in pairwise(chain(items, [None])):
        assert item is not None
        yield item, following is None


def _frozen_copy(policy: Policy) -> Policy:
    """The policy as it is now; weights that are not trained are shared, not copied."""
    own = {weight: nn.Parameter(weight.detach().clone()) for weight in policy.parameters() if weight.requires_grad}
    return shared_copy(policy, own).requires_grad_(False).eval()
