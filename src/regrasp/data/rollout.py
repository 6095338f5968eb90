"""The decisions of one update: gathered step by step, then turned into advantages and one flat batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.algorithms.advantages import RewardType, chunk_rewards, gae, normalize
from regrasp.models.contract import Action


@dataclass
class Rollout:
    """B decisions, each with everything its update needs; kept on the CPU until they are trained on."""

    inputs: TensorDict
    """Backbone features, or prepared observations where features are recomputed."""
    trace: TensorDict
    log_probs: Tensor
    """(B, T, A) of the policy that acted."""
    values: Tensor
    """(B,)."""
    advantages: Tensor
    """(B,), normalised over the whole update if so configured."""
    returns: Tensor
    """(B,)."""
    num_executed: Tensor
    """(B,) int64."""
    versions: Tensor
    """(B,) int64, number of updates that the acting policy had seen."""

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Tensor) -> Rollout:
        """The decisions in `index`."""
        return Rollout(**{name: value[index] for name, value in vars(self).items()})

    def to(self, device: torch.device) -> Rollout:
        """The decisions on `device`."""
        return Rollout(**{name: value.to(device) for name, value in vars(self).items()})

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[Rollout]:
        """One pass over all decisions in a random order, in nearly equal parts of at most `size`."""
        order = torch.randperm(len(self), generator=generator)
        for index in torch.tensor_split(order, -(-len(self) // size)):
            yield self.rows(index)

    def split(self, size: int) -> Iterator[Rollout]:
        """The decisions in their order, in parts of at most `size`."""
        for index in torch.arange(len(self)).split(size):
            yield self.rows(index)


class RolloutBuilder:
    """Gathers decisions on a grid of time (decision within the rollout) by column (environment and rollout epoch)."""

    def __init__(self) -> None:
        self._parts: list[dict[str, Tensor]] = []
        self._inputs: list[TensorDict] = []
        self._traces: list[TensorDict] = []
        self._bootstraps: list[tuple[int, Tensor, Tensor]] = []

    def add(
        self,
        time: int,
        columns: Tensor,
        inputs: TensorDict,
        action: Action,
        rewards: Tensor,
        num_executed: Tensor,
        ends: Tensor,
        version: int,
    ) -> None:
        """Add the decisions that B environments took at one time.

        Args:
            time: Decision index within the rollout.
            columns: (B,) int64.
            inputs: What the update evaluates the policy on.
            action: What the policy decided.
            rewards: (B, T), one per environment step, 0 where none was executed.
            num_executed: (B,).
            ends: (B,) bool, the episode ended in this chunk, however.
            version: Number of updates that the acting policy had seen.
        """
        self._inputs.append(inputs.cpu())
        self._traces.append(action.trace.cpu())
        self._parts.append(
            {
                "time": torch.full_like(columns, time),
                "column": columns,
                "log_probs": action.log_probs.cpu(),
                "values": action.values.cpu(),
                "rewards": rewards,
                "num_executed": num_executed,
                "ends": ends,
                "versions": torch.full_like(columns, version),
            }
        )

    def bootstrap(self, time: int, columns: Tensor, values: Tensor) -> None:
        """Give the value (B,) of the observation after decision `time`, where it was truncated or the rollout cut."""
        self._bootstraps.append((time, columns, values.cpu()))

    def build(self, *, reward_type: RewardType, gamma: float, lam: float, normalize_advantages: bool) -> Rollout:
        """Compute advantages and returns over the grid and flatten it."""
        flat = {name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}
        time, column = flat["time"], flat["column"]
        shape = (int(time.max()) + 1, int(column.max()) + 1)

        def grid(values: Tensor) -> Tensor:
            return values.new_zeros(shape).index_put((time, column), values)

        rewards, discounts = chunk_rewards(flat["rewards"], flat["num_executed"], reward_type=reward_type, gamma=gamma)
        valid = grid(torch.ones_like(time, dtype=torch.bool))
        values = grid(flat["values"])
        ends, next_values = self._successors(grid(flat["ends"]), values, valid)
        advantages, returns = gae(
            grid(rewards), values, next_values, ends, valid=valid, discounts=grid(discounts), lam=lam
        )
        if normalize_advantages:
            advantages = normalize(advantages, valid)
        return Rollout(
            inputs=TensorDict.cat(self._inputs),
            trace=TensorDict.cat(self._traces),
            log_probs=flat["log_probs"],
            values=flat["values"],
            advantages=advantages[time, column],
            returns=returns[time, column],
            num_executed=flat["num_executed"],
            versions=flat["versions"],
        )

    def _successors(self, ends: Tensor, values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Where the trace is cut, and the value of the next observation of the same episode."""
        follows = torch.zeros_like(valid)
        follows[:-1] = valid[1:]
        ends = ends | (valid & ~follows)
        next_values = torch.zeros_like(values)
        next_values[:-1] = values[1:]
        next_values[ends] = 0.0
        for time, columns, bootstrap in self._bootstraps:
            next_values[time, columns] = bootstrap
        return ends, next_values
