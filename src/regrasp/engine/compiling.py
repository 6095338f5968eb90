"""What `actor.model.compile` compiles in a process that acts, trains, or both."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from regrasp.envs.contract import VecEnv
from regrasp.experiment import ExperimentConfig
from regrasp.learner.compilation import capture_updates, compile_policy
from regrasp.learner.learner import Learner
from regrasp.learner.precision import ActingPolicy
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
    """With `actor.model.compile`, compile for every batch size that this process decides and trains on.

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
    if not config.actor.model.compile:
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
        compile_policy(acting.policy, acting_sizes, device, parts=parts)
    if learner is not None and computing is not None:
        compile_policy(computing, training_sizes, device)
        if device.type == "cuda":
            capture_updates(learner, config.actor.micro_batch_size)
