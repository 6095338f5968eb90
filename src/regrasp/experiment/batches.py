"""The arithmetic of an update: samples, minibatches, optimizer steps."""

from __future__ import annotations

from regrasp.experiment import ExperimentConfig
from regrasp.logging.text import counted


def num_samples(config: ExperimentConfig) -> int:
    """Decisions that the training environments make for one update, ended episodes not deducted."""
    train = config.env.train
    chunks = train.max_steps_per_rollout_epoch // config.actor.model.num_action_chunks
    return train.total_num_envs * chunks * config.algorithm.rollout_epoch


def num_optimizer_steps(config: ExperimentConfig) -> int:
    """Optimizer steps of one update that trains on all its samples."""
    return config.algorithm.optimizer_steps(num_samples(config), config.actor.global_batch_size)[0]


def num_updates(config: ExperimentConfig) -> int:
    """Updates of a whole run: `runner.max_epochs`, or `runner.max_steps` where that is lower and not -1."""
    limit = config.runner.max_steps
    return config.runner.max_epochs if limit < 0 else min(limit, config.runner.max_epochs)


def batch_equation(config: ExperimentConfig) -> str:
    """One line: how environments, chunks and epochs make samples, minibatches and optimizer steps."""
    train, actor, algorithm = config.env.train, config.actor, config.algorithm
    chunks = train.max_steps_per_rollout_epoch // actor.model.num_action_chunks
    samples = num_samples(config)
    stored = algorithm.stores_experience
    size = actor.global_batch_size if stored else min(actor.global_batch_size, samples)
    micro = min(actor.micro_batch_size, size)
    exact = train.auto_reset or train.ignore_terminations
    minibatches = "minibatches" if stored else counted(-(-samples // size), "minibatch", "es")
    return (
        f"{counted(train.total_num_envs, 'env')} x {counted(chunks, 'chunk')} "
        f"({counted(train.max_steps_per_rollout_epoch, 'step')} / {counted(actor.model.num_action_chunks, 'action')})"
        f" x {counted(algorithm.rollout_epoch, 'rollout epoch')} = "
        f"{samples} samples; {minibatches} of {size} ({-(-size // micro)} x {micro})"
        + algorithm.optimizer_steps(samples, actor.global_batch_size)[1]
        + (f"; the last minibatch has {samples % size}" if samples % size and not stored else "")
        + ("" if exact else "; at most this many, since an environment rests after its episode")
    )
