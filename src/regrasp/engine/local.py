"""The local engine: policy, optimizer and rollout in this process, environments in worker processes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.algorithms.advantages import is_flat
from regrasp.checkpoint.plain import JSON
from regrasp.checkpoint.read import Checkpoint
from regrasp.checkpoint.write import CheckpointContent, write_content
from regrasp.engine.acting import acting_chooser
from regrasp.engine.base import Collected, Engine
from regrasp.engine.policies import load_weights
from regrasp.envs.contract import VecEnv
from regrasp.envs.mapping import ActionMapping
from regrasp.errors import SimulatorError, TrainingHaltedError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.batches import num_samples, num_updates
from regrasp.learner.compilation import capture_updates, compile_policy
from regrasp.learner.learner import Learner, NonFiniteError
from regrasp.learner.precision import ActingPolicy, apply_precision
from regrasp.models.contract import Policy
from regrasp.ranks import Ranks
from regrasp.rollout.buffers import RolloutBuffer
from regrasp.rollout.decisions import Decisions
from regrasp.rollout.episodes import EpisodeResult
from regrasp.rollout.evaluation import VideoRecorder, evaluate
from regrasp.rollout.inference import Inference, block_size
from regrasp.rollout.shared import share
from regrasp.rollout.training import TrainingEpisodes, collect_rollout

_log = logging.getLogger(__name__)

_ANEW = "a run that goes on from it begins anew the episodes that were under way (env.train.auto_reset)."


class LocalEngine(Engine):
    """Runs everything on this machine.

    Args:
        config: The experiment.
        policy: The policy; learner and rollout share it.
        env: The training environments.
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
        env: VecEnv,
        seed: int,
        device: torch.device,
        run_dir: Path,
        eval_env: VecEnv | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.config = config
        self._ranks = ranks or Ranks()
        model = config.actor.model
        apply_precision(policy, model, device)
        self.policy = policy.to(device)
        self.step_seconds = env.spec.step_seconds
        self._seed = seed
        self._device = device
        self._run_dir = run_dir
        self._keeps_features = not (config.runner.recompute_features or model.trains_backbone)
        self.algorithm = config.algorithm.build()
        self.learner = Learner(
            policy,
            self.algorithm,
            config.actor,
            num_updates=num_updates(config),
            seed=seed,
            device=device,
            ranks=self._ranks,
        )
        self._acting = ActingPolicy(policy, model, device, self.learner.bfloat16)
        if model.compile:
            self._compile(config)
        acting = self._acting.policy
        self._inference = Inference(acting, seed, "train", device=device, keep_features=self._keeps_features)
        train = config.env.train
        self._mapping = ActionMapping(train.mapping, model.action_dim, env.spec.action_dim, "env.train.mapping")
        self._episodes = TrainingEpisodes(
            env,
            seed,
            stream=train.seed,
            auto_reset=train.auto_reset,
            group_size=self.algorithm.group_size,
            ranks=self._ranks,
        )
        self._eval_env = eval_env
        self._choose = eval_env and acting_chooser(acting, config, eval_env, "eval", seed, device)
        self.decisions: Decisions | None = None
        """What was collected last, as the algorithm prepared it."""
        self._boundary: dict[str, Tensor] | None = None

    def collect(self, update: int, should_stop: Callable[[], bool]) -> Collected:
        """See `Engine.collect`."""
        started = time.monotonic()
        self.decisions = None
        self._boundary = self._between_updates()
        self.policy.begin_update(update)
        self._acting.policy.begin_update(update)
        self._acting.refresh()
        self._inference.version = update
        env = self.config.env.train
        capacity = -(-num_samples(self.config) // self._ranks.count)
        buffer = RolloutBuffer(capacity, self.config.runner.feature_storage, holds_features=self._keeps_features)
        episodes: list[EpisodeResult] = []
        collected, epoch = None, 0
        while collected is None or self.algorithm.wants_more(collected, epoch):
            for _ in range(self.algorithm.config.rollout_epoch if collected is None else 1):
                episodes += self._roll_out(buffer, epoch, should_stop)
                epoch += 1
            collected = share(buffer.build(), self._ranks, env.total_num_envs)
        self.decisions = decisions = self.algorithm.prepare(collected)
        return Collected(
            episodes=episodes,
            num_decisions=len(decisions),
            num_steps=int(collected["num_executed"].sum()),
            seconds=time.monotonic() - started,
            metrics=_statistics(decisions, len(collected) - len(decisions)),
            is_flat=is_flat(decisions["advantages"]),
            why_nothing="" if len(decisions) else self.algorithm.why_nothing(collected),
        )

    def _roll_out(self, buffer: RolloutBuffer, epoch: int, should_stop: Callable[[], bool]) -> list[EpisodeResult]:
        """One rollout epoch, which all ranks finish or none."""
        env, episodes = self.config.env.train, list[EpisodeResult]()
        stopped = False
        try:
            episodes = collect_rollout(
                self._episodes,
                self._inference,
                self._mapping,
                buffer,
                num_decisions=env.max_steps_per_rollout_epoch // self.config.actor.model.num_action_chunks,
                first_column=epoch * env.total_num_envs + self._episodes.first_env,
                bootstrap=self.algorithm.bootstrap,
                should_stop=should_stop,
            )
        except InterruptedError:
            stopped = True
        if self._ranks.any(stopped):
            raise InterruptedError
        return episodes

    def update(self, update: int, should_abandon: Callable[[], bool]) -> dict[str, float]:
        """See `Engine.update`."""
        assert self.decisions is not None, "nothing was collected"
        self.learner.computing.train()
        try:
            metrics = self.learner.update(self.decisions, update, should_abandon)
        except NonFiniteError as error:
            rank = f"_rank_{self._ranks.index}" if self._ranks.count > 1 else ""
            file = self._run_dir / "halted" / f"batch_update_{update}{rank}.pt"
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(error.batch.to_dict(), file)
            raise TrainingHaltedError(f"{error} The batch that caused it is in {file}.") from error
        self._boundary = None
        return metrics

    def evaluate(
        self,
        num_episodes: int,
        on_episode: Callable[[EpisodeResult], None] | None = None,
        recorder: VideoRecorder | None = None,
    ) -> list[EpisodeResult]:
        """See `Engine.evaluate`."""
        assert self._eval_env is not None
        assert self._choose is not None
        self._acting.refresh()
        numbers = range(self._ranks.index, num_episodes, self._ranks.count)
        return evaluate(
            self._eval_env, self._choose, numbers, self._seed, self.config.env.eval.seed, on_episode, recorder
        )

    def save(self, folder: Path, step: int, state: Mapping[str, JSON], *, export: bool) -> None:
        """See `Engine.save`; the first rank writes."""
        frozen = (name for name, parameter in self.policy.named_parameters() if not parameter.requires_grad)
        tensors = self._between_updates() if self._boundary is None else self._boundary
        if self._episodes.begins_anew(tensors):
            _log.warning("The checkpoint of step %d holds no simulator state: %s", step, _ANEW)
        of_ranks = self._ranks.gather(TensorDict(dict(tensors), batch_size=[len(self._episodes.running)]))
        if self._ranks.index:
            return
        content = CheckpointContent(
            model_state=self.policy.state_dict(),
            frozen_names=frozenset(frozen),
            optimizer_state=self.learner.state_dict(),
            tensors={str(name): values for name, values in TensorDict.cat(of_ranks).items()},
            state=state,
            export=self.policy.save if export else None,
        )
        write_content(folder, step, content)

    def load(self, checkpoint: Checkpoint) -> None:
        """See `Engine.load`."""
        load_weights(
            self.policy,
            checkpoint.model_state,
            problem="The checkpoint is of another policy than the configuration's",
            file=checkpoint.path,
            key="actor.model",
            fix="resume with the settings of actor.model that the run was begun with",
        )
        self.learner.load_state_dict(checkpoint.optimizer_state)
        if self._episodes.begins_anew(checkpoint.tensors):
            _log.warning("%s holds no simulator state: %s", checkpoint.path, _ANEW)
        self._episodes.load_state_dict(checkpoint.tensors)

    def _between_updates(self) -> dict[str, Tensor]:
        """The environments' state.

        Raises:
            SimulatorError: A simulator has died; what is kept to go on from lacks the simulators' own state.
        """
        try:
            return self._episodes.state_dict()
        except SimulatorError:
            self._boundary = self._episodes.state_dict(simulators=False)
            raise

    def _compile(self, config: ExperimentConfig) -> None:
        """Compile for every batch size of this run: rollout, evaluation and training."""
        computing = self.learner.computing
        acting_sizes = {config.env.train.total_num_envs, block_size(config.env.eval.inference_block, self._device)}
        training_sizes = {config.actor.micro_batch_size}
        if self._acting.policy is computing:
            acting_sizes = training_sizes = acting_sizes | training_sizes
        else:
            compile_policy(self._acting.policy, acting_sizes, self._device)
        compile_policy(computing, training_sizes, self._device)
        if self._device.type == "cuda":
            capture_updates(self.learner, config.actor.micro_batch_size)


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
