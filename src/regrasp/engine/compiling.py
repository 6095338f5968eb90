"""What `actor.model.compile` compiles in a process that acts, trains, or both."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

import torch

from regrasp.envs.contract import VecEnv
from regrasp.experiment import ExperimentConfig
from regrasp.learner.compilation import capture_policy, capture_updates, compile_policy
from regrasp.learner.learner import Learner
from regrasp.learner.precision import ActingPolicy
from regrasp.models.config import ModelConfig
from regrasp.models.contract import Policy
from regrasp.rollout.inference import block_size

_log = logging.getLogger(__name__)

_NOT_COMPILED = (
    "actor.model.compile compiles what acts, and not the updates: their weights are sharded"
    " (actor.fsdp_config.sharding_strategy)."
)


def compile_as_configured(
    config: ExperimentConfig,
    device: torch.device,
    *,
    learner: Learner | None = None,
    acting: ActingPolicy | None = None,
    stages: Sequence[VecEnv] = (),
    eval_env: VecEnv | None = None,
) -> None:
    """With `actor.model.compile`, compile or record for every batch size that this process decides and trains on.

    Args:
        config: The experiment.
        device: Where the policies live.
        learner: What trains here, if anything does.
        acting: What acts here, if anything does.
        stages: The training environments that it acts in, in parts that take turns: a batch is one part.
        eval_env: The environments of evaluation, where it decides in blocks.

    Raises:
        UserError: The policy has nothing to compile.
    """
    model = config.actor.model
    if not model.compiles_on(device.type):
        return
    acting_sizes = {env.spec.num_envs for env in stages}
    if eval_env is not None:
        acting_sizes.add(block_size(config.env.eval.inference_block, device))
    training_sizes = {config.actor.micro_batch_size}
    computing = None if learner is None or learner.sharded is not None else learner.computing
    if learner is not None and computing is None:
        _log.warning(_NOT_COMPILED)
    if acting is not None and acting.policy is computing:
        training_sizes |= acting_sizes
    elif acting is not None:
        parts = {"act": config.actor.micro_batch_size}
        if config.runner.recompute_features:
            parts["encode"] = config.actor.micro_batch_size
        prepare_policy(acting.policy, model, acting_sizes, device, parts=parts)
    if learner is not None and computing is not None:
        prepare_policy(computing, model, training_sizes, device)
        if device.type == "cuda":
            capture_updates(learner, config.actor.micro_batch_size, compiles=model.compile is True)


def prepare_policy(
    policy: Policy,
    model: ModelConfig,
    batch_sizes: Collection[int],
    device: torch.device,
    *,
    parts: Mapping[str, int] | None = None,
) -> None:
    """Compile a policy, or have its actions recorded, as `actor.model.compile` says.

    Args:
        policy: Changed in place.
        model: `compile`.
        batch_sizes: See `compile_policy`.
        device: Where the policy lives.
        parts: See `compile_policy`; what is only recorded rounds as it does in an update.

    Raises:
        UserError: The policy has nothing to compile.
    """
    if model.compile is True:
        compile_policy(policy, batch_sizes, device, parts=parts)
    elif model.compiles_on(device.type):
        capture_policy(policy, batch_sizes, device)
