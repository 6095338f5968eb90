"""The processes of a run: started together, waited for together, ended together."""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from regrasp.engine.placement import EnvShare, Plan, ProcessPlan
from regrasp.engine.ray.cluster import Machines, free_port, number_of, on_node
from regrasp.engine.ray.environments import EnvHost, HostedVecEnv
from regrasp.engine.ray.nodes import end_hung, last_words
from regrasp.engine.ray.snapshots import BESIDE
from regrasp.engine.ray.waiting import Patience, results
from regrasp.engine.ray.worker import Assignment, Worker
from regrasp.envs.config import EnvConfig, EnvName
from regrasp.envs.contract import Capabilities, EnvSpec, VecEnv
from regrasp.envs.joined import JoinedVecEnv
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.cluster import Role
from regrasp.logging.progress import progress
from regrasp.models.contract import Policy

_log = logging.getLogger(__name__)

CLOSE_S = 10.0
_NUM_SHOWN = 8
"""Names of processes on one line."""
Result = TypeVar("Result")

CreateEnv = Callable[[EnvConfig, EnvName, int, int], VecEnv]
"""As `envs.registry.create_env`."""
CreatePolicy = Callable[[ExperimentConfig, EnvSpec, EnvSpec | None], Policy]
"""From the experiment, and what the environments of training and of evaluation offer."""
Offered = tuple[EnvSpec, Capabilities, EnvSpec | None]
"""What the environments of training and, where there are any, of evaluation offer."""


@dataclass(frozen=True)
class Makers:
    """What the processes make their parts with; both are functions of a module, so that they can be sent."""

    create_env: CreateEnv
    create_policy: CreatePolicy


