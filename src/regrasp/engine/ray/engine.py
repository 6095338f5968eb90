"""The engine for several processes: each rank is a Ray actor, and what fails is begun again."""

from __future__ import annotations

import functools
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import ray

from regrasp.checkpoint.plain import JSON
from regrasp.checkpoint.read import Checkpoint
from regrasp.engine.base import Collected, Engine, UpdateLostError
from regrasp.engine.handover import receivers
from regrasp.engine.placement import EnvShare, Plan, ProcessPlan
from regrasp.engine.ray.cluster import Machines, free_port, on_node
from regrasp.engine.ray.environments import EnvHost, HostedVecEnv
from regrasp.engine.ray.waiting import results
from regrasp.engine.ray.wire import pack
from regrasp.engine.ray.worker import Assignment, Rolled, Worker
from regrasp.engine.rollouts import warn_of_new_episodes
from regrasp.envs.config import EnvConfig, EnvName
from regrasp.envs.contract import Capabilities, EnvSpec, VecEnv
from regrasp.envs.joined import JoinedVecEnv
from regrasp.errors import LostError, SimulatorError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.cluster import Role
from regrasp.models.contract import Policy
from regrasp.rollout.episodes import EpisodeResult
from regrasp.rollout.evaluation import VideoRecorder

_log = logging.getLogger(__name__)

_CLOSE_S = 10.0
Result = TypeVar("Result")
CreateEnv = Callable[[EnvConfig, EnvName, int, int], VecEnv]
"""As `envs.registry.create_env`."""
CreatePolicy = Callable[[ExperimentConfig, EnvSpec, EnvSpec | None], Policy]
"""From the experiment, and what the environments of training and of evaluation offer."""


@dataclass(frozen=True)
class Makers:
    """What the processes make their parts with; both are functions of a module, so that they can be sent."""

    create_env: CreateEnv
    create_policy: CreatePolicy


