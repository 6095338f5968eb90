"""What each process of a plan holds, compared with what its machine has: the part of a dry run about processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from regrasp.engine.memory import ModelMemory
from regrasp.engine.placement import Plan, ProcessPlan, Resources
from regrasp.envs.process.simulator import SimulatorSpec
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.batches import num_samples
from regrasp.experiment.cluster import ROLES
from regrasp.experiment.machine import needs_of
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
            *map(self._line, self.plan.processes),
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

    def simulator_bytes(self, process: ProcessPlan) -> int:
        """Host memory of the simulators of an env worker; 0 where it is not known."""
        total = 0
        node, chunk = self.resources.nodes[process.node], self.config.actor.model.num_action_chunks
        neighbours = sum(other.node == process.node for other in self.plan.of("env"))
        for name, count in self.num_envs(process).items():
            env = getattr(self.config.env, name)
            workers = env.num_workers or max(1, node.num_cores // neighbours)
            env = replace(env, total_num_envs=count, num_workers=workers)
            total += needs_of(env, name, self.specs.get(name), chunk).memory
        return total

    def num_envs(self, process: ProcessPlan) -> dict[str, int]:
        """Environments of an env worker, by the name of their block."""
        own = [share for share in self.plan.env_shares if share.worker == process.index["env"]]
        counts = {"train": sum(share.stop - share.start for share in own)}
        if self.config.runner.val_check_interval > 0:
            counts["eval"] = self.plan.num_eval_envs * len({share.rollout for share in own})
        return counts

    def _line(self, process: ProcessPlan) -> str:
        parts = [f"  {process.name}: node {process.node}, {process.device}"]
        if process.roles != {"env"} and (size := self.policy_bytes(process)) is not None:
            parts.append(f"policy {byte_size(size)}")
        if "env" in process.roles:
            counts = " and ".join(f"{count} of env.{name}" for name, count in self.num_envs(process).items())
            memory = self.simulator_bytes(process)
            takes = f"about {byte_size(memory)} of host memory" if memory else "host memory known only once they run"
            parts.append(f"environments {counts}, {takes}")
        return "; ".join(parts)

    def _fits(self) -> Iterator[str]:
        """Whether what is on a device has room there."""
        held: dict[tuple[int, str], int] = {}
        for process in self.plan.processes:
            if size := self.policy_bytes(process):
                place = (process.node, process.device)
                held[place] = held.get(place, 0) + size
        for (node, device), size in held.items():
            of = self.resources.nodes[node]
            room = of.memory if device == "cpu" else of.accelerators[int(device.removeprefix("cuda:"))]
            where = "host memory" if device == "cpu" else device
            yield f"policies in {where} of node {node}: {byte_size(size)} of {byte_size(room)}{_verdict(size, room)}"
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


def _verdict(size: int, room: int) -> str:
    return ", which fits; activations and minibatches aside" if size < room else ": DOES NOT FIT"
