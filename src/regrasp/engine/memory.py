"""How much memory a run will take, before it starts."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from regrasp.data.lerobot import DemonstrationDataset
from regrasp.engine.policies import check_inputs
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.batches import num_samples, num_updates
from regrasp.experiment.cluster import Role
from regrasp.experiment.inputs import input_names
from regrasp.learner.learner import Learner
from regrasp.learner.precision import ActingPolicy, apply_precision
from regrasp.logging.text import byte_size
from regrasp.models.contract import Policy
from regrasp.models.registry import check_folder

_CPU = torch.device("cpu")
_MOMENTS = 2
"""Of AdamW, each like the weight."""


@dataclass(frozen=True)
class PolicyMemory:
    """Bytes that a policy takes while it is trained, activations aside."""

    num_parameters: int
    """Stored weights, the embodiment's slot counted once."""
    num_trained: int
    weights: int
    """What is stored, constants included."""
    training: int
    """Gradients and AdamW's moments."""
    half_copy: int
    """Trained weights in bfloat16, which all passes read instead; of sharded ones the whole copy that acts."""
    acting: int
    """What rollouts compute ahead of the weights alone, in a copy that shares the rest."""
    start: int
    """Copy of the weights that the run starts from, where the policy is compared with it."""
    experience: int = 0
    """Decisions of earlier updates in memory, once the replay is full."""
    mapped: int = 0
    """Those in memory-mapped files."""
    demonstrated: int = 0
    """Decisions of demonstrations in memory; no checkpoint has them."""
    demonstrated_mapped: int = 0
    """Those in memory-mapped files."""

    def checkpoints(self, count: int, exports: int) -> int:
        """Bytes on disk of so many checkpoints, of which so many have a model folder; frozen weights are in it once."""
        trained, moments = 4 * self.num_trained, 4 * _MOMENTS * self.num_trained
        frozen = self.weights - trained if exports else 0
        return count * (self.weights + moments + self.experience + self.mapped) + exports * trained + frozen

    @property
    def total(self) -> int:
        """All of it."""
        learned = self.weights + self.training + self.half_copy + self.acting + self.start
        return learned + self.experience + self.demonstrated

    def of_rank(self, config: ExperimentConfig, num_ranks: int) -> PolicyMemory:
        """What one of the ranks that train has of it on its device; layers that are gathered for a pass aside.

        Args:
            config: `actor.fsdp_config` and the sizes of batches.
            num_ranks: That train.

        Raises:
            UserError: The ranks do not divide as the configuration asks.
        """
        actor, trained = config.actor, 4 * self.num_trained
        settings, num_shards = actor.fsdp_config, actor.fsdp_config.num_shards(num_ranks)
        if num_shards == 1:
            return self
        several = actor.global_batch_size > num_ranks * actor.micro_batch_size
        unsharded = trained if several and settings.enable_gradient_accumulation else 0
        part = 0 if settings.cpu_offload else -(-trained // num_shards)
        return replace(
            self,
            weights=self.weights - trained + part,
            training=(_MOMENTS + 1) * part + unsharded,
            half_copy=2 * self.num_trained if self.half_copy else trained,
        )

    def held(self, roles: Collection[Role]) -> int:
        """What a process with these roles holds of it."""
        if "actor" in roles:
            return self.total - (0 if "rollout" in roles else self.acting)
        return self.weights + self.half_copy + self.acting if "rollout" in roles else 0


@dataclass(frozen=True)
class ModelMemory:
    """What is known of the model `actor.model.model_path` before it is loaded."""

    inputs: str | None
    """What it reads and writes, in words."""
    policy: PolicyMemory
    stored: int | None
    """Bytes that are kept of a decision until it was trained on, None where that is not known."""

    def kept_on_device(self, config: ExperimentConfig) -> int:
        """Bytes that the decisions of an update take on the device."""
        return 0 if config.runner.feature_storage == "host" else num_samples(config) * (self.stored or 0)


def model_memory(config: ExperimentConfig) -> ModelMemory | None:
    """Look at the model `actor.model.model_path`; None for a kind whose size is known only once it is loaded.

    Raises:
        UserError: The model folder is damaged, or does not fit the experiment.
    """
    model, mapping = config.actor.model, config.env.train.mapping
    assert model.model_path is not None
    policy = model.preview(check_folder(model, model.model_path), input_names(mapping))
    if policy is None:
        return None
    check_inputs(policy, mapping)
    memory = policy_memory(policy, config)
    return ModelMemory(policy.describe_inputs(), memory, policy.stored_bytes(recomputes=_recomputes(config)))


def memory_estimate(config: ExperimentConfig, model: ModelMemory | None, *, several: bool = False) -> list[str]:
    """Lines about inputs, weights, optimizer and rollout storage, as one process holds them.

    Args:
        config: The experiment.
        model: What is known of the model.
        several: Whether to leave out what several processes divide among them.
    """
    if model is None:
        return ["memory: the size of this kind of model is known only once it is loaded"]
    memory = model.policy
    disk = f"a checkpoint on disk: about {byte_size(memory.checkpoints(1, 1))}, a further one"
    disk += f" {byte_size(memory.checkpoints(2, 2) - memory.checkpoints(1, 1))}"
    lines = [
        *filter(None, [model.inputs]),
        f"weights: {memory.num_parameters / 1e6:.1f} M parameters, {byte_size(memory.weights)}",
    ]
    if several:
        return [*lines, disk]
    lines.append(
        f"training {memory.num_trained / 1e6:.1f} M of them: {byte_size(memory.training)} (gradients, AdamW's moments)"
    )
    if memory.half_copy:
        lines.append(f"copy of them in bfloat16, for all passes: {byte_size(memory.half_copy)}")
    if memory.acting:
        lines.append(f"joined weights and tables of the copy that acts: {byte_size(memory.acting)}")
    if memory.start:
        lines.append(f"copy of the start, which the policy is compared with: {byte_size(memory.start)}")
    on_device = memory.total + model.kept_on_device(config)
    if model.stored is not None:
        samples, stored = num_samples(config), model.stored
        what = "stored observations" if _recomputes(config) else "cached features"
        where = "in host memory" if config.runner.feature_storage == "host" else "on the device"
        lines.append(f"{what}: {samples} decisions x {stored / 1e3:.0f} kB = {byte_size(samples * stored)}, {where}")
    if memory.experience:
        sizes = _sizes(memory.experience, memory.mapped)
        lines.append(
            f"stored experience: up to {config.algorithm.stored_decisions} decisions, {sizes}, in checkpoints too"
        )
    if memory.demonstrated:
        sizes = _sizes(memory.demonstrated, memory.demonstrated_mapped)
        lines.append(f"demonstrations: {_num_demonstrated(config)} decisions, {sizes}, in no checkpoint")
    return [*lines, f"together on the device: {byte_size(on_device)}, activations and minibatches aside", disk]


def _sizes(in_memory: int, mapped: int) -> str:
    """In words."""
    return f"about {byte_size(in_memory)}" + (f", and {byte_size(mapped)} in memory-mapped files" if mapped else "")


def _num_demonstrated(config: ExperimentConfig) -> int:
    """Decisions of the demonstrations that are trained on beside what is collected: a chunk from every frame.

    Raises:
        UserError: The dataset is none, or damaged.
    """
    folder = config.algorithm.demonstrations
    return 0 if folder is None else DemonstrationDataset(Path(folder).expanduser()).num_frames


def check_disk(config: ExperimentConfig, memory: PolicyMemory, folder: Path) -> str | None:
    """Compare the checkpoints of a run with the room on the disk that it writes to.

    Args:
        config: The experiment.
        memory: Of its policy.
        folder: Where the run writes; it or a folder above it exists.

    Returns:
        What is short later; None where all checkpoints have room.

    Raises:
        UserError: There is no room for one.
    """
    runner, updates = config.runner, num_updates(config)
    saved = -(-updates // runner.save_interval) if runner.save_interval > 0 else 1
    # The oldest goes when the newest is there.
    count = saved if runner.keep_checkpoints is None else min(saved, runner.keep_checkpoints + 1)
    always = runner.export_model == "always"
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free, first = shutil.disk_usage(existing).free, memory.checkpoints(1, 1 if always else 0)
    if first > free:
        raise UserError(
            f"There is no room for a checkpoint: it takes about {byte_size(first)}, and {byte_size(free)} are free",
            key="runner.logger.log_path",
            value=str(folder),
            expected="a folder on a disk with room for the run's checkpoints",
            fix="free space, or set runner.logger.log_path to another disk",
        )
    needed = memory.checkpoints(count, count if always else 1)
    if needed <= free:
        return None
    return (
        f"The disk of {folder} has {byte_size(free)} free, and the run's {saved} checkpoints take about"
        f" {byte_size(needed)}. runner.keep_checkpoints keeps the newest ones only; runner.save_interval"
        f" ({runner.save_interval}) makes fewer."
    )


def policy_memory(policy: Policy, config: ExperimentConfig) -> PolicyMemory:
    """Count what the engine makes of a policy.

    Args:
        policy: Fresh, best on the meta device, where copies cost nothing; it is made ready for training.
        config: The experiment.
    """
    model = config.actor.model
    num_parameters = sum(tensor.numel() for tensor in policy.state_dict().values())
    apply_precision(policy, model, _CPU)
    learner = Learner(
        policy, config.algorithm.build(), config.actor, num_updates=num_updates(config), seed=0, device=_CPU
    )
    trained: list[nn.Parameter] = [weight for group in learner.optimizer.param_groups for weight in group["params"]]
    acting = ActingPolicy(policy, model, next(policy.parameters()).device, learner.bfloat16).policy
    each, most = _experience_bytes(policy, model.precision), config.algorithm.max_stored_bytes
    experience, demonstrated = config.algorithm.stored_decisions * each, _num_demonstrated(config) * each
    in_memory, shown = (min(size, most or size) for size in (experience, demonstrated))
    rounded = {} if learner.bfloat16 is None else learner.bfloat16.rounded
    computing = [rounded.get(parameter, parameter) for parameter in trained]
    summed = rounded if config.actor.global_batch_size > config.actor.micro_batch_size else {}
    return PolicyMemory(
        num_parameters=num_parameters,
        num_trained=sum(parameter.numel() for parameter in trained),
        weights=_bytes((*policy.parameters(), *policy.buffers())),
        training=_MOMENTS * _bytes(trained) + _bytes(computing) + _bytes(summed),
        half_copy=_bytes(rounded.values()),
        acting=_bytes(_computed_ahead(acting)),
        start=_bytes(computing) if config.algorithm.keeps_start else 0,
        experience=in_memory,
        mapped=experience - in_memory,
        demonstrated=shown,
        demonstrated_mapped=demonstrated - shown,
    )


def _experience_bytes(policy: Policy, precision: str) -> int:
    """Of a stored decision, whose tokens a replay keeps in 16 bits."""
    stored = policy.stored_bytes(recomputes=False) or 0
    return stored // 2 if precision == "fp32" else stored


def _recomputes(config: ExperimentConfig) -> bool:
    return config.runner.recompute_features or config.actor.model.trains_backbone


def _computed_ahead(policy: Policy) -> Iterator[Tensor]:
    """Tensors that modules keep and that are neither weights nor buffers."""
    for module in policy.modules():
        for value in vars(module).values():
            kept = value if isinstance(value, tuple) else (value,)
            yield from (tensor for tensor in kept if isinstance(tensor, Tensor))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
