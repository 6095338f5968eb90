"""A process that rolls out, trains, or both."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import ray
import torch
import torch.distributed as dist
from torch import Tensor

import regrasp
from regrasp.checkpoint.plain import JSON
from regrasp.checkpoint.read import read_checkpoint
from regrasp.engine.compiling import compile_as_configured
from regrasp.engine.handover import join, split
from regrasp.engine.placement import Plan, ProcessPlan
from regrasp.engine.ray.nodes import settle
from regrasp.engine.ray.wire import HostMemory, Packed, PackedPart, pack, pack_tree, unpack, unpack_tree
from regrasp.engine.rollouts import Gathered, Rollouts
from regrasp.engine.training import Prepared, Training
from regrasp.engine.weights import WeightSync
from regrasp.envs.contract import Capabilities, EnvSpec, VecEnv
from regrasp.experiment import ExperimentConfig
from regrasp.learner.precision import ActingPolicy, apply_precision
from regrasp.models.contract import Policy
from regrasp.ranks import ProcessGroupRanks, Ranks, group_of
from regrasp.rollout.decisions import Decisions
from regrasp.rollout.episodes import EpisodeResult
from regrasp.rollout.evaluation import RecordedEpisode, VideoRecorder

_COLLECTIVE_TIMEOUT = timedelta(hours=1)
"""A rank may wait this long for the slowest; one that died is noticed at once, by whoever started it."""


@dataclass(frozen=True)
class Assignment:
    """What a worker is told when it begins."""

    config: ExperimentConfig
    seed: int
    run_dir: Path
    plan: Plan
    process: ProcessPlan
    num_threads: int
    create_policy: Callable[[ExperimentConfig, EnvSpec, EnvSpec | None], Policy]
    meeting: str
    """`file://` or `tcp://`, where the processes with weights meet."""
    folder: Path
    """In which the command was called."""
    address: str
    """Of the worker's machine."""


@dataclass(frozen=True)
class Rolled:
    """What is told of a rollout."""

    episodes: list[EpisodeResult]
    seconds: float


