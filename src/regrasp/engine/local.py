"""The local engine: policy, optimizer and rollout in this process, environments in worker processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from regrasp.engine.acting import evaluation_chooser
from regrasp.envs.contract import VecEnv
from regrasp.envs.mapping import ActionMapping
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.batches import num_samples, num_updates
from regrasp.learner.compilation import capture_updates, compile_policy
from regrasp.learner.learner import ActorWorker
from regrasp.learner.precision import ActingPolicy, apply_precision
from regrasp.models.contract import Policy
from regrasp.rollout.buffers import Rollout, RolloutBuilder
from regrasp.rollout.episodes import EnvWorker, EpisodeResult
from regrasp.rollout.evaluation import Evaluation, Recorder
from regrasp.rollout.inference import RolloutWorker, block_size, interact


@dataclass
class Collected:
    """One update's worth of experience."""

    rollout: Rollout
    episodes: list[EpisodeResult]
    num_steps: int
    """Environment steps executed."""
    seconds: float


class LocalEngine:
    """Runs the three roles on this machine.

    Args:
        config: The experiment.
        policy: The policy; actor and rollout share it.
        env: The training environments.
        seed: Seed of every stream.
        device: Where the policy lives.
        eval_env: The environments of evaluation; None for a run that never evaluates.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        policy: Policy,
        env: VecEnv,
        seed: int,
        device: torch.device,
        eval_env: VecEnv | None = None,
    ) -> None:
        self.config = config
        model = config.actor.model
        apply_precision(policy, model, device)
        self.policy = policy.to(device)
        self._seed = seed
        self._device = device
        self._num_actions = model.num_action_chunks
        recompute = config.runner.recompute_features or model.trains_backbone
        self.actor = ActorWorker(
            policy,
            config.actor,
            config.algorithm,
            num_updates=num_updates(config),
            seed=seed,
            recompute_features=recompute,
            device=device,
        )
        self._acting = ActingPolicy(policy, model, device, self.actor.halved)
        if model.compile:
            self._compile(config)
        acting = self._acting.policy
        self._rollout = RolloutWorker(acting, seed, "train", device=device, keep_features=not recompute)
        train = config.env.train
        mapping = ActionMapping(train.mapping, model.action_dim, env.spec.action_dim, "env.train.mapping")
        self._env = EnvWorker(env, mapping, seed, stream=train.seed, auto_reset=train.auto_reset)
        self._eval_env = eval_env
        self._choose = eval_env and evaluation_chooser(acting, config, eval_env, seed, device)

    @property
    def step_seconds(self) -> float:
        """Simulated seconds per environment step."""
        return self._env.env.spec.step_seconds

    def collect(self, update: int, should_stop: Callable[[], bool]) -> Collected:
        """Roll the policy out for `rollout_epoch` epochs.

        Raises:
            InterruptedError: `should_stop` said so; nothing of the rollout is kept.
        """
        started = time.monotonic()
        self.policy.begin_update(update)
        self._acting.policy.begin_update(update)
        self._acting.refresh()
        self._rollout.version = update
        algorithm, env = self.config.algorithm, self.config.env.train
        builder = RolloutBuilder(num_samples(self.config), self.config.runner.feature_storage)
        episodes: list[EpisodeResult] = []
        for epoch in range(algorithm.rollout_epoch):
            episodes += interact(
                self._env,
                self._rollout,
                builder,
                num_decisions=env.max_steps_per_rollout_epoch // self._num_actions,
                first_column=epoch * env.total_num_envs,
                bootstrap_truncated=algorithm.bootstrap_type == "standard",
                should_stop=should_stop,
            )
        rollout = builder.build(
            reward_type=algorithm.reward_type,
            gamma=algorithm.gamma,
            lam=algorithm.gae_lambda,
            normalize_advantages=algorithm.normalize_advantages,
        )
        return Collected(rollout, episodes, int(rollout.num_executed.sum()), time.monotonic() - started)

    def update(self, rollout: Rollout, update: int, should_abandon: Callable[[], bool]) -> dict[str, float]:
        """Train on a rollout, see `ActorWorker.update`."""
        self.actor.computing.train()
        return self.actor.update(rollout, update, should_abandon)

    def evaluate(
        self,
        num_episodes: int,
        on_episode: Callable[[EpisodeResult], None] | None = None,
        recorder: Recorder | None = None,
    ) -> list[EpisodeResult]:
        """Evaluate the policy on episodes 0 to `num_episodes` - 1 of the evaluation stream."""
        assert self._eval_env is not None
        assert self._choose is not None
        self._acting.refresh()
        evaluation = Evaluation(self._eval_env, self._choose, self._seed, self.config.env.eval.seed, on_episode)
        return evaluation.run(num_episodes, recorder)

    def state_dict(self, *, simulators: bool = True) -> dict[str, Tensor]:
        """Environment counters and, with `simulators`, states at the boundary between two updates."""
        return self._env.state_dict(simulators=simulators)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._env.load_state_dict(state)

    def _compile(self, config: ExperimentConfig) -> None:
        """Compile for every batch size of this run: rollout, evaluation and training."""
        computing = self.actor.computing
        acting_sizes = {config.env.train.total_num_envs, block_size(config.env.eval.inference_block, self._device)}
        training_sizes = {config.actor.micro_batch_size}
        if self._acting.policy is computing:
            acting_sizes = training_sizes = acting_sizes | training_sizes
        else:
            compile_policy(self._acting.policy, acting_sizes, self._device)
        compile_policy(computing, training_sizes, self._device)
        if self._device.type == "cuda":
            capture_updates(self.actor, config.actor.micro_batch_size)
