"""The local engine: policy, optimizer and rollout in this process, environments in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from regrasp.checkpoint.plain import JSON
from regrasp.checkpoint.read import Checkpoint
from regrasp.engine.base import Collected, Engine
from regrasp.engine.compiling import compile_as_configured
from regrasp.engine.overlap import Overlap
from regrasp.engine.rollouts import Rollouts, warn_of_new_episodes
from regrasp.engine.training import Training
from regrasp.envs.contract import VecEnv
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.batches import num_updates
from regrasp.learner.learner import Learner
from regrasp.learner.precision import ActingPolicy
from regrasp.models.contract import Policy
from regrasp.ranks import Ranks
from regrasp.rollout.decisions import Decisions
from regrasp.rollout.episodes import EpisodeResult
from regrasp.rollout.evaluation import VideoRecorder


class LocalEngine(Engine):
    """Runs everything on this machine.

    Args:
        config: The experiment.
        policy: The policy; learner and rollout share it.
        stages: The training environments, in parts that take turns with the policy.
        seed: Seed of every stream.
        device: Where the policy lives.
        run_dir: Where a batch that broke an update is written.
        eval_env: The environments of evaluation; None for a run that never evaluates.
        ranks: Those that train together, each with an engine like this one, whose methods are called at the same time.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        policy: Policy,
        stages: Sequence[VecEnv],
        seed: int,
        device: torch.device,
        run_dir: Path,
        eval_env: VecEnv | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._config = config
        self.algorithm = algorithm = config.algorithm.build()
        self.training = Training(config, policy, algorithm, seed, device, run_dir, ranks)
        self._overlap = Overlap(policy) if config.runner.max_staleness else None
        if self._overlap is None:
            acting = ActingPolicy(policy, config.actor.model, device, self.learner.sharded or self.learner.bfloat16)
        else:
            acting = ActingPolicy(self._overlap.policy, config.actor.model, device)
        compile_as_configured(config, device, learner=self.learner, acting=acting, stages=stages, eval_env=eval_env)
        self.rollouts = Rollouts(config, acting, stages, seed, device, algorithm, eval_env, ranks)
        self.step_seconds = self.rollouts.step_seconds

    @property
    def policy(self) -> Policy:
        """What is trained."""
        return self.training.policy

    @property
    def learner(self) -> Learner:
        """Its optimizer."""
        return self.training.learner

    @property
    def decisions(self) -> Decisions | None:
        """What was collected last, as the algorithm prepared it."""
        return self.training.decisions

    def collect(self, update: int, should_stop: Callable[[], bool]) -> Collected:
        """See `Engine.collect`."""
        self.training.decisions = None
        gathered = None if self._overlap is None else self._overlap.taken(update)
        if gathered is None:
            self._refresh()
            gathered = self.rollouts.collect(update, should_stop)
        prepared = self.training.prepare(gathered.decisions, update)
        return Collected(episodes=gathered.episodes, seconds=gathered.seconds, **vars(prepared))

    def update(self, update: int, should_abandon: Callable[[], bool]) -> dict[str, float]:
        """See `Engine.update`; with `runner.max_staleness`, the next rollout is made meanwhile."""
        if self._overlap is None or update + 1 >= num_updates(self._config):
            metrics = self.training.update(update, should_abandon)
            self.rollouts.updated()
            return metrics
        self._refresh()
        before = self.rollouts.boundary
        try:
            with self._overlap.rolling_out(self.rollouts, update + 1):
                return self.training.update(update, should_abandon)
        except BaseException:
            self.rollouts.boundary = before
            raise

    def _refresh(self) -> None:
        if self._overlap is not None:
            self._overlap.refresh(self.policy)

    def evaluate(
        self,
        num_episodes: int,
        on_episode: Callable[[EpisodeResult], None] | None = None,
        recorder: VideoRecorder | None = None,
    ) -> list[EpisodeResult]:
        """See `Engine.evaluate`."""
        self._refresh()
        return self.rollouts.evaluate(num_episodes, on_episode, recorder)

    def save(self, folder: Path, step: int, state: Mapping[str, JSON], *, export: bool) -> None:
        """See `Engine.save`; the first rank writes."""
        tensors = self.rollouts.state()
        warn_of_new_episodes(f"The checkpoint of step {step}", tensors, self._config)
        self.training.save(folder, step, state, tensors, export=export)

    def load(self, checkpoint: Checkpoint) -> None:
        """See `Engine.load`."""
        self.training.load(checkpoint)
        warn_of_new_episodes(str(checkpoint.path), checkpoint.tensors, self._config)
        self.rollouts.load_state(checkpoint.tensors)