class Worker:
    """A Ray actor with one rank of the actor, of the rollout, or of both.

    Its methods are called on all ranks of a role at the same time, but for those of the group `control`, which answer
    while another method runs.
    """

    def __init__(self, assignment: Assignment) -> None:
        settle(assignment.folder, assignment.address)
        self._assignment = assignment
        self._process = assignment.process
        self._device = torch.device(assignment.process.device)
        self._stopped_call = -1
        self._progress = 0
        self._finished: list[EpisodeResult] = []
        self._envs: list[VecEnv] = []
        self._eval_env: VecEnv | None = None
        self._training: Training | None = None
        self._rollouts: Rollouts | None = None
        self._decisions: Decisions | None = None
        self._sync: WeightSync | None = None
        self._received: dict[str, Tensor] = {}
        self._memory = HostMemory()
        self._log = _Messages()
        logging.getLogger(regrasp.__name__).addHandler(self._log)
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")

    def create_envs(
        self, stages: Sequence[Callable[[], VecEnv]], evaluation: Callable[[], VecEnv] | None
    ) -> tuple[EnvSpec, Capabilities, EnvSpec | None]:
        """Start, or reach, this rank's environments; returns what those of training and of evaluation offer."""
        for create in stages:
            self._envs.append(create())
            self._progress += 1
        self._eval_env = None if evaluation is None else evaluation()
        offered = None if self._eval_env is None else self._eval_env.spec
        return self._envs[0].spec, self._envs[0].capabilities, offered

    def start(self, train: EnvSpec, evaluation: EnvSpec | None) -> None:
        """Meet the other processes, and make policy, optimizer and, where there are environments, episodes.

        Raises:
            UserError: The policy cannot be had, or does not fit.
        """
        given = self._assignment
        torch.set_num_threads(given.num_threads)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        ranks = self._meet()
        config, seed, device = given.config, given.seed, self._device
        policy = given.create_policy(config, train, evaluation)
        algorithm = config.algorithm.build()
        learner = acting = source = None
        if "actor" in ranks:
            self._training = Training(config, policy, algorithm, seed, device, given.run_dir, ranks["actor"])
            learner = self._training.learner
            source = learner.sharded or learner.bfloat16
        if "rollout" in ranks and self._envs:
            if self._training is None:
                apply_precision(policy, config.actor.model, device)
                policy.to(device)
                algorithm.parameters(policy, config.actor.model.trainable)
                self._received = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
            acting = ActingPolicy(policy, config.actor.model, device, source)
        compile_as_configured(
            config, device, learner=learner, acting=acting, stages=self._envs, eval_env=self._eval_env
        )
        if acting is not None:
            self._rollouts = Rollouts(
                config, acting, self._envs, seed, device, algorithm, self._eval_env, ranks["rollout"]
            )
        self._share_weights()

    def _members(self) -> list[ProcessPlan]:
        """The processes with weights, in the order of their numbers among those that meet; the first trains."""
        plan = self._assignment.plan
        return [*plan.of("actor"), *(process for process in plan.of("rollout") if "actor" not in process.roles)]

    def _share_weights(self) -> None:
        """Make the group of those that weights go to, and of the one that they come from.

        Comes after all groups that only their members make: torch names those by how many a process is in.
        """
        members = self._members()
        receivers = [number for number, member in enumerate(members) if "actor" not in member.roles]
        if receivers:
            group = dist.new_group([0, *receivers])
            if members.index(self._process) in (0, *receivers):
                self._sync = WeightSync(cast(dist.ProcessGroup, group), 0, self._device)

    def _meet(self) -> dict[str, Ranks]:
        """This process's ranks by role."""
        own, members = self._process, self._members()
        if len(members) == 1:
            return {role: Ranks() for role in own.roles}
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if self._device.type == "cuda" else "gloo",
            init_method=self._assignment.meeting,
            rank=members.index(own),
            world_size=len(members),
            timeout=_COLLECTIVE_TIMEOUT,
        )
        ranks: dict[str, Ranks] = {}
        for role in ("actor", "rollout"):
            numbers = [number for number, member in enumerate(members) if role in member.roles]
            if role in own.roles:
                ranks[role] = ProcessGroupRanks(self._device, group_of(numbers)) if len(numbers) > 1 else Ranks()
        return ranks

    @property
    def training(self) -> Training:
        """Of a rank of the actor."""
        assert self._training is not None
        return self._training

    @property
    def rollouts(self) -> Rollouts:
        """Of a rank of the rollout."""
        assert self._rollouts is not None
        return self._rollouts

    def send_weights(self) -> None:
        """Give the trained weights to the ranks that act."""
        weights = self.training.weights()
        if self._sync is None:
            for _ in weights:  # sharded ones are gathered by all ranks together
                pass
        else:
            self._sync.send(weights)

    def receive_weights(self) -> None:
        """Take over what `send_weights` gives."""
        assert self._sync is not None
        self._sync.receive(self._received)

    def collect(self, update: int, call: int) -> Rolled | tuple[Rolled | PackedPart, ...]:
        """Roll out; where another process trains, the decisions are returned too, in a part for each receiver."""
        gathered = self.rollouts.collect(update, self._stopped(call))
        rolled = Rolled(gathered.episodes, gathered.seconds)
        if self._training is not None:
            self._decisions = gathered.decisions
            return rolled
        return rolled, *self._parts(gathered)

    def _parts(self, gathered: Gathered) -> list[PackedPart]:
        plan = self._assignment.plan
        parts = split(gathered.decisions, self._process.index["rollout"], plan.num_rollouts, plan.num_actors)
        return [PackedPart.of(part) for part in parts]

    def prepare(self, update: int, *parts: PackedPart) -> Prepared:
        """Take over decisions and let the algorithm prepare them."""
        decisions, self._decisions = self._decisions, None
        if decisions is None:
            device = self._device if self._assignment.config.runner.feature_storage == "device" else None
            decisions = join([part.unpack() for part in parts], self.training.ranks, device)
        return self.training.prepare(decisions, update)

    def update(self, update: int, call: int) -> dict[str, float]:
        """Train on what was prepared."""
        return self.training.update(update, self._stopped(call))

    def updated(self) -> None:
        """The update is made, see `Rollouts.updated`."""
        self.rollouts.updated()

    def evaluate(
        self, num_episodes: int, num_recorded: int, call: int
    ) -> tuple[list[EpisodeResult], list[RecordedEpisode]]:
        """Results of this rank's episodes, and what was recorded of them."""
        self._finished = []
        recorded: list[RecordedEpisode] = []

        def finished(result: EpisodeResult) -> None:
            self._finished.append(result)

        recorder = VideoRecorder(num_recorded, recorded.append) if num_recorded else None
        return self.rollouts.evaluate(num_episodes, finished, recorder, self._stopped(call)), recorded

    def _stopped(self, call: int) -> Callable[[], bool]:
        """Asked again and again by what a call does; each time is a sign that it gets on."""

        def asked() -> bool:
            self._progress += 1
            return self._stopped_call >= call

        return asked

    def env_state(self) -> Packed | None:
        """The environments' state of all ranks, on the first; see `Rollouts.state`."""
        whole = self.rollouts.state()
        return None if self._process.index["rollout"] else pack(whole)

    def load_env_state(self, state: Packed) -> None:
        """Restore what `env_state` returned."""
        self.rollouts.load_state({name: tensor.clone() for name, tensor in unpack(state).items()})

    def save(self, folder: Path, step: int, state: Mapping[str, JSON], envs: Packed, *, export: bool) -> None:
        """Write a checkpoint; the first rank does, with the help of all."""
        self.training.save(folder, step, state, unpack(envs), export=export)

    def load(self, checkpoint: Path) -> None:
        """Restore weights and optimizer of a checkpoint."""
        self.training.load(read_checkpoint(checkpoint))

    def snapshot(self) -> tuple[None, Any]:
        """What changes in training, on the first rank; what can be waited for without fetching it comes first.

        May run while another method does, as long as that leaves the training's state alone.
        """
        with _beside(self._device):
            state = self.training.snapshot()
            return None, None if self._process.index["actor"] else pack_tree(state, self._memory)

    def restore(self, snapshot: Any) -> None:
        """Take over a snapshot of another process like this one."""
        self.training.restore(*unpack_tree(snapshot))

    @ray.method(concurrency_group="control")
    def ready(self) -> None:
        """Answer, once this process is there."""

    @ray.method(concurrency_group="control")
    def progress(self) -> int:
        """How much has been done; what counts is that it rises while this process is at work."""
        return self._progress

    @ray.method(concurrency_group="control")
    def messages(self) -> list[tuple[int, str]]:
        """What was logged since this was last asked: levels and texts."""
        return self._log.taken()

    @ray.method(concurrency_group="control")
    def stop(self, call: int) -> None:
        """Have a rollout, an update or an evaluation end early."""
        self._stopped_call = call

    @ray.method(concurrency_group="control")
    def finished_episodes(self, known: int) -> list[EpisodeResult]:
        """Episodes of the evaluation under way that have ended, without the first `known`."""
        return self._finished[known:]

    def close(self) -> None:
        """Stop this rank's simulators."""
        for env in (*self._envs, self._eval_env):
            if env is not None:
                env.close()


@contextlib.contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """Use a GPU beside what this process has asked of it, and after what it has asked so far."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_device(device)  # which every thread does for itself
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.default_stream())
    with torch.cuda.stream(stream):
        yield


class _Messages(logging.Handler):
    """Keeps warnings until they are asked for."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append((record.levelno, record.getMessage()))

    def taken(self) -> list[tuple[int, str]]:
        kept, self._kept = self._kept, []
        return kept
