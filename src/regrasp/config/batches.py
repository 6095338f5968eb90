"""The arithmetic of an update: samples, minibatches, optimizer steps."""

from __future__ import annotations

from regrasp.config.schema import ExperimentConfig


def num_samples(config: ExperimentConfig) -> int:
    """Decisions that the training environments make for one update, ended episodes not deducted."""
    train = config.env.train
    chunks = train.max_steps_per_rollout_epoch // config.actor.model.num_action_chunks
    return train.total_num_envs * chunks * config.algorithm.rollout_epoch


def num_optimizer_steps(config: ExperimentConfig) -> int:
    """Optimizer steps of one update that trains on all its samples."""
    minibatches = -(-num_samples(config) // config.actor.global_batch_size)
    return minibatches * config.algorithm.update_epoch


def num_updates(config: ExperimentConfig) -> int:
    """Updates of a whole run: `runner.max_epochs`, or `runner.max_steps` where that is lower and not -1."""
    limit = config.runner.max_steps
    return config.runner.max_epochs if limit < 0 else min(limit, config.runner.max_epochs)


def batch_equation(config: ExperimentConfig) -> str:
    """One line: how environments, chunks and epochs make samples, minibatches and optimizer steps."""
    train, actor, algorithm = config.env.train, config.actor, config.algorithm
    chunks = train.max_steps_per_rollout_epoch // actor.model.num_action_chunks
    minibatches = -(-num_samples(config) // actor.global_batch_size)
    micro = actor.global_batch_size // actor.micro_batch_size
    return (
        f"{train.total_num_envs} envs x {chunks} chunks ({train.max_steps_per_rollout_epoch} steps / "
        f"{actor.model.num_action_chunks} actions) x {algorithm.rollout_epoch} rollout epochs = "
        f"{num_samples(config)} samples; {minibatches} minibatches of {actor.global_batch_size} "
        f"({micro} x {actor.micro_batch_size}) x {algorithm.update_epoch} epochs = "
        f"{num_optimizer_steps(config)} optimizer steps per update"
    )