class RayEngine(Engine):
    """Runs each rank of each role in a process of its own, where roles are apart, or in one that they share.

    Args:
        config: The experiment.
        plan: Its processes.
        machines: Where they run.
        seed: Seed of every stream.
        run_dir: Folder of the run, which all machines see.
        makers: Of environments and policies.
    """

    def __init__(
        self, config: ExperimentConfig, plan: Plan, machines: Machines, seed: int, run_dir: Path, makers: Makers
    ) -> None:
        self._config = config
        self._plan = plan
        self._machines = machines
        self._seed = seed
        self._run_dir = run_dir
        self._makers = makers
        self._call = 0
        """Number of the last call that can be told to stop."""
        self._version = 0
        """Updates made here."""
        self._restarts = 0
        """Since the last update."""
        self._starts = 0
        self._loaded: Checkpoint | None = None
        self._snapshot: tuple[Any, Any] | None = None
        """References to the training's and the environments' state after the last update."""
        self._lost: LostError | None = None
        """Why the processes have to be started again."""
        self._offered: tuple[EnvSpec, Capabilities, EnvSpec | None] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="regrasp-")
        self._start()

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

        self._hosts: list[Any] = []
        self._workers: dict[str, Any] = {}
        self._given: int | None = None
        """The version that the rollout ranks act with."""
        self._prefetched: tuple[int, list[list[Any]]] | None = None
        """A rollout that overlaps an update, and the number of the update that it is for."""
        try:
            if self._env_is_apart and simulates:
                self._hosts = [self._host(process) for process in self._plan.of("env")]
            meeting = self._meeting()
            for process in self._plan.processes:
                if process.roles & {"actor", "rollout"}:
                    self._workers[process.name] = self._worker(process, meeting)
            if simulates:
                self._all([host.start.remote() for host in self._hosts], interrupt)
                created = [
                    self._workers[process.name].create_envs.remote(*self._environments(rank))
                    for rank, process in enumerate(self._plan.of("rollout"))
                ]
                self._offered = self._all(created, interrupt)[0]
            assert self._offered is not None
            train, self.capabilities, evaluation = self._offered
            self.step_seconds = train.step_seconds
            self._all([worker.start.remote(train, evaluation) for worker in self._workers.values()], interrupt)
            self._relay()
        except BaseException:
            self.close(0.0)
            raise

    @property
    def _env_is_apart(self) -> bool:
        return self._plan.of("env") != self._plan.of("rollout")

    @property
    def _actor_is_apart(self) -> bool:
        return self._plan.of("actor") != self._plan.of("rollout")

    def _host(self, process: ProcessPlan) -> Any:
        """A process with environments alone, one for each of its shares and, where the run evaluates, as many more."""
        own = [share for share in self._plan.env_shares if share.worker == process.index["env"]]
        create = [self._create_train(share) for share in own]
        if self._evaluates:
            create += [self._create_eval(share) for share in own if share.stage == 0]
        address = self._machines.addresses[process.node]
        return self._actor(EnvHost, process, max_concurrency=len(create)).remote(create, Path.cwd(), address)

    def _worker(self, process: ProcessPlan, meeting: str) -> Any:
        beside = sum(other.node == process.node for other in self._plan.processes)
        assignment = Assignment(
            config=self._config,
            seed=self._seed,
            run_dir=self._run_dir,
            plan=self._plan,
            process=process,
            num_threads=self._config.runner.torch_threads or max(1, self._num_cores(process) // beside),
            create_policy=self._makers.create_policy,
            meeting=meeting,
            folder=Path.cwd(),
            address=self._machines.addresses[process.node],
        )
        return self._actor(Worker, process, concurrency_groups={"control": 1}).remote(assignment)

    def _actor(self, kind: type, process: ProcessPlan, **options: Any) -> Any:
        settings: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": on_node(self._machines.ids[process.node])}
        named = type(process.name, (kind,), {})  # as which `ps` and errors show it
        return ray.remote(**settings, **options)(named)

    def _meeting(self) -> str:
        """Where the processes meet: at a file in a cluster of this run's own, else at a port of the first actor's."""
        if self._machines.is_own:
            self._starts += 1
            return f"file://{self._folder.name}/{self._starts}"
        node = self._plan.of("actor")[0].node
        return f"tcp://{self._machines.addresses[node]}:{free_port(self._machines.ids[node])}"

    def _environments(self, rank: int) -> tuple[list[Callable[[], VecEnv]], Callable[[], VecEnv] | None]:
        """What makes the environments of a rollout rank: of each of its stages, and of evaluation."""
        own = [share for share in self._plan.env_shares if share.rollout == rank]
        if not self._env_is_apart:
            return [self._create_train(share) for share in own], self._create_eval(own[0]) if self._evaluates else None
        stages: dict[int, list[Callable[[], VecEnv]]] = {}
        evaluation: list[Callable[[], VecEnv]] = []
        for share in own:
            of_host = [other for other in self._plan.env_shares if other.worker == share.worker]
            stages.setdefault(share.stage, []).append(self._reach(share.worker, of_host.index(share), "train"))
            if share.stage == 0 and self._evaluates:
                firsts = [other for other in of_host if other.stage == 0]
                evaluation.append(self._reach(share.worker, len(of_host) + firsts.index(share), "eval"))
        return [functools.partial(_join, parts) for parts in stages.values()], (
            functools.partial(_join, evaluation) if evaluation else None
        )

    def _reach(self, worker: int, number: int, name: EnvName) -> Callable[[], VecEnv]:
        timeouts = getattr(self._config.env, name).timeouts
        return functools.partial(HostedVecEnv, self._hosts[worker], number, timeouts)

    @property
    def _evaluates(self) -> bool:
        return self._config.runner.val_check_interval > 0

    def _create_train(self, share: EnvShare) -> Callable[[], VecEnv]:
        return self._create(self._plan.of("env")[share.worker], share.of(self._config.env.train), "train")

    def _create_eval(self, share: EnvShare) -> Callable[[], VecEnv]:
        block = replace(self._config.env.eval, total_num_envs=self._plan.num_eval_envs)
        return self._create(self._plan.of("env")[share.worker], block, "eval")

    def _create(self, process: ProcessPlan, block: EnvConfig, name: EnvName) -> Callable[[], VecEnv]:
        if block.num_workers is None:
            beside = sum(other.node == process.node for other in self._plan.of("env"))
            block = replace(block, num_workers=max(1, self._num_cores(process) // beside))
        chunk = self._config.actor.model.num_action_chunks
        return functools.partial(self._makers.create_env, block, name, chunk, self._seed)

    def _num_cores(self, process: ProcessPlan) -> int:
        """Of the machine of a process."""
        return self._machines.resources.nodes[process.node].num_cores

    def _of(self, role: Role) -> list[Any]:
        """The workers of a role, by rank."""
        return [self._workers[process.name] for process in self._plan.of(role)]

    def collect(self, update: int, should_stop: Callable[[], bool]) -> Collected:
        """See `Engine.collect`."""
        return self._lasting(lambda: self._collect(update, should_stop), should_stop)

    def _collect(self, update: int, should_stop: Callable[[], bool]) -> Collected:
        started = time.monotonic()
        self._snapshot = self._snapshot or self._taken()
        rolled = self._rolled(update)
        of_ranks: list[Rolled] = self._all([reply[0] for reply in rolled], should_stop)
        given = self._handed_over([reply[1:] for reply in rolled])
        prepared = self._all(
            [actor.prepare.remote(update, *parts) for actor, parts in zip(self._of("actor"), given, strict=True)]
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
        for rank, worker in enumerate(self._of("rollout")):
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
            self._all(
                [
                    *(actor.send_weights.remote() for actor in self._of("actor")),
                    *(worker.receive_weights.remote() for worker in self._of("rollout")),
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
        replies = [actor.update.remote(update, self._call) for actor in self._of("actor")]
        if overlaps:
            envs = self._env_state(is_updated=True)
            self._prefetched = update + 1, self._roll_out(update + 1)
        metrics = self._all(replies, should_abandon)[0]
        self._relay()
        self._snapshot = self._taken(envs or self._env_state(is_updated=True))
        self._version += 1
        return metrics

    def _env_state(self, *, is_updated: bool = False) -> Any:
        """Reference to the state of all environments, after telling that an update has been made of them."""
        if is_updated:
            for worker in self._of("rollout"):
                worker.updated.remote()
        first, *_ = [worker.env_state.remote() for worker in self._of("rollout")]
        return first

    def _taken(self, envs: Any = None) -> tuple[Any, Any]:
        """References to the state of training and environments, which is complete and outlasts their processes."""
        training = [actor.snapshot.options(num_returns=2).remote() for actor in self._of("actor")]
        envs = envs or self._env_state()
        self._all([*(is_there for is_there, _ in training), envs])
        return training[0][1], envs

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
        workers = self._of("rollout")
        num_recorded = 0 if recorder is None else recorder.num_episodes
        finished: list[list[EpisodeResult]] = [[] for _ in workers]

        def interrupted() -> bool:
            replies = [worker.finished_episodes.remote(len(own)) for worker, own in zip(workers, finished, strict=True)]
            for own, new in zip(finished, self._all(replies), strict=True):
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
        """Start the processes without environments, whose state after the last finished update is returned."""
        if self._snapshot is None:
            raise lost
        self.close(0.0)
        self._start(simulates=False)
        training, envs = self._snapshot
        self._all([actor.restore.remote(training) for actor in self._of("actor")])
        return envs

    def _save(self, envs: Any, folder: Path, step: int, state: Mapping[str, JSON], *, export: bool) -> None:
        warn_of_new_episodes(f"The checkpoint of step {step}", self._all([envs])[0], self._config)
        self._all([actor.save.remote(folder, step, state, envs, export=export) for actor in self._of("actor")])

    def load(self, checkpoint: Checkpoint) -> None:
        """See `Engine.load`."""
        self._loaded = checkpoint
        envs = ray.put(pack(checkpoint.tensors))
        warn_of_new_episodes(str(checkpoint.path), checkpoint.tensors, self._config)
        self._all([actor.load.remote(checkpoint.path) for actor in self._of("actor")])
        self._all([worker.load_env_state.remote(envs) for worker in self._of("rollout")])
        self._relay()

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
        self._lose(error)
        if isinstance(error, SimulatorError) or self._restarts >= self._config.runner.max_restarts:
            raise error  # simulators have been started again already, by those who act in them
        self._restarts += 1

    def _lose(self, error: LostError) -> None:
        self._lost = error
        self.close(0.0)

    def _begin_again(self, lost: LostError, should_stop: Callable[[], bool]) -> None:
        """Start all processes anew, in the state after the last finished update."""
        started = time.monotonic()
        self.close(0.0)
        self._start(should_stop)
        if self._snapshot is not None:
            training, envs = self._snapshot
            self._all([actor.restore.remote(training) for actor in self._of("actor")])
            self._all([worker.load_env_state.remote(envs) for worker in self._of("rollout")])
        elif self._loaded is not None:
            self.load(self._loaded)
        self._lost = None
        _log.warning(
            "%s All processes were started again in %.1f s, in the state after the last finished update"
            " (runner.max_restarts: %d of %d without an update in between).",
            lost,
            time.monotonic() - started,
            self._restarts,
            self._config.runner.max_restarts,
        )

    def _all(self, replies: Sequence[Any], should_stop: Callable[[], bool] | None = None) -> list[Any]:
        """See `results`; the ranks are told to end what they do once `should_stop` says so."""
        return results(replies, should_stop, self._tell_to_stop)

    def _tell_to_stop(self) -> None:
        for worker in self._workers.values():
            worker.stop.remote(self._call)

    def _relay(self) -> None:
        """Log here what the processes have logged, once where several say the same."""
        told = self._all([worker.messages.remote() for worker in self._workers.values()])
        for level, text in dict.fromkeys(message for of_rank in told for message in of_rank):
            _log.log(level, text)

    def close(self, deadline: float = _CLOSE_S) -> None:
        """Stop all processes, which have `deadline` seconds to stop their simulators themselves."""
        living = [*self._workers.values(), *self._hosts]
        if living and deadline:
            ray.wait([process.close.remote() for process in living], num_returns=len(living), timeout=deadline)
        for process in living:
            ray.kill(process)
        self._workers, self._hosts = {}, []


def _join(parts: Sequence[Callable[[], VecEnv]]) -> VecEnv:
    made = [create() for create in parts]
    return made[0] if len(made) == 1 else JoinedVecEnv(made)