class Processes:
    """The env, rollout and actor processes of a run, each of which is a Ray actor.

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
        self._hosts: list[Any] = []
        self._workers: dict[str, Any] = {}
        self._meeting: Path | None = None
        """The file at which the present processes have met."""
        self._offered: Offered | None = None

    def start(self, interrupt: Callable[[], bool], *, simulates: bool) -> Offered:
        """Start all processes and have them meet.

        Args:
            interrupt: Asked meanwhile; it may raise.
            simulates: Whether environments are started too.

        Returns:
            What the environments offer, or offered when they were started last.

        Raises:
            LostError: A process has died, or does not get on.
        """
        self._meeting = None
        interrupt()
        if self._env_is_apart and simulates:
            self._hosts = [self._host(process) for process in self._plan.of("env")]
        meeting = self._new_meeting()
        for process in self._plan.processes:
            if process.roles & {"actor", "rollout"}:
                self._workers[process.name] = self._worker(process, meeting)
        with self._shown(interrupt) as look:
            return self._get_ready(look, simulates=simulates)

    @contextlib.contextmanager
    def _shown(self, interrupt: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
        """Show which processes are there; what is yielded looks for them, and asks `interrupt` too."""
        awaited = {process.ready.remote(): name for name, process in self._by_name().items()}
        ready: list[str] = []
        with progress("Starting processes", len(awaited)) as bar:

            def look() -> bool:
                for reply in ray.wait([*awaited], num_returns=len(awaited), timeout=0)[0] if awaited else ():
                    name = awaited.pop(reply)
                    with contextlib.suppress(RayError):  # it has died, which what is waited for tells
                        ray.get(reply)
                        ready.append(name)
                        bar.advance(ready=", ".join(ready[-_NUM_SHOWN:]))
                return interrupt()

            yield look
            look()

    def _get_ready(self, interrupt: Callable[[], bool], *, simulates: bool) -> Offered:
        if simulates:
            self.all([host.start.remote() for host in self._hosts], interrupt)
            created = [
                self._workers[process.name].create_envs.remote(*self._environments(rank))
                for rank, process in enumerate(self._plan.of("rollout"))
            ]
            self._offered = self.all(created, interrupt)[0]
        assert self._offered is not None
        train, _, evaluation = self._offered
        self.all([worker.start.remote(train, evaluation) for worker in self._workers.values()], interrupt)
        self.relay()
        return self._offered

    @property
    def _env_is_apart(self) -> bool:
        return self._plan.of("env") != self._plan.of("rollout")

    def _by_name(self) -> dict[str, Any]:
        hosts = zip(self._plan.of("env"), self._hosts, strict=False)  # none where env is not apart
        return {**{process.name: host for process, host in hosts}, **self._workers}

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
        return self._actor(Worker, process, concurrency_groups={"control": 1, BESIDE: 1}).remote(assignment)

    def _actor(self, kind: type, process: ProcessPlan, **options: Any) -> Any:
        settings: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": on_node(self._machines.ids[process.node])}
        named = type(process.name, (kind,), {})  # as which `ps` and errors show it
        return ray.remote(**settings, **options)(named)

    def _new_meeting(self) -> str:
        """Where the processes meet: at a file in a cluster of this run's own, else at a port of the first actor's.

        The file is new for every start: processes that meet where others have met wait for those.
        """
        if self._machines.is_own:
            self._meeting = self._machines.folder / f"meeting-{secrets.token_hex(8)}"
            return f"file://{self._meeting}"
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

    def of(self, role: Role) -> list[Any]:
        """The workers of a role, by rank."""
        return [self._workers[process.name] for process in self._plan.of(role)]

    def all(
        self,
        replies: Sequence[Any],
        should_stop: Callable[[], bool] | None = None,
        stop: Callable[[], None] | None = None,
    ) -> list[Any]:
        """What all processes return, see `results`; they may be silent as long as `runner.process_timeout_s` says."""
        env = self._config.env
        longest = max(max(vars(block.timeouts).values()) for block in (env.train, env.eval))
        seconds = self._config.runner.process_timeout_s
        problem = f"No process of the run gets on any more (runner.process_timeout_s: {seconds:g})."
        return results(replies, should_stop, stop, Patience(seconds + longest, problem, self._workers))

    def stop(self, call: int) -> None:
        """Have the rollouts, updates or evaluations of a call, and of earlier ones, end early."""
        for worker in self._workers.values():
            worker.stop.remote(call)

    def relay(self) -> None:
        """Log here what the processes have logged, once where several say the same."""
        told = self.all([worker.messages.remote() for worker in self._workers.values()])
        for level, text in dict.fromkeys(message for of_rank in told for message in of_rank):
            _log.log(level, text)

    def last_words(self) -> str:
        """The end of what each process has written that has died, with the place of the file; empty if none has."""
        return "\n".join(filter(None, self._of_each_node(last_words)))

    def _of_each_node(self, look: Callable[[Machines, int, Mapping[str, int]], Result]) -> list[Result]:
        """What `look` finds of the processes of each machine, by name their numbers there."""
        pids: dict[int, dict[str, int]] = {}
        actors = self._by_name()
        for process in self._plan.processes:
            if process.name in actors and (pid := number_of(actors[process.name])):
                pids.setdefault(process.node, {})[process.name] = pid
        return [look(self._machines, node, own) for node, own in pids.items()]

    def close(self, deadline: float = CLOSE_S) -> None:
        """End all processes.

        Args:
            deadline: Seconds that they have to stop their simulators themselves.
        """
        living = list(self._by_name().values())
        silent = living
        if living and deadline:
            closing = [process.close.remote() for process in living]
            _, silent = ray.wait(closing, num_returns=len(living), timeout=deadline)
        for process in living:
            ray.kill(process)
        if silent:
            self._of_each_node(end_hung)
        self._workers, self._hosts = {}, []
        if self._meeting is not None:
            self._meeting.unlink(missing_ok=True)


def _join(parts: Sequence[Callable[[], VecEnv]]) -> VecEnv:
    made = [create() for create in parts]
    return made[0] if len(made) == 1 else JoinedVecEnv(made)
