"""A share of the environments, and the policy that acts in them."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.algorithms.base import Algorithm
from regrasp.checkpoint.layout import ALGORITHM
from regrasp.engine.acting import acting_chooser
from regrasp.envs.config import EnvName
from regrasp.envs.contract import Observation, VecEnv
from regrasp.envs.mapping import ActionMapping
from regrasp.errors import RegraspError, SimulatorError, UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.batches import num_samples
from regrasp.learner.precision import ActingPolicy
from regrasp.ranks import Ranks
from regrasp.rollout.buffers import RolloutBuffer
from regrasp.rollout.decisions import Decisions
from regrasp.rollout.episodes import EpisodeResult, NoiseKey
from regrasp.rollout.evaluation import VideoRecorder, evaluate
from regrasp.rollout.inference import Inference
from regrasp.rollout.shared import share
from regrasp.rollout.state_watch import StateWatch
from regrasp.rollout.training import TrainingEpisodes, begins_anew, collect_rollout

_log = logging.getLogger(__name__)

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
        self.boundary: dict[str, Tensor] | None = None
        """The environments' state before the rollout that no update has been made of yet."""
        self._restarts = Counter[EnvName]()
        """Since the last update; evaluations are counted by each rank for itself."""

    def collect(self, update: int, should_stop: Callable[[], bool]) -> Gathered:
        """Roll out for update number `update`, see `Engine.collect`.

        Where a simulator fails, all ranks start theirs anew and begin again with the state before the rollout.
        """
        started = time.monotonic()
        failure = None
        try:
            self.boundary = self._together(self._state)
        except SimulatorError as error:
            self.boundary = self._without_simulators()
            failure = self._counted(error)
        while True:
            try:
                if failure is not None:
                    self._begin_again(failure, should_stop)
                collected, episodes = self._collect(update, should_stop)
                return Gathered(collected, episodes, time.monotonic() - started)
            except SimulatorError as error:
                failure = self._counted(error)

    def _collect(self, update: int, should_stop: Callable[[], bool]) -> tuple[Decisions, list[EpisodeResult]]:
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
        return collected, episodes

    def _counted(self, failure: SimulatorError, name: EnvName = "train") -> SimulatorError:
        """The failure, where simulators may be started anew.

        Raises:
            SimulatorError: `failure`, which has come too often without an update in between.
        """
        if self._restarts[name] >= self._config.runner.max_restarts:
            raise failure
        self._restarts[name] += 1
        return failure

    def _begin_again(self, failure: SimulatorError, should_stop: Callable[[], bool]) -> None:
        """Put new simulators into the state before the rollout."""
        assert self.boundary is not None
        state = self.boundary

        def begin() -> None:
            if should_stop():
                raise InterruptedError
            for stage in self._stages:
                stage.env.restart()
            self._load(state)

        started = time.monotonic()
        self._together(begin)
        self._say_restarted(failure, started, "train", "the rollout begins again with the state before it")
        if begins_anew(state, auto_reset=self._config.env.train.auto_reset):
            _log.warning("Simulators did not give their state: the episodes that were under way begin anew.")

    def _say_restarted(self, failure: SimulatorError, started: float, name: EnvName, what_follows: str) -> None:
        seconds, most = time.monotonic() - started, self._config.runner.max_restarts
        _log.warning(
            "%s Its simulators were started anew in %.1f s, and %s (runner.max_restarts: %d of %d without an update in"
            " between).",
            *(failure, seconds, what_follows, self._restarts[name], most),
        )

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
            SimulatorError: Simulators failed, here or elsewhere, and nothing else did.
            RegraspError: Another error that `action` raised here, or word that it did elsewhere.
        """
        result, error = None, None
        try:
            result = action()
        except (InterruptedError, RegraspError) as found:
            error = found
        if self._ranks.any(isinstance(error, InterruptedError)):
            raise InterruptedError from error
        mild = isinstance(error, SimulatorError)
        if self._ranks.any(error is not None and not mild):
            raise RegraspError("Another rank failed.") if error is None or mild else error
        if self._ranks.any(mild):
            raise error or SimulatorError("Simulators of another rank failed.")
        return cast(Result, result)

    def updated(self) -> None:
        """Called when the update has been made: the environments' state is now the one between two updates."""
        self.boundary = None
        self._restarts.clear()

    def evaluate(
        self,
        num_episodes: int,
        on_episode: Callable[[EpisodeResult], None] | None = None,
        recorder: VideoRecorder | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[EpisodeResult]:
        """This rank's share of an evaluation: every `ranks.count`-th episode, see `Engine.evaluate`.

        Raises:
            InterruptedError: `should_stop`, which is asked before every decision, said so.
        """
        assert self._eval_env is not None
        choose = self._choose
        assert choose is not None

        def choose_or_stop(observation: Observation, rows: Tensor, keys: Sequence[NoiseKey]) -> Tensor:
            if should_stop():
                raise InterruptedError
            return choose(observation, rows, keys)

        self._acting.refresh()
        numbers = range(self._ranks.index, num_episodes, self._ranks.count)
        stream = self._config.env.eval.seed
        results = evaluate(
            self._eval_env, choose_or_stop, numbers, self._seed, stream, on_episode, recorder, self._recover_evaluation
        )
        self._watch.report()
        return results

    def _recover_evaluation(self, failure: SimulatorError) -> None:
        """Start this rank's simulators of evaluation anew."""
        assert self._eval_env is not None
        started = time.monotonic()
        while True:
            self._counted(failure, "eval")
            try:
                self._eval_env.restart()
            except SimulatorError as error:
                failure = error
            else:
                break
        self._say_restarted(failure, started, "eval", "the evaluation goes on with the episodes that are missing")

    def state(self) -> dict[str, Tensor]:
        """The environments' state of all ranks between two updates, one after the other, each tensor (N, ...).

        Where a simulator cannot give its own any more, that of all simulators is left out.
        """
        try:
            own = self._together(lambda: self.boundary or self._state())
        except SimulatorError:
            own = self._without_simulators()
        parts = self._ranks.gather(TensorDict(dict(own), batch_size=[self._num_envs]))
        return {str(name): values for name, values in TensorDict.cat(parts).items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned, whatever the number of ranks was.

        Raises:
            UserError: It is that of other environments.
        """
        total = self._config.env.train.total_num_envs
        state = {name: values for name, values in state.items() if not name.startswith(ALGORITHM)}
        counts = {len(values) for values in state.values()}
        if counts - {total}:
            raise UserError(
                "The checkpoint was written with another number of environments",
                key="env.train.total_num_envs",
                value=total,
                expected=" and ".join(map(str, sorted(counts))),
                fix="resume with the number of environments that the run was begun with",
            )
        first = self._stages[0].first_env
        self._load({name: values[first : first + self._num_envs] for name, values in state.items()})

    def _load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state of this rank's environments."""
        first = self._stages[0].first_env
        for stage in self._stages:
            start = stage.first_env - first
            stage.load_state_dict({name: values[start : start + len(stage.running)] for name, values in state.items()})

    def _state(self) -> dict[str, Tensor]:
        return _joined([stage.state_dict() for stage in self._stages])

    def _without_simulators(self) -> dict[str, Tensor]:
        return _joined([stage.state_dict(simulators=False) for stage in self._stages])


def warn_of_new_episodes(holder: str, state: Collection[str], config: ExperimentConfig) -> None:
    """Warn where the environments' state that `holder` has lacks that of simulators in the middle of their episodes."""
    if begins_anew(state, auto_reset=config.env.train.auto_reset):
        _log.warning(
            "%s holds no simulator state: a run that goes on from it begins anew the episodes that were under way"
            " (env.train.auto_reset).",
            holder,
        )


def _joined(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The states of environments, one after the other."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}
