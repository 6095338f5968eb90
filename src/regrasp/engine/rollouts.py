"""A share of the environments, and the policy that acts in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from regrasp.algorithms.base import Algorithm
from regrasp.engine.acting import acting_chooser
from regrasp.envs.contract import VecEnv
from regrasp.envs.mapping import ActionMapping
from regrasp.errors import SimulatorError
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
        env: This rank's training environments.
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
        env: VecEnv,
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
        self.step_seconds = env.spec.step_seconds
        model, train = config.actor.model, config.env.train
        self._keeps_features = not (config.runner.recompute_features or model.trains_backbone)
        policy = acting.policy
        self._watch = StateWatch()
        self._inference = Inference(
            policy, seed, "train", device=device, keep_features=self._keeps_features, watch=self._watch
        )
        self._mapping = ActionMapping(train.mapping, model.action_dim, env.spec.action_dim, "env.train.mapping")
        self._episodes = TrainingEpisodes(
            env,
            seed,
            stream=train.seed,
            auto_reset=train.auto_reset,
            group_size=algorithm.group_size,
            ranks=self._ranks,
        )
        self._eval_env = eval_env
        self._choose = eval_env and acting_chooser(policy, config, eval_env, "eval", seed, device, self._watch)
        self._boundary: dict[str, Tensor] | None = None
        """The environments' state before the rollout that no update has been made of yet."""

    @property
    def num_envs(self) -> int:
        """Training environments of this rank."""
        return len(self._episodes.running)

    def collect(self, update: int, should_stop: Callable[[], bool]) -> Gathered:
        """Roll out for update number `update`, see `Engine.collect`."""
        started = time.monotonic()
        self._boundary = self._state()
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
        env, episodes = self._config.env.train, list[EpisodeResult]()
        stopped = False
        try:
            episodes = collect_rollout(
                self._episodes,
                self._inference,
                self._mapping,
                buffer,
                num_decisions=env.max_steps_per_rollout_epoch // self._config.actor.model.num_action_chunks,
                first_column=epoch * env.total_num_envs + self._episodes.first_env,
                bootstrap=self._algorithm.bootstrap,
                should_stop=should_stop,
            )
        except InterruptedError:
            stopped = True
        if self._ranks.any(stopped):
            raise InterruptedError
        return episodes

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

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned on all ranks, one after the other.

        Raises:
            UserError: It is that of other environments.
        """
        self._episodes.load_state_dict(state)

    def begins_anew(self, state: Mapping[str, Tensor]) -> bool:
        """See `TrainingEpisodes.begins_anew`."""
        return self._episodes.begins_anew(state)

    def _state(self) -> dict[str, Tensor]:
        try:
            return self._episodes.state_dict()
        except SimulatorError:
            self._boundary = self._episodes.state_dict(simulators=False)
            raise
