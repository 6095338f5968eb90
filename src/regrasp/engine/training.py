"""The policy that is trained, and its optimizer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrasp.algorithms.advantages import is_flat
from regrasp.algorithms.base import Algorithm
from regrasp.checkpoint.layout import ALGORITHM
from regrasp.checkpoint.plain import JSON
from regrasp.checkpoint.read import Checkpoint
from regrasp.checkpoint.write import CheckpointContent, write_content
from regrasp.engine.policies import load_weights
from regrasp.errors import TrainingHaltedError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.batches import num_updates
from regrasp.learner.learner import Learner, NonFiniteError
from regrasp.learner.precision import apply_precision
from regrasp.models.contract import Policy
from regrasp.ranks import Ranks
from regrasp.rollout.decisions import Decisions

_log = logging.getLogger(__name__)

_OFFLOADS = {
    "cpu": "without a GPU all weights are in host memory",
    "cuda": "only sharded weights are offloaded, and one process has all of them",
}


@dataclass(frozen=True)
class Prepared:
    """What is told of the experience that an update trains on."""

    num_decisions: int
    num_steps: int
    """Environment steps executed."""
    metrics: Mapping[str, float]
    """Of the experience as the algorithm prepared it, such as `advantages_mean`."""
    is_flat: bool
    """Whether no advantage differs from another, so that there is nothing to learn."""
    why_nothing: str
    """Why the algorithm kept no decision; empty where it kept some."""


class Training:
    """Trains one rank's copy of the policy.

    Args:
        config: The experiment.
        policy: With its weights; it is moved to `device`.
        algorithm: Advantages, minibatches and losses.
        seed: Seed of every stream.
        device: Where the policy lives.
        run_dir: Where a batch that broke an update is written.
        ranks: Those that train together; their methods are called at the same time.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        policy: Policy,
        algorithm: Algorithm,
        seed: int,
        device: torch.device,
        run_dir: Path,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        self._run_dir = run_dir
        apply_precision(policy, config.actor.model, device)
        self.policy = policy.to(device)
        self.learner = Learner(
            policy,
            algorithm,
            config.actor,
            num_updates=num_updates(config),
            seed=seed,
            device=device,
            ranks=self.ranks,
        )
        self.learner.recomputes_log_probs = config.rollout.recompute_logprobs
        if config.actor.fsdp_config.cpu_offload and (self.learner.sharded is None or device.type == "cpu"):
            _log.warning("actor.fsdp_config.cpu_offload has no effect: %s.", _OFFLOADS[device.type])
        self._algorithm = algorithm
        self.decisions: Decisions | None = None
        """What is trained on, as the algorithm prepared it."""

    def prepare(self, collected: Decisions, update: int) -> Prepared:
        """Let the algorithm prepare what was collected for update number `update`."""
        self.policy.begin_update(update)
        self.decisions = decisions = self._algorithm.prepare(collected)
        return Prepared(
            num_decisions=len(decisions),
            num_steps=int(collected["num_executed"].sum()),
            metrics=_statistics(decisions, len(collected) - len(decisions)),
            is_flat="advantages" in decisions.columns and is_flat(decisions["advantages"]),
            why_nothing="" if len(decisions) else self._algorithm.why_nothing(collected),
        )

    def update(self, update: int, should_abandon: Callable[[], bool]) -> dict[str, float]:
        """See `Engine.update`."""
        assert self.decisions is not None, "nothing was collected"
        self.learner.computing.train()
        try:
            return self.learner.update(self.decisions, update, should_abandon)
        except NonFiniteError as error:
            rank = f"_rank_{self.ranks.index}" if self.ranks.count > 1 else ""
            file = self._run_dir / "halted" / f"batch_update_{update}{rank}.pt"
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(error.batch.to_dict(), file)
            raise TrainingHaltedError(f"{error} The batch that caused it is in {file}.") from error

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight that trains, by its name among `named_parameters` of the policy, one after the other.

        Whole, on the policy's device, and in the format that it is stored in; to be copied before the next step. Where
        the policy is sharded, all ranks go through them together.

        The names are those of a policy that was made ready for the same training (`Algorithm.parameters`): there, one
        embodiment's weights are parameters of their own, which `state_dict` has within those of all.
        """
        if self.learner.sharded is not None:
            yield from zip(self.learner.sharded.names, self.learner.sharded.whole(), strict=True)
            return
        for name, parameter in self.policy.named_parameters():
            if parameter.requires_grad:
                yield name, parameter.detach()

    def state(self) -> tuple[Policy, dict[str, Any]]:
        """The policy and the optimizer's state, whole, on the first rank; all ranks call this."""
        sharded = self.learner.sharded
        complete = self.policy if sharded is None else sharded.complete(keep=self.ranks.index == 0)
        return complete, self.learner.state_dict()

    def save(
        self, folder: Path, step: int, state: Mapping[str, JSON], envs: Mapping[str, Tensor], *, export: bool
    ) -> None:
        """Fill a checkpoint's folder, see `Engine.save`; all ranks call this, and the first writes.

        Args:
            folder: See `Engine.save`.
            step: See there.
            state: See there.
            envs: What `Rollouts.state` returned; only the first rank's is read.
            export: See `Engine.save`.
        """
        policy, optimizer_state = self.state()
        if self.ranks.index:
            return
        frozen = (name for name, parameter in policy.named_parameters() if not parameter.requires_grad)
        content = CheckpointContent(
            model_state=policy.state_dict(),
            frozen_names=frozenset(frozen),
            optimizer_state=optimizer_state,
            tensors={**envs, **{f"{ALGORITHM}{name}": value for name, value in self._algorithm.state_dict().items()}},
            state=state,
            export=policy.write_folder if export else None,
        )
        write_content(folder, step, content)

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
        """What changes in training, whole: weights, the optimizer's state and what the algorithm keeps.

        Where weights are sharded, all ranks call this, and what those after the first return is not complete; else
        nothing is copied.
        """
        if self.learner.sharded is None:
            weights = dict(self.weights())
        else:
            weights = {name: weight.cpu() for name, weight in self.weights() if not self.ranks.index}
        return weights, self.learner.state_dict(), self._algorithm.state_dict()

    def restore(
        self,
        weights: Mapping[str, Tensor],
        optimizer_state: Mapping[str, Any],
        algorithm_state: Mapping[str, Tensor],
    ) -> None:
        """Take over what `snapshot` returned on the first of ranks that trained the same."""
        sharded = self.learner.sharded
        policy = self.policy if sharded is None else sharded.blank()
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
        if sharded is not None:
            sharded.take(policy)
        self.learner.load_state_dict(optimizer_state)
        self._algorithm.load_state_dict(algorithm_state)

    def load(self, checkpoint: Checkpoint) -> None:
        """Restore weights, optimizer and what the algorithm keeps.

        Raises:
            UserError: They are those of another policy.
        """
        sharded = self.learner.sharded
        policy = self.policy if sharded is None else sharded.blank()
        load_weights(
            policy,
            checkpoint.model_state,
            problem="The checkpoint is of another policy than the configuration's",
            file=checkpoint.path,
            key="actor.model",
            fix="resume with the settings of actor.model that the run was begun with",
        )
        if sharded is not None:
            sharded.take(policy)
        self.learner.load_state_dict(checkpoint.optimizer_state)
        kept = checkpoint.tensors.items()
        self._algorithm.load_state_dict(
            {name.removeprefix(ALGORITHM): value for name, value in kept if name.startswith(ALGORITHM)}
        )


def _statistics(decisions: Decisions, num_dropped: int) -> dict[str, float]:
    """Mean, largest and smallest of what the algorithm prepared, and how many decisions it dropped, if any."""
    dropped = {"decisions_dropped": float(num_dropped)} if num_dropped else {}
    if not len(decisions):
        return dropped
    found = {name: decisions[name] for name in ("advantages", "returns") if name in decisions.columns}
    return {
        f"{name}_{kind}": float(getattr(values, kind)())
        for name, values in found.items()
        for kind in ("mean", "max", "min")
    }
