"""What the blocks of an experiment say against each other; what is wrong within one block, the block says itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from regrasp.config.types import NEW_EMBODIMENT
from regrasp.envs.mapping_config import MappingConfig
from regrasp.errors import UserError
from regrasp.experiment import ArchitectureConfig, ExperimentConfig
from regrasp.experiment.batches import batch_equation, num_optimizer_steps, num_samples, num_updates
from regrasp.models.groot.processing.data_config import data_config
from regrasp.models.inputs import EMBODIMENT_IDS


def cross_check(config: ExperimentConfig, folder: Path | None = None) -> Iterator[UserError]:
    """Everything that is wrong with a configuration whose single values are right.

    Args:
        config: The experiment.
        folder: Where its file is; a class that it names is looked for there too, to be shown as data.
    """
    train, evaluation = config.env.train, config.env.eval
    yield from config.actor.problems()
    yield from _check_algorithm(config)
    yield from train.rollout_problems("env.train", config.actor.model.num_action_chunks)
    yield from train.problems("env.train")
    yield from evaluation.problems("env.eval")
    folders = [path for path in (folder, Path.cwd(), *map(Path, sys.path)) if path is not None]
    yield from _check_data_config("env.train.mapping", train.mapping, folders)
    yield from _check_data_config("env.eval.mapping", evaluation.mapping, folders)
    yield from _check_model(config)
    yield from _check_embodiment(config)
    yield from config.cluster.problems()
    yield from _check_architecture(config)


def oddities(config: ExperimentConfig) -> list[str]:
    """What is valid and probably not what was meant."""
    warnings = []
    if config.actor.global_batch_size > num_samples(config):
        warnings.append(
            f"actor.global_batch_size ({config.actor.global_batch_size}) is more than one update's samples"
            f" ({batch_equation(config).split(';')[0]}), so each epoch is one minibatch of all of them."
        )
    return [*warnings, *config.env.train.mapping.oddities("env.train.mapping"), *config.actor.model.oddities()]


def _check_algorithm(config: ExperimentConfig) -> Iterator[UserError]:
    algorithm, optim = config.algorithm, config.actor.optim
    if algorithm.group_size != 1:
        yield UserError(
            "Not in this release",
            key="algorithm.group_size",
            value=algorithm.group_size,
            expected="1: advantages come from the value function (gae), not from groups of environments",
            mend="set algorithm.group_size=1",
        )
    run_steps = num_updates(config) * num_optimizer_steps(config)
    trains = config.runner.task_type == "embodied" and not config.runner.only_eval
    if trains and 0 < run_steps <= optim.critic_warmup_steps:
        yield UserError(
            "Longer than the run",
            key="actor.optim.critic_warmup_steps",
            value=optim.critic_warmup_steps,
            expected=f"less than the run's {run_steps} optimizer steps, or the policy is never trained",
            mend="lower actor.optim.critic_warmup_steps or raise runner.max_epochs",
        )


def _check_data_config(key: str, mapping: MappingConfig, folders: Sequence[Path]) -> Iterator[UserError]:
    """What the block's own types do not say: known names, keys given once, modes that can be undone."""
    for field in ("data_config_class", "data_config"):
        value = getattr(mapping, field)
        if value is not None:
            try:
                content = value if isinstance(value, str) else asdict(value)
                data_config(content, file=None, key=f"{key}.{field}", folders=folders)
            except UserError as error:
                yield error


def _check_model(config: ExperimentConfig) -> Iterator[UserError]:
    if not config.actor.model.add_value_head:
        yield UserError(
            "A value head is needed",
            key="actor.model.add_value_head",
            value=False,
            expected="true, since algorithm.loss_type is actor_critic",
            mend="set actor.model.add_value_head=true",
        )


def _check_embodiment(config: ExperimentConfig) -> Iterator[UserError]:
    train, evaluation = config.env.train.mapping, config.env.eval.mapping
    for field in ("gr00t_mapping", "data_config_class", "data_config", "embodiment_tag", "embodiment_tag_id"):
        if getattr(train, field) != getattr(evaluation, field):
            yield UserError(
                "Contradiction with env.train",
                key=f"env.eval.mapping.{field}",
                value=_written(getattr(evaluation, field)),
                expected=f"{_written(getattr(train, field))}, as in env.train.mapping: one policy is trained and evaluated",
                mend=f"give env.eval.mapping.{field} the value of env.train.mapping.{field}",
            )
    for field in ("obs_converter_type", "embodiment_tag"):
        value = getattr(config.actor.model, field)
        for name, env in (("train", config.env.train), ("eval", config.env.eval)):
            of_mapping = getattr(env.mapping, field)
            if value is not None and value != of_mapping:
                yield UserError(
                    f"Contradiction with env.{name}",
                    key=f"actor.model.{field}",
                    value=value,
                    expected=f"null, or {of_mapping!r} as in the mapping of env.{name}",
                    mend=f"remove actor.model.{field}; the mapping is what counts",
                )


def _check_architecture(config: ExperimentConfig) -> Iterator[UserError]:
    if config.pretrain is None:
        return
    sizes: ArchitectureConfig = config.pretrain.architecture
    key = "pretrain.architecture"
    yield from sizes.problems(key)
    model = config.actor.model
    for name, env in (("train", config.env.train), ("eval", config.env.eval)):
        slot = env.mapping.embodiment_tag_id
        if slot is None:
            tag = env.mapping.embodiment_tag
            slot = 0 if tag == NEW_EMBODIMENT else EMBODIMENT_IDS.get(tag, 0)  # `pretrain` has the new one in slot 0
        if slot >= sizes.num_embodiments:
            yield UserError(
                "No such embodiment slot",
                key=f"env.{name}.mapping.embodiment_tag_id",
                value=slot,
                expected=f"below {key}.num_embodiments ({sizes.num_embodiments})",
                mend=f"set env.{name}.mapping.embodiment_tag_id=0",
            )
    for name, limit, needed in (
        ("action_horizon", sizes.action_horizon, ("num_action_chunks", model.num_action_chunks)),
        ("max_action_dim", sizes.max_action_dim, ("action_dim", model.action_dim)),
    ):
        if limit < needed[1]:
            yield UserError(
                "Too small",
                key=f"{key}.{name}",
                value=limit,
                expected=f"at least actor.model.{needed[0]} ({needed[1]})",
                mend=f"set {key}.{name}={needed[1]}",
            )


def _written(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
