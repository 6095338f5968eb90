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
from ray.exceptions import RayActorError, RayTaskError

from regrasp.checkpoint.plain import JSON
from regrasp.checkpoint.read import Checkpoint
from regrasp.engine.base import Collected, Engine
from regrasp.engine.handover import receivers
from regrasp.engine.placement import EnvShare, Plan, ProcessPlan
from regrasp.engine.ray.cluster import Machines, free_port, on_node
from regrasp.engine.ray.environments import EnvHost, HostedVecEnv
from regrasp.engine.ray.wire import pack
from regrasp.engine.ray.worker import Assignment, Rolled, Worker
from regrasp.envs.config import EnvConfig, EnvName
from regrasp.envs.contract import EnvSpec, VecEnv
from regrasp.envs.joined import JoinedVecEnv
from regrasp.errors import RegraspError, SimulatorError, UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.cluster import Role
from regrasp.models.contract import Policy
from regrasp.rollout.episodes import EpisodeResult
from regrasp.rollout.evaluation import VideoRecorder

_log = logging.getLogger(__name__)

_POLL_S = 0.05
_GRACE_S = 10.0
"""How long the other ranks have to end what they do, once one has failed."""
_CLOSE_S = 10.0
_ANEW = "a run that goes on from it begins anew the episodes that were under way (env.train.auto_reset)."
Result = TypeVar("Result")
CreateEnv = Callable[[EnvConfig, EnvName, int, int], VecEnv]
"""As `envs.registry.create_env`."""
CreatePolicy = Callable[[ExperimentConfig, EnvSpec, EnvSpec | None], Policy]
"""From the experiment, and what the environments of training and of evaluation offer."""


class LostError(RegraspError):
    """A process of the run has died or failed; what it did is begun again."""

    exit_code = 3


@dataclass(frozen=True)
class Makers:
    """What the processes make their parts with; both are functions of a module, so that they can be sent."""

    create_env: CreateEnv
    create_policy: CreatePolicy


