"""What each process of a plan holds, compared with what its machine has: the part of a dry run about processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from regrasp.engine.memory import ModelMemory
from regrasp.engine.placement import Plan, ProcessPlan, Resources, ranges
from regrasp.envs.process.simulator import SimulatorSpec
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.batches import num_samples
from regrasp.experiment.cluster import ROLES
from regrasp.experiment.machine import Needs, needs_of
from regrasp.logging.text import byte_size

_USUAL_DEVICE = 80 * 2**30
"""Bytes of an accelerator, where there is none to ask."""


@dataclass(frozen=True)
class Sizing:
    """The sizes of a plan's processes."""

    plan: Plan
    config: ExperimentConfig
    resources: Resources
    """What it was planned for."""
    specs: Mapping[str, SimulatorSpec | None]
    """What is known of `env.<name>`, by name."""
    model: ModelMemory | None
    """What is known of the policy's size."""

    def lines(self) -> list[str]:
        """All of it in words; one line where a single process does everything."""
        if self.plan.is_local:
            return [f"processes: one with all roles, on {self.plan.processes[0].device}"]
        counts = ", ".join(f"{len(self.plan.of(role))} {role}" for role in ROLES)
        assumed = "" if self.config.cluster.address is None else ", on machines that are taken to be like this one"
        return [
            f"processes: {len(self.plan.processes)}, {self.plan.layout}: {counts}{assumed}",
            *self._processes(),
            *self._fits(),
            *self._update(),
        ]

    def policy_bytes(self, process: ProcessPlan) -> int | None:
        """What a process holds of the policy, and of the decisions that it trains on; activations aside."""
        if self.model is None:
            return None
        kept = self.model.kept_on_device(self.config) // self.plan.num_actors if "actor" in process.roles else 0
        policy = self.model.policy
        if "actor" in process.roles:
            policy = policy.of_rank(self.config, self.plan.num_actors)
        return policy.held(process.roles) + kept

    def needs(self, process: ProcessPlan) -> dict[str, Needs]:
        """What the environments of an env worker take, by the name of their block."""
        node, chunk = self.resources.nodes[process.node], self.config.actor.model.num_action_chunks
        neighbours = sum(other.node == process.node for other in self.plan.of("env"))
        found = {}
        for name, count in self.num_envs(process).items():
            env = getattr(self.config.env, name)
            workers = env.num_workers or max(1, node.num_cores // neighbours)
            found[name] = needs_of(
                replace(env, total_num_envs=count, num_workers=workers), name, self.specs.get(name), chunk
            )
        return found

    def needs_on(self, node: int) -> dict[str, Needs]:
        """What all environments of a machine take together, by the name of their block."""
        found: dict[str, Needs] = {}
        for process in self.plan.of("env"):
            if process.node == node:
                for name, needs in self.needs(process).items():
                    found[name] = found[name] + needs if name in found else needs
        return found

    def num_envs(self, process: ProcessPlan) -> dict[str, int]:
        """Environments of an env worker, by the name of their block."""
        own = [share for share in self.plan.env_shares if share.worker == process.index["env"]]
        counts = {"train": sum(share.stop - share.start for share in own)}
        if self.config.runner.val_check_interval > 0:
            counts["eval"] = self.plan.num_eval_envs * len({share.rollout for share in own})
        return counts

    def _processes(self) -> Iterator[str]:
        """A line for every process, or for many that are alike but for their number, device and machine."""
        alike: dict[tuple[str, str], list[ProcessPlan]] = {}
        for process in self.plan.processes:
            alike.setdefault((process.name.rpartition(" ")[0], self._holds(process)), []).append(process)
        for (roles, holds), processes in alike.items():
            for nodes, devices in _places((process.node, process.device) for process in processes):
                own = [process for process in processes if process.node in nodes]
                numbers = ranges([next(iter(process.index.values())) for process in own])
                yield f"  {roles} {numbers}: {_nodes(nodes)}, {_devices(devices)}{holds}"

    def _holds(self, process: ProcessPlan) -> str:
        text = ""
        if process.roles != {"env"} and (size := self.policy_bytes(process)) is not None:
            text += f"; policy {byte_size(size)}"
        if "env" in process.roles:
            counts = " and ".join(f"{count} of env.{name}" for name, count in self.num_envs(process).items())
            memory = sum(needs.memory for needs in self.needs(process).values())
            takes = f"about {byte_size(memory)} of host memory" if memory else "host memory known only once they run"
            text += f"; environments {counts}, {takes}"
        return text

    def _fits(self) -> Iterator[str]:
        """Whether what is on a device has room there."""
        held: dict[tuple[int, str], int] = {}
        for process in self.plan.processes:
            if size := self.policy_bytes(process):
                place = (process.node, process.device)
                held[place] = held.get(place, 0) + size
        alike: dict[tuple[int, int], list[tuple[int, str]]] = {}
        for (node, device), size in held.items():
            of = self.resources.nodes[node]
            room = of.memory if device == "cpu" else of.accelerators[int(device.removeprefix("cuda:"))]
            alike.setdefault((size, room), []).append((node, device))
        for (size, room), places in alike.items():
            for nodes, devices in _places(places):
                where = "host memory" if devices == ("cpu",) else _devices(devices)
                each = " each" if len(nodes) * len(devices) > 1 else ""
                fits = f"{byte_size(size)} of {byte_size(room)}{each}{_verdict(size, room)}"
                yield f"policies in {where} of {_nodes(nodes)}: {fits}"
        if held and not any(node.accelerators for node in self.resources.nodes):
            most = max(self.policy_bytes(process) or 0 for process in self.plan.processes)
            on_one = f"{byte_size(most)} of {byte_size(_USUAL_DEVICE)}{_verdict(most, _USUAL_DEVICE)}"
            yield f"the largest of them on an accelerator of its own: {on_one}"

    def _update(self) -> Iterator[str]:
        """What an update is for one rank."""
        config, stages = self.config, self.config.rollout.pipeline_stage_num
        samples = num_samples(config)
        minibatch = min(config.actor.global_batch_size, samples)
        own = -(-minibatch // self.plan.num_actors)
        micro = min(config.actor.micro_batch_size, own)
        num_envs = config.env.train.total_num_envs // self.plan.num_rollouts
        turns = f", which take turns in {stages} stages" if stages > 1 else ""
        yield f"every rollout: {samples // self.plan.num_rollouts} decisions in {num_envs} environments{turns}"
        parts = f"{-(-own // micro)} x {micro}"
        yield f"every actor: about {own} samples ({parts}) of each minibatch of {minibatch}"


def _places(places: Iterable[tuple[int, str]]) -> list[tuple[list[int], tuple[str, ...]]]:
    """Machines and their devices, those machines together that have the same."""
    per_node: dict[int, dict[str, None]] = {}
    for node, device in places:
        per_node.setdefault(node, {})[device] = None
    nodes: dict[tuple[str, ...], list[int]] = {}
    for node, devices in per_node.items():
        nodes.setdefault(tuple(devices), []).append(node)
    return [(own, devices) for devices, own in nodes.items()]


def _nodes(nodes: Sequence[int]) -> str:
    return f"node{'s' * (len(nodes) > 1)} {ranges(nodes)}"


def _devices(devices: Sequence[str]) -> str:
    """`cpu`, or `cuda:0-3`."""
    if devices == ("cpu",):
        return "cpu"
    return f"cuda:{ranges([int(device.removeprefix('cuda:')) for device in devices])}"


def _verdict(size: int, room: int) -> str:
    return ", which fits; activations and minibatches aside" if size < room else ": DOES NOT FIT"
