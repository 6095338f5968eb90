"""A share of the environments, and the policy that acts in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.algorithms.base import Algorithm
from regrasp.engine.acting import acting_chooser
from regrasp.envs.contract import VecEnv
from regrasp.envs.mapping import ActionMapping
from regrasp.errors import RegraspError, SimulatorError, UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.batches import num_samples
from regrasp.learner.precision import ActingPolicy
from regrasp.ranks import Ranks
from regrasp.rollout.buffers import RolloutBuffer
from regrasp.rollout.decisions import Decisions
from regrasp.rollout.episodes import EpisodeResult
from regrasp.rollout.evaluation import VideoRecorder, evaluate
from regrasp.rollout.inference import Inference
from regrasp.rollout.shared import share
from regrasp.rollout.state_watch import StateWatch
from regrasp.rollout.training import TrainingEpisodes, collect_rollout

Result = TypeVar("Result")


@dataclass(frozen=True)
class Gathered:
    """The experience of one update, as it was gathered."""

    decisions: Decisions
    """Of all ranks, see `rollout.shared`."""
    episodes: list[EpisodeResult]
    """Of this rank, those that ended."""
    seconds: float


class Rollouts:
    """Rolls out one rank's environments.

    Args:
        config: The experiment.
        acting: What acts; whoever changes its weights does so between two calls.
        stages: This rank's training environments, in parts that take turns with the policy.
        seed: Seed of every stream.
        device: Where the policy lives.
        algorithm: Says how much it wants.
        eval_env: This rank's environments of evaluation; None for a run that never evaluates.
        ranks: Those that roll out together, each with as many environments; their methods are called at the same time.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        acting: ActingPolicy,
        stages: Sequence[VecEnv],
        seed: int,
        device: torch.device,
        algorithm: Algorithm,
        eval_env: VecEnv | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._config = config
        self._acting = acting
        self._seed = seed
        self._device = device
        self._algorithm = algorithm
        self._ranks = ranks or Ranks()
        self.step_seconds = stages[0].spec.step_seconds
        model, train = config.actor.model, config.env.train
        self._keeps_features = not (config.runner.recompute_features or model.trains_backbone)
        policy = acting.policy
        self._watch = StateWatch()
        self._inference = Inference(
            policy, seed, "train", device=device, keep_features=self._keeps_features, watch=self._watch
        )
        self._mapping = ActionMapping(train.mapping, model.action_dim, stages[0].spec.action_dim, "env.train.mapping")
        self._num_envs = sum(env.spec.num_envs for env in stages)
        self._stages = [
            TrainingEpisodes(
                env,
                seed,
                stream=train.seed,
                auto_reset=train.auto_reset,
                group_size=algorithm.group_size,
                first_env=self._ranks.index * self._num_envs + sum(other.spec.num_envs for other in stages[:number]),
            )
            for number, env in enumerate(stages)
        ]
        self._eval_env = eval_env
        self._choose = eval_env and acting_chooser(policy, config, eval_env, "eval", seed, device, self._watch)
        self._boundary: dict[str, Tensor] | None = None
        """The environments' state before the rollout that no update has been made of yet."""

    def collect(self, update: int, should_stop: Callable[[], bool]) -> Gathered:
        """Roll out for update number `update`, see `Engine.collect`."""
        started = time.monotonic()
        self._boundary = self._together(self._state)
        self._acting.policy.begin_update(update)
        self._acting.refresh()
        self._inference.version = update
        capacity = -(-num_samples(self._config) // self._ranks.count)
        buffer = RolloutBuffer(capacity, self._config.runner.feature_storage, holds_features=self._keeps_features)
        episodes: list[EpisodeResult] = []
        collected, epoch = None, 0
        while collected is None or self._algorithm.wants_more(collected, epoch):
            for _ in range(self._algorithm.config.rollout_epoch if collected is None else 1):
                episodes += self._roll_out(buffer, epoch, should_stop)
                epoch += 1
            collected = share(buffer.build(), self._ranks, self._config.env.train.total_num_envs)
        self._watch.report()
        return Gathered(collected, episodes, time.monotonic() - started)

    def _roll_out(self, buffer: RolloutBuffer, epoch: int, should_stop: Callable[[], bool]) -> list[EpisodeResult]:
        """One rollout epoch, which all ranks finish or none."""
        env = self._config.env.train
        return self._together(
            lambda: collect_rollout(
                self._stages,
                self._inference,
                self._mapping,
                buffer,
                num_decisions=env.max_steps_per_rollout_epoch // self._config.actor.model.num_action_chunks,
                first_column=epoch * env.total_num_envs,
                bootstrap=self._algorithm.bootstrap,
                should_stop=should_stop,
            )
        )

    def _together(self, action: Callable[[], Result]) -> Result:
        """What all ranks do or none does: where it fails on one, it fails on all.

        Raises:
            RegraspError: What `action` raised here, or word that it failed elsewhere.
        """
        result, error = None, None
        try:
            result = action()
        except (InterruptedError, RegraspError) as found:
            error = found
        if self._ranks.any(isinstance(error, InterruptedError)):
            raise InterruptedError from error
        if self._ranks.any(error is not None):
            raise error or RegraspError("Another rank's environments failed.")
        return cast(Result, result)

    def updated(self) -> None:
        """Called when the update has been made: the environments' state is now the one between two updates."""
        self._boundary = None

    def evaluate(
        self,
        num_episodes: int,
        on_episode: Callable[[EpisodeResult], None] | None = None,
        recorder: VideoRecorder | None = None,
    ) -> list[EpisodeResult]:
        """This rank's share of an evaluation: every `ranks.count`-th episode, see `Engine.evaluate`."""
        assert self._eval_env is not None
        assert self._choose is not None
        self._acting.refresh()
        numbers = range(self._ranks.index, num_episodes, self._ranks.count)
        stream = self._config.env.eval.seed
        results = evaluate(self._eval_env, self._choose, numbers, self._seed, stream, on_episode, recorder)
        self._watch.report()
        return results

    def state(self) -> dict[str, Tensor]:
        """The environments' state between two updates, each tensor (N, ...); what failed simulators lack is left out.

        Raises:
            SimulatorError: A simulator has died; asked again, the state is given without the simulators' own.
        """
        return self._state() if self._boundary is None else self._boundary

    def gathered_state(self) -> dict[str, Tensor]:
        """The `state` of all ranks, one after the other."""
        try:
            own = self._together(self.state)
        except RegraspError:
            self._boundary = self._without_simulators()
            raise
        parts = self._ranks.gather(TensorDict(dict(own), batch_size=[self._num_envs]))
        return {str(name): values for name, values in TensorDict.cat(parts).items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned on all ranks, one after the other, whatever their number was.

        Raises:
            UserError: It is that of other environments.
        """
        total = self._config.env.train.total_num_envs
        counts = {len(values) for values in state.values()}
        if counts - {total}:
            raise UserError(
                "The checkpoint was written with another number of environments",
                key="env.train.total_num_envs",
                value=total,
                expected=" and ".join(map(str, sorted(counts))),
                fix="resume with the number of environments that the run was begun with",
            )
        for stage in self._stages:
            own = slice(stage.first_env, stage.first_env + len(stage.running))
            stage.load_state_dict({name: values[own] for name, values in state.items()})

    def begins_anew(self, state: Mapping[str, Tensor]) -> bool:
        """See `TrainingEpisodes.begins_anew`."""
        return self._stages[0].begins_anew(state)

    def _state(self) -> dict[str, Tensor]:
        try:
            return _joined([stage.state_dict() for stage in self._stages])
        except SimulatorError:
            self._boundary = self._without_simulators()
            raise

    def _without_simulators(self) -> dict[str, Tensor]:
        return _joined([stage.state_dict(simulators=False) for stage in self._stages])


def _joined(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The states of environments, one after the other."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}