_EXPECTED = (RegraspError, InterruptedError)


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
        self._starts = 0
        self._loaded: Checkpoint | None = None
        self._snapshot: tuple[Any, Any] | None = None
        """References to the training's and the environments' state after the last update."""
        self._folder = tempfile.TemporaryDirectory(prefix="regrasp-")
        self._start()

    def _start(self) -> None:
        """Start all processes and have them meet."""
        self._hosts: list[Any] = []
        self._workers: dict[str, Any] = {}
        self._given: int | None = None
        """The version that the rollout ranks act with."""
        self._prefetched: tuple[int, list[list[Any]]] | None = None
        """A rollout that overlaps an update, and the number of the update that it is for."""
        try:
            if self._env_is_apart:
                self._hosts = [self._host(process) for process in self._plan.of("env")]
            meeting = self._meeting()
            for process in self._plan.processes:
                if process.roles & {"actor", "rollout"}:
                    self._workers[process.name] = self._worker(process, meeting)
            offered = self._all(
                [
                    self._workers[process.name].create_envs.remote(*self._environments(rank))
                    for rank, process in enumerate(self._plan.of("rollout"))
                ]
            )
            train, self.capabilities, evaluation = offered[0]
            self.step_seconds = train.step_seconds
            self._all([worker.start.remote(train, evaluation) for worker in self._workers.values()])
            self._relay()
        except BaseException:
            self.close()
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
        return ray.remote(**settings, **options)(kind)

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
        return self._lasting(lambda: self._collect(update, should_stop))

    def _collect(self, update: int, should_stop: Callable[[], bool]) -> Collected:
        started = time.monotonic()
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
        metrics = self._lasting(
            lambda: self._update(update, should_abandon), lambda: self._collect(update, lambda: False)
        )
        self._restarts = 0
        return metrics

    def _update(self, update: int, should_abandon: Callable[[], bool]) -> dict[str, float]:
        overlaps = self._config.runner.max_staleness > 0
        if overlaps:
            self._give_weights()
        self._call += 1
        replies = [actor.update.remote(update, self._call) for actor in self._of("actor")]
        if overlaps:
            self._prefetched = update + 1, self._roll_out(update + 1)
        metrics = self._all(replies, should_abandon)[0]
        self._relay()
        self._version += 1
        if not overlaps:
            self._all([worker.updated.remote() for worker in self._of("rollout")])
        self._snapshot = self._on_first("actor", "snapshot"), self._on_first("rollout", "env_state")
        return metrics

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

        found = self._lasting(lambda: self._evaluate(num_episodes, tell, recorder))
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
            for own, new in zip(finished, self._get(replies), strict=True):
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
        """See `Engine.save`."""
        self._lasting(lambda: self._save(folder, step, state, export=export))

    def _save(self, folder: Path, step: int, state: Mapping[str, JSON], *, export: bool) -> None:
        envs = self._on_first("rollout", "env_state")
        if self._get([self._of("rollout")[0].begins_anew.remote(envs)])[0]:
            _log.warning("The checkpoint of step %d holds no simulator state: %s", step, _ANEW)
        self._all([actor.save.remote(folder, step, state, envs, export=export) for actor in self._of("actor")])

    def load(self, checkpoint: Checkpoint) -> None:
        """See `Engine.load`."""
        self._loaded = checkpoint
        envs = ray.put(pack(checkpoint.tensors))
        if self._get([self._of("rollout")[0].begins_anew.remote(envs)])[0]:
            _log.warning("%s holds no simulator state: %s", checkpoint.path, _ANEW)
        self._all([actor.load.remote(checkpoint.path) for actor in self._of("actor")])
        self._all([worker.load_env_state.remote(envs) for worker in self._of("rollout")])
        self._relay()

    def _on_first(self, role: Role, method: str) -> Any:
        """Reference to what a method returns on the first rank of a role; the others help it."""
        first, *_ = [getattr(worker, method).remote() for worker in self._of(role)]
        return first

    def _lasting(self, action: Callable[[], Result], before: Callable[[], Any] | None = None) -> Result:
        """Do something; where a process is lost over it, begin all processes again after the last finished update.

        Args:
            action: What to do.
            before: What has to be done first where the processes are new.
        """
        is_new = False
        while True:
            try:
                if is_new and before is not None:
                    before()
                return action()
            except (LostError, SimulatorError) as error:
                self._begin_again(error)
                is_new = True

    def _begin_again(self, error: RegraspError) -> None:
        """Start all processes anew, in the state after the last finished update.

        Raises:
            RegraspError: `error`, which has come too often; what there is can be saved.
        """
        most = self._config.runner.max_restarts
        started = time.monotonic()
        self.close()
        self._start()
        if self._snapshot is not None:
            training, envs = self._snapshot
            self._all([actor.restore.remote(training) for actor in self._of("actor")])
            self._all([worker.load_env_state.remote(envs) for worker in self._of("rollout")])
        elif self._loaded is not None:
            self.load(self._loaded)
        if self._restarts >= most:
            raise error
        self._restarts += 1
        _log.warning(
            "%s All processes were started again in %.1f s, from the last finished update (runner.max_restarts: %d of"
            " %d without an update between).",
            error,
            time.monotonic() - started,
            self._restarts,
            most,
        )

    def _all(self, replies: Sequence[Any], should_stop: Callable[[], bool] | None = None) -> list[Any]:
        """Wait for all ranks.

        Args:
            replies: References to what they return.
            should_stop: Asked meanwhile; once it says so, the ranks are told to end what they do.

        Raises:
            LostError: A process has died.
        """
        waiting, errors, deadline = list(replies), list[BaseException](), float("inf")
        asks = should_stop
        while waiting and time.monotonic() < deadline:
            done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_POLL_S)
            for reply in done:
                try:
                    ray.get(reply)
                except RayTaskError as error:
                    errors.append(error.cause if isinstance(error.cause, _EXPECTED) else error)
                except RayActorError as error:
                    errors.append(LostError(f"A process of the run has died: {_reason(error)}."))
            if errors:
                deadline = min(deadline, time.monotonic() + _GRACE_S)
            if waiting and asks is not None and asks():
                asks = None
                for worker in self._workers.values():
                    worker.stop.remote(self._call)
        if errors:
            raise min(errors, key=_gravity)
        return ray.get(list(replies))

    def _relay(self) -> None:
        """Log here what the processes have logged, once where several say the same."""
        told = self._all([worker.messages.remote() for worker in self._workers.values()])
        for level, text in dict.fromkeys(message for of_rank in told for message in of_rank):
            _log.log(level, text)

    def _get(self, replies: Sequence[Any]) -> list[Any]:
        return self._all(replies)

    def close(self) -> None:
        """Stop all processes."""
        living = [*self._workers.values(), *self._hosts]
        ray.wait([process.close.remote() for process in living], num_returns=len(living), timeout=_CLOSE_S)
        for process in living:
            ray.kill(process)
        self._workers, self._hosts = {}, []


def _join(parts: Sequence[Callable[[], VecEnv]]) -> VecEnv:
    made = [create() for create in parts]
    return made[0] if len(made) == 1 else JoinedVecEnv(made)


def _gravity(error: BaseException) -> int:
    """Which of several ranks' errors tells most: that a process died, then what one found, then who only heard."""
    kinds = (LostError, (SimulatorError, InterruptedError, UserError), RegraspError)
    return next((place for place, kind in enumerate(kinds) if isinstance(error, kind)), len(kinds))


def _reason(error: RayActorError) -> str:
    return " ".join(str(error).split())
