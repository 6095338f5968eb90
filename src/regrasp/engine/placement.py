"""The plan of a run: which process plays which roles, where, and with which environments. Starts nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal

from regrasp.device import available_cores, available_memory
from regrasp.envs.config import TrainEnvConfig
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.cluster import ROLES, ClusterConfig, Role
from regrasp.extras import install_command
from regrasp.logging.text import byte_size, counted

Layout = Literal["colocated", "hybrid", "disaggregated"]
_KEY = "cluster.component_placement"
_PROCESS_BYTES = 400_000_000
"""Host memory of a process that has imported torch, at least."""


class ShortageError(UserError):
    """The machines are too small for a placement that others would be large enough for."""


@dataclass(frozen=True)
class NodeResources:
    """What one machine offers."""

    accelerators: tuple[int, ...]
    """Bytes of memory of each."""
    num_cores: int
    memory: int
    """Bytes of host memory that are free."""


@dataclass(frozen=True)
class Resources:
    """The machines of a run, in order."""

    nodes: tuple[NodeResources, ...]

    @staticmethod
    def of_this_machine(num_nodes: int = 1) -> Resources:
        """What this machine offers; or so many machines that are like this one."""
        import torch

        devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        memory = tuple(torch.cuda.get_device_properties(device).total_memory for device in devices)
        return Resources((NodeResources(memory, available_cores(), available_memory()),) * num_nodes)

    def enough_for(self, cluster: ClusterConfig) -> Resources:
        """Machines like these, with as many accelerators and as much host memory as a placement asks for."""
        numbers = [number for own in cluster.numbers().values() for number in own or ()]
        per_node = -(-(1 + max(numbers, default=0)) // len(self.nodes))
        memory = _PROCESS_BYTES * max(1, len(numbers))
        nodes = (
            replace(node, accelerators=node.accelerators[:1] * per_node, memory=max(memory, node.memory))
            for node in self.nodes
        )
        return Resources(tuple(nodes))


@dataclass(frozen=True)
class ProcessPlan:
    """One process."""

    name: str
    """Its roles and its number among the processes of these roles, such as `actor+rollout 0`."""
    index: Mapping[Role, int]
    """Its rank in each of its roles."""
    node: int
    device: str
    """`cuda:1`, by its index on the node; or `cpu`."""

    @property
    def roles(self) -> frozenset[Role]:
        """What it does."""
        return frozenset(self.index)


@dataclass(frozen=True)
class EnvShare:
    """Training environments that one env worker steps together, for one rollout worker."""

    worker: int
    """Rank of the env worker."""
    rollout: int
    """Rank of the rollout worker that acts in them."""
    stage: int
    """Of `rollout.pipeline_stage_num`."""
    start: int
    """Number of the first among all training environments of the run."""
    stop: int

    def of(self, block: TrainEnvConfig) -> TrainEnvConfig:
        """The block `env.train` of these environments alone."""
        return replace(block, total_num_envs=self.stop - self.start)


@dataclass(frozen=True)
class Plan:
    """All processes of a run. A stage of a rollout worker is one range of environments, and so are all its stages."""

    processes: tuple[ProcessPlan, ...]
    env_shares: tuple[EnvShare, ...]
    """In the order of their environments."""
    num_eval_envs: int
    """Evaluation environments of each pair of an env worker and a rollout worker that it works for."""

    def of(self, role: Role) -> tuple[ProcessPlan, ...]:
        """The processes of a role, by rank."""
        found = [process for process in self.processes if role in process.roles]
        return tuple(sorted(found, key=lambda process: process.index[role]))

    @property
    def num_actors(self) -> int:
        """Processes that update the policy."""
        return len(self.of("actor"))

    @property
    def num_rollouts(self) -> int:
        """Processes that act."""
        return len(self.of("rollout"))

    @property
    def num_env_workers(self) -> int:
        """Processes that have environments."""
        return len(self.of("env"))

    @property
    def is_local(self) -> bool:
        """Whether one process does everything, so that the local engine runs it."""
        return len(self.processes) == 1

    @property
    def layout(self) -> Layout:
        """How roles share processes: all of them, two, or none."""
        kinds = {process.roles for process in self.processes}
        layouts: tuple[Layout, ...] = ("colocated", "hybrid", "disaggregated")
        return layouts[len(kinds) - 1]


def place(config: ExperimentConfig, resources: Resources) -> tuple[ProcessPlan, ...]:
    """The process of every rank of every role, whatever the ranks are to divide.

    Raises:
        ShortageError: The machines lack something.
        UserError: The accelerators cannot be shared so.
    """
    cluster = config.cluster
    if cluster.num_nodes > len(resources.nodes):
        raise ShortageError(
            "There are not as many machines",
            key="cluster.num_nodes",
            value=cluster.num_nodes,
            expected=f"at most {len(resources.nodes)}, the machines of the Ray cluster",
            fix="join more machines with `ray start`, or lower cluster.num_nodes",
        )
    nodes = resources.nodes[: cluster.num_nodes]
    numbers = _all_numbers(config, nodes)
    processes = _processes(numbers, nodes)
    _check_accelerators(numbers, processes)
    _check_host(processes, nodes)
    return processes


def remarks(config: ExperimentConfig, processes: Sequence[ProcessPlan], resources: Resources) -> tuple[str, ...]:
    """What is worth a warning of the processes that `place` returned."""
    num_actors = sum("actor" in process.roles for process in processes)
    return (*_crowded(processes, resources.nodes), *config.actor.fsdp_config.idle_with(num_actors))


def plan(config: ExperimentConfig, resources: Resources) -> Plan:
    """Place every rank of every role, and divide the environments over them.

    Raises:
        ShortageError: The machines lack something.
        UserError: The sizes of the experiment do not divide over the ranks, or a setting contradicts the placement.
    """
    processes = place(config, resources)
    num_actors, num_rollouts, num_workers = (
        sum(role in process.roles for process in processes) for role in ("actor", "rollout", "env")
    )
    together = len(processes) > 1 and any({"actor", "rollout"} <= process.roles for process in processes)
    if config.runner.max_staleness and together:
        raise UserError(
            "A rollout cannot overlap the update of the process that it runs in",
            key="runner.max_staleness",
            value=config.runner.max_staleness,
            expected="0, one process, or actor and rollout on different numbers of cluster.component_placement",
            fix="set runner.max_staleness=0, or place actor and rollout apart",
        )
    model, kinds = config.actor.model, {process.device.partition(":")[0] for process in processes}
    if config.runner.max_staleness and len(processes) == 1 and any(map(model.compiles_on, kinds)):
        raise UserError(
            "CUDA graphs are not replayed by two threads",
            key="actor.model.compile",
            value=model.compile,
            expected="false, since runner.max_staleness is 1 in one process",
            fix="set runner.max_staleness=0, or place actor and rollout apart",
        )
    if config.algorithm.stores_experience and num_actors > 1:
        raise UserError(
            "Stored experience is not divided over several ranks that train",
            key=_KEY,
            value=f"actor on {num_actors} ranks",
            expected=f"one rank of the actor with algorithm.loss_type {config.algorithm.loss_type}",
            fix="place the actor on one number; rollout and env may be on several",
        )
    config.actor.fsdp_config.num_shards(num_actors)  # an error where they do not divide
    return Plan(
        processes,
        _env_shares(config, num_rollouts, num_workers),
        -(-config.env.eval.total_num_envs // max(num_rollouts, num_workers)),
    )


def require_ray(processes: Collection[ProcessPlan]) -> None:
    """Raise a `ShortageError` where several processes need Ray and it is not installed."""
    if len(processes) > 1 and find_spec("ray") is None:
        raise ShortageError(
            f"Ray starts the {len(processes)} processes of this placement, and is not installed",
            key=_KEY,
            expected="the extra regrasp[ray], or one process that plays all roles",
            fix=f"{install_command('ray')}, or write {_KEY}: {{'actor,env,rollout': 0}}",
        )


def _all_numbers(config: ExperimentConfig, nodes: Sequence[NodeResources]) -> dict[Role, tuple[int, ...]]:
    """The number of each rank of each role."""
    there = sum(len(node.accelerators) for node in nodes)
    everywhere = tuple(range(there or len(nodes)))
    numbers: dict[Role, tuple[int, ...]] = {
        role: everywhere if own is None else own for role, own in config.cluster.numbers().items()
    }
    wanted = {number for own in numbers.values() for number in own}
    if there and (missing := sorted(wanted - set(range(there)))):
        has = ", ".join(f"node {index} has {len(node.accelerators)}" for index, node in enumerate(nodes))
        raise ShortageError(
            f"The placement needs accelerators {ranges(sorted(wanted))}; {has}, and"
            f" {ranges(missing)} {'is' if len(missing) == 1 else 'are'} missing",
            key=_KEY,
            value=dict(config.cluster.component_placement),
            expected=f"'all', or numbers from 0 to {there - 1}",
            fix="place the roles on accelerators that are there, or add machines (cluster.num_nodes)",
        )
    return numbers


def _processes(numbers: Mapping[Role, tuple[int, ...]], nodes: Sequence[NodeResources]) -> tuple[ProcessPlan, ...]:
    """Roles with the same numbers share their processes."""
    sharing: dict[tuple[int, ...], list[Role]] = {}
    for role in ROLES:
        sharing.setdefault(numbers[role], []).append(role)
    accelerators = [
        (node, f"cuda:{device}") for node, own in enumerate(nodes) for device in range(len(own.accelerators))
    ]
    per_node = -(-(1 + max(map(max, numbers.values()))) // len(nodes))
    found = []
    for own, roles in sharing.items():
        for rank, number in enumerate(own):
            node, device = accelerators[number] if accelerators else (number // per_node, "cpu")
            found.append(ProcessPlan(f"{'+'.join(roles)} {rank}", dict.fromkeys(roles, rank), node, device))
    return tuple(found)


def _check_accelerators(numbers: Mapping[Role, tuple[int, ...]], processes: Sequence[ProcessPlan]) -> None:
    """Ranks of the actor exchange gradients through NCCL, which wants an accelerator for each."""
    actors = numbers["actor"]
    if processes[0].device != "cpu" and len(set(actors)) < len(actors):
        raise UserError(
            "Two ranks of the actor on one accelerator",
            key=_KEY,
            value={"actor": ranges(sorted(set(actors)))},
            expected="one process per accelerator for the actor",
            fix="place the actor without process numbers, such as actor: 0-1",
        )


def _check_host(processes: Sequence[ProcessPlan], nodes: Sequence[NodeResources]) -> None:
    for index, node in enumerate(nodes):
        count = sum(process.node == index for process in processes)
        if count * _PROCESS_BYTES > node.memory:
            raise ShortageError(
                f"{count} processes need at least {byte_size(count * _PROCESS_BYTES)} of host memory, and node {index}"
                f" has {byte_size(node.memory)} free",
                key=_KEY,
                value=f"{count} processes",
                expected=f"at most {node.memory // _PROCESS_BYTES} processes there",
                fix="place the roles on fewer numbers, or on one list of numbers that they share",
            )


def _crowded(processes: Sequence[ProcessPlan], nodes: Sequence[NodeResources]) -> tuple[str, ...]:
    counts = [sum(process.node == index for process in processes) for index in range(len(nodes))]
    return tuple(
        f"Node {index} has {counted(node.num_cores, 'core')} for {count} processes, which wait for each other."
        for index, (node, count) in enumerate(zip(nodes, counts, strict=True))
        if count > node.num_cores
    )


def _env_shares(config: ExperimentConfig, num_rollouts: int, num_workers: int) -> tuple[EnvShare, ...]:
    """The environments of every rollout worker, of each a block: stage by stage, and in a stage worker by worker."""
    total, stages = config.env.train.total_num_envs, config.rollout.pipeline_stage_num
    few, many = sorted((num_rollouts, num_workers))
    if many % few:
        raise UserError(
            f"{num_workers} env workers and {num_rollouts} rollout workers do not divide",
            key=_KEY,
            value=dict(config.cluster.component_placement),
            expected="as many env workers for every rollout worker, or as many rollout workers for every env worker",
            fix="place env and rollout on numbers of which one count is a multiple of the other",
        )
    parts, group = many * stages, config.algorithm.group_size
    words = f"{num_rollouts} rollout and {num_workers} env workers" + f" of {stages} stages each" * (stages > 1)
    if total % parts:
        raise UserError(
            f"The training environments do not divide over {words}",
            key="env.train.total_num_envs",
            value=total,
            expected=f"a multiple of {parts}",
            fix=f"set env.train.total_num_envs={max(1, round(total / parts / group)) * parts * group}, or change"
            " cluster.component_placement or rollout.pipeline_stage_num",
        )
    size = total // parts
    if size % group and parts > 1:
        raise UserError(
            f"A group would be split: {words} have {size} environments each",
            key="algorithm.group_size",
            value=group,
            expected=f"a divisor of {size}",
            fix=f"set env.train.total_num_envs to a multiple of {parts * group}, or change the placement",
        )
    per_rollout, per_worker = max(1, num_workers // num_rollouts), max(1, num_rollouts // num_workers)
    return tuple(
        EnvShare(
            worker=rollout // per_worker * per_rollout + place,
            rollout=rollout,
            stage=stage,
            start=((rollout * stages + stage) * per_rollout + place) * size,
            stop=((rollout * stages + stage) * per_rollout + place + 1) * size,
        )
        for rollout in range(num_rollouts)
        for stage in range(stages)
        for place in range(per_rollout)
    )


def ranges(numbers: Sequence[int]) -> str:
    """`0-3, 5` of rising numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
