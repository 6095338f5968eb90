"""The engine for several processes: each rank is a Ray actor, and what fails is begun again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray

from regrasp.checkpoint.plain import JSON
from regrasp.checkpoint.read import Checkpoint
from regrasp.engine.base import Collected, Engine, UpdateLostError
from regrasp.engine.handover import receivers
from regrasp.engine.placement import Plan
from regrasp.engine.ray.cluster import Machines
from regrasp.engine.ray.processes import CLOSE_S, Makers, Processes
from regrasp.engine.ray.snapshots import Snapshots
from regrasp.engine.ray.wire import pack
from regrasp.engine.ray.worker import Rolled
from regrasp.engine.rollouts import warn_of_new_episodes
from regrasp.errors import LostError, SimulatorError
from regrasp.experiment import ExperimentConfig
from regrasp.rollout.episodes import EpisodeResult
from regrasp.rollout.evaluation import VideoRecorder

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


class RayEngine(Engine):
    """Runs each rank of each role in a process of its own, where roles are apart, or in one that they share.

    Args:
        config: The experiment.
        plan: Its processes.
        machines: Where they run.
        seed: Seed of every stream.
        run_dir: Folder of the run, which all machines see.
        makers: Of environments and policies.
        should_stop: Asked while the processes start.

    Raises:
        InterruptedError: `should_stop` said so.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        plan: Plan,
        machines: Machines,
        seed: int,
        run_dir: Path,
        makers: Makers,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config = config
        self._plan = plan
        self._processes = Processes(config, plan, machines, seed, run_dir, makers)
        self._call = 0
        """Number of the last call that can be told to stop."""
        self._version = 0
        """Updates made here."""
        self._restarts = 0
        """Since the last update."""
        self._loaded: Checkpoint | None = None
        self._snapshots = Snapshots()
        self._lost: LostError | None = None
        """Why the processes have to be started again."""
        try:
            self._start(should_stop)
        except LostError as error:
            self._count(error)
            self._lasting(lambda: None, should_stop)

    def _start(self, should_stop: Callable[[], bool] | None = None, *, simulates: bool = True) -> None:
        """Start all processes and have them meet.

        Args:
            should_stop: Asked meanwhile.
            simulates: Whether environments are started too.

        Raises:
            InterruptedError: `should_stop` said so.
        """

        def interrupt() -> bool:
            if should_stop is not None and should_stop():
                raise InterruptedError
            return False

        self._given: int | None = None
        """The version that the rollout ranks act with."""
        self._prefetched: tuple[int, list[list[Any]]] | None = None
        """A rollout that overlaps an update, and the number of the update that it is for."""
        try:
            train, self.capabilities, _ = self._processes.start(interrupt, simulates=simulates)
        except LostError:
            raise  # who counts it looks at what is left of the processes, and ends them
        except BaseException:
            self.close(0.0)
            raise
        self.step_seconds = train.step_seconds

    @property
    def _actor_is_apart(self) -> bool:
        return self._plan.of("actor") != self._plan.of("rollout")

    def collect(self, update: int, should_stop: Callable[[], bool]) -> Collected:
        """See `Engine.collect`."""
        return self._lasting(lambda: self._collect(update, should_stop), should_stop)

    def _collect(self, update: int, should_stop: Callable[[], bool]) -> Collected:
        started = time.monotonic()
        if not self._snapshots.has_begun:
            self._keep_state(self._env_state(), None)
        rolled = self._rolled(update)
        of_ranks: list[Rolled] = self._all([reply[0] for reply in rolled], should_stop)
        given = self._handed_over([reply[1:] for reply in rolled])
        self._snapshots.settle(self._processes.all)
        prepared = self._processes.all(
            [
                actor.prepare.remote(update, *parts)
                for actor, parts in zip(self._processes.of("actor"), given, strict=True)
            ]
        )[0]
        return Collected(
            episodes=[episode for rank in of_ranks for episode in rank.episodes],
            seconds=time.monotonic() - started,
            **vars(prepared),
        )

    def _rolled(self, update: int) -> list[list[Any]]:
        """References to what each rollout rank tells of the rollout for an update, and to its parts."""
        if self._prefetched is not None and self._prefetched[0] == update:
            rolled, self._prefetched = self._prefetched[1], None
            return rolled
        self._give_weights()
        return self._roll_out(update)

    def _roll_out(self, update: int) -> list[list[Any]]:
        self._call += 1
        num_rollouts, num_actors = self._plan.num_rollouts, self._plan.num_actors
        rolled = []
        for rank, worker in enumerate(self._processes.of("rollout")):
            parts = len(receivers(rank, num_rollouts, num_actors)) if self._actor_is_apart else 0
            reply = worker.collect.options(num_returns=1 + parts).remote(update, self._call)
            rolled.append(reply if parts else [reply])
        return rolled

    def _handed_over(self, parts: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """For each rank of the actor, references to the parts that it gets, by rollout rank."""
        given: list[list[Any]] = [[] for _ in self._plan.of("actor")]
        if self._actor_is_apart:
            for rank, own in enumerate(parts):
                targets = receivers(rank, self._plan.num_rollouts, self._plan.num_actors)
                for target, part in zip(targets, own, strict=True):
                    given[target].append(part)
        return given

    def _give_weights(self) -> None:
        """Have the rollout ranks act with the weights as they are now."""
        if self._actor_is_apart and self._given != self._version:
            self._given = self._version
            self._processes.all(
                [
                    *(actor.send_weights.remote() for actor in self._processes.of("actor")),
                    *(worker.receive_weights.remote() for worker in self._processes.of("rollout")),
                ]
            )

    def update(self, update: int, should_abandon: Callable[[], bool]) -> dict[str, float]:
        """See `Engine.update`."""
        try:
            metrics = self._update(update, should_abandon)
        except LostError as error:
            self._count(error)
            raise UpdateLostError(f"{error} Update {update + 1} is begun anew.") from error
        self._restarts = 0
        return metrics

    def _update(self, update: int, should_abandon: Callable[[], bool]) -> dict[str, float]:
        overlaps, envs = self._config.runner.max_staleness > 0, None
        if overlaps:
            self._give_weights()
        self._call += 1
        replies = [actor.update.remote(update, self._call) for actor in self._processes.of("actor")]
        if overlaps:
            envs = self._env_state(is_updated=True)
            self._prefetched = update + 1, self._roll_out(update + 1)
        metrics = self._all(replies, should_abandon)[0]
        self._processes.relay()
        self._keep_state(envs or self._env_state(is_updated=True), update)
        self._version += 1
        return metrics

    def _env_state(self, *, is_updated: bool = False) -> Any:
        """Reference to the state of all environments, after telling that an update has been made of them."""
        if is_updated:
            for worker in self._processes.of("rollout"):
                worker.updated.remote()
        first, *_ = [worker.env_state.remote() for worker in self._processes.of("rollout")]
        return first

    def _keep_state(self, envs: Any, update: int | None) -> None:
        """Begin to copy the state after `update` to where it outlasts the processes."""
        actors = self._processes.of("actor")
        is_sharded = self._config.actor.fsdp_config.num_shards(len(actors)) > 1
        self._snapshots.begin(actors, envs, update, is_sharded=is_sharded)

    def evaluate(
        self,
        num_episodes: int,
        on_episode: Callable[[EpisodeResult], None] | None = None,
        recorder: VideoRecorder | None = None,
    ) -> list[EpisodeResult]:
        """See `Engine.evaluate`."""
        told = 0

        def tell(episodes: Sequence[EpisodeResult]) -> None:
            nonlocal told
            for episode in episodes[told:]:
                told += 1
                if on_episode is not None:
                    on_episode(episode)

        found = self._lasting(lambda: self._evaluate(num_episodes, tell, recorder), lambda: False)
        tell(found)
        return found

    def _evaluate(
        self,
        num_episodes: int,
        tell: Callable[[Sequence[EpisodeResult]], None],
        recorder: VideoRecorder | None,
    ) -> list[EpisodeResult]:
        self._give_weights()
        self._call += 1
        workers = self._processes.of("rollout")
        num_recorded = 0 if recorder is None else recorder.num_episodes
        finished: list[list[EpisodeResult]] = [[] for _ in workers]

        def interrupted() -> bool:
            replies = [worker.finished_episodes.remote(len(own)) for worker, own in zip(workers, finished, strict=True)]
            for own, new in zip(finished, self._processes.all(replies), strict=True):
                own += new
            try:
                tell([episode for own in finished for episode in own])
            except InterruptedError:
                return True
            return False

        replies = [worker.evaluate.remote(num_episodes, num_recorded, self._call) for worker in workers]
        found = self._all(replies, interrupted)
        if recorder is not None:
            for episode in sorted((one for _, recorded in found for one in recorded), key=lambda one: one.index):
                recorder.write(episode)
        of_ranks = [results for results, _ in found]
        return [of_ranks[number % len(workers)][number // len(workers)] for number in range(num_episodes)]

    def save(self, folder: Path, step: int, state: Mapping[str, JSON], *, export: bool) -> None:
        """See `Engine.save`; where processes were lost, it is the state after the last finished update."""
        while True:
            try:
                envs = self._env_state() if self._lost is None else self._start_to_save(self._lost)
                self._save(envs, folder, step, state, export=export)
                return
            except LostError as error:
                if self._lost is None:
                    self._lose(error)
                else:
                    self._count(error)

    def _start_to_save(self, lost: LostError) -> Any:
        """Start the processes in the state after the last finished update; returns that of the environments.

        They are started too only where that update has to be made once more.
        """
        if (last := self._snapshots.last) is None:
            raise lost
        self.close(0.0)
        self._start(simulates=self._snapshots.lost_update is not None)
        self._restore(last.training, None if self._snapshots.lost_update is None else last.envs)
        return self._env_state() if self._make_lost_update(lambda: False) else last.envs

    def _save(self, envs: Any, folder: Path, step: int, state: Mapping[str, JSON], *, export: bool) -> None:
        warn_of_new_episodes(f"The checkpoint of step {step}", self._processes.all([envs])[0], self._config)
        self._processes.all(
            [actor.save.remote(folder, step, state, envs, export=export) for actor in self._processes.of("actor")]
        )

    def load(self, checkpoint: Checkpoint) -> None:
        """See `Engine.load`."""
        self._loaded = checkpoint
        envs = ray.put(pack(checkpoint.tensors))
        warn_of_new_episodes(str(checkpoint.path), checkpoint.tensors, self._config)
        self._processes.all([actor.load.remote(checkpoint.path) for actor in self._processes.of("actor")])
        self._processes.all([worker.load_env_state.remote(envs) for worker in self._processes.of("rollout")])
        self._processes.relay()

    def _lasting(self, action: Callable[[], Result], should_stop: Callable[[], bool]) -> Result:
        """Do something; where a process is lost over it, do it again with new ones.

        Raises:
            InterruptedError: `should_stop` said so.
            LostError: Processes were lost too often without an update in between.
        """
        while True:
            try:
                if self._lost is not None:
                    self._begin_again(self._lost, should_stop)
                return action()
            except LostError as error:
                self._count(error)

    def _count(self, error: LostError) -> None:
        """End all processes for one that was lost, to start them again.

        Raises:
            LostError: `error`, which has come too often without an update in between; `save` is still possible.
        """
        words = self._processes.last_words()
        self._lose(error)
        if isinstance(error, SimulatorError) or self._restarts >= self._config.runner.max_restarts:
            if words:
                error.add_note(words)
            raise error  # simulators have been started again already, by those who act in them
        self._restarts += 1

    def _lose(self, error: LostError) -> None:
        self._lost = error
        self._snapshots.rescue()
        self.close(0.0)

    def _begin_again(self, lost: LostError, should_stop: Callable[[], bool]) -> None:
        """Start all processes anew, in the state after the last finished update."""
        started = time.monotonic()
        self.close(0.0)
        self._start(should_stop)
        if (last := self._snapshots.last) is not None:
            self._restore(last.training, last.envs)
        elif self._loaded is not None:
            self.load(self._loaded)
        self._make_lost_update(should_stop)
        self._lost = None
        _log.warning(
            "%s All processes were started again in %.1f s, in the state after the last finished update"
            " (runner.max_restarts: %d of %d without an update in between).",
            lost,
            time.monotonic() - started,
            self._restarts,
            self._config.runner.max_restarts,
        )

    def _restore(self, training: Any, envs: Any) -> None:
        """Give all processes the state of a snapshot; None leaves the environments as they are."""
        self._processes.all([actor.restore.remote(training) for actor in self._processes.of("actor")])
        if envs is not None:
            self._processes.all([worker.load_env_state.remote(envs) for worker in self._processes.of("rollout")])

    def _make_lost_update(self, should_stop: Callable[[], bool]) -> bool:
        """Make the last update once more, where its state was lost with its processes; returns whether it was."""
        if (update := self._snapshots.lost_update) is None:
            return False
        _log.warning("The state after update %d was lost with its process: it is made once more.", update + 1)
        self._collect(update, should_stop)
        self._update(update, lambda: False)
        return True

    def _all(self, replies: Sequence[Any], should_stop: Callable[[], bool]) -> list[Any]:
        """What all processes return; they are told to end what they do once `should_stop` says so."""
        return self._processes.all(replies, should_stop, lambda: self._processes.stop(self._call))

    def close(self, deadline: float = CLOSE_S) -> None:
        """Stop all processes, which have `deadline` seconds to stop their simulators themselves."""
        self._processes.close(deadline)
