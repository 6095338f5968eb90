"""Checks across several keys."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from itertools import chain
from typing import Any

from regrasp.config.problems import Problem
from regrasp.config.sources import split_key
from regrasp.config.types import bare_key
from regrasp.envs.config import EnvConfig, TrainEnvConfig
from regrasp.envs.mapping_config import MappingConfig
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.batches import batch_equation, num_optimizer_steps, num_samples, num_updates
from regrasp.experiment.inputs import input_names
from regrasp.experiment.ranges import gaps, gr00t_ranges, overlaps, repeated_values
from regrasp.models.inputs import InputNames

_DEVICES = re.compile(r"all|\d+(-\d+)?(,\d+(-\d+)?)*")
_ROLES = ("actor", "env", "rollout")


def cross_check(config: ExperimentConfig) -> list[Problem]:
    """Everything that is wrong with a configuration whose single values are right."""
    inputs = _inputs(config)
    return [
        *_check_batches(config),
        *_check_algorithm(config),
        *_check_environment(config, "train", config.env.train),
        *_check_environment(config, "eval", config.env.eval),
        *map(Problem.of, chain.from_iterable(names.problems(key) for key, names in inputs.items())),
        *_check_model(config),
        *_check_embodiment(config),
        *_check_placement(config),
        *_check_pretraining(config),
    ]


def oddities(config: ExperimentConfig) -> list[str]:
    """What is valid and probably not what was meant."""
    warnings = []
    if config.actor.global_batch_size > num_samples(config):
        warnings.append(
            f"actor.global_batch_size ({config.actor.global_batch_size}) is more than one update's samples"
            f" ({batch_equation(config).split(';')[0]}), so each epoch is one minibatch of all of them."
        )
    return [*warnings, *_odd_states(config.env.train.mapping), *config.actor.model.oddities()]


def _odd_states(mapping: MappingConfig) -> Iterator[str]:
    """Warnings about values that the policy's state holds twice, and about values that no part of it takes."""
    for first, second in repeated_values(mapping.states):
        yield f"env.train.mapping.states gives the policy some values twice: {first} and {second}."
    parts = gr00t_ranges(mapping)
    left_over = [] if overlaps(parts) else gaps(parts)
    if left_over:
        where = "; ".join(f"between {one} and {other}" if one else f"before {other}" for one, other in left_over)
        yield f"env.train.mapping.gr00t_mapping.state leaves values of the state out: {where}."


def _problem(key: str, value: Any, problem: str, expected: str, mend: str) -> Problem:
    return Problem(f"{problem}: {key}", split_key(key), value, expected, mend)


def _check_batches(config: ExperimentConfig) -> Iterator[Problem]:
    actor = config.actor
    if actor.global_batch_size % actor.micro_batch_size:
        yield _problem(
            "actor.global_batch_size",
            actor.global_batch_size,
            "Not divisible",
            f"a multiple of actor.micro_batch_size ({actor.micro_batch_size})",
            f"set actor.global_batch_size={_near_multiple(actor.global_batch_size, actor.micro_batch_size)}",
        )


def _check_algorithm(config: ExperimentConfig) -> Iterator[Problem]:
    yield from map(Problem.of, config.algorithm.problems(config.env.train))
    optim = config.actor.optim
    run_steps = num_updates(config) * num_optimizer_steps(config)
    trains = config.runner.task_type == "embodied" and not config.runner.only_eval
    if trains and 0 < run_steps <= optim.critic_warmup_steps:
        yield _problem(
            "actor.optim.critic_warmup_steps",
            optim.critic_warmup_steps,
            "Longer than the run",
            f"less than the run's {run_steps} optimizer steps, or the policy is never trained",
            "lower actor.optim.critic_warmup_steps or raise runner.max_epochs",
        )


def _check_environment(config: ExperimentConfig, name: str, env: EnvConfig) -> Iterator[Problem]:
    key = f"env.{name}"
    if isinstance(env, TrainEnvConfig):
        yield from _check_rollout(config.actor.model.num_action_chunks, env)
    for copy, original in (("num_envs", "total_num_envs"), ("max_episode_steps", "max_episode_steps")):
        value, counts = getattr(env.init_params, copy), getattr(env, original)
        if value is not None and value != counts:
            yield _problem(
                f"{key}.init_params.{copy}",
                value,
                "Contradiction",
                f"null, or the same as {key}.{original} ({counts})",
                f"remove {key}.init_params.{copy}; {key}.{original} is the number that counts",
            )
    if name == "train" and env.video_cfg.save_video:
        yield _problem(
            f"{key}.video_cfg.save_video",
            True,
            "Training episodes are not recorded",
            "false",
            "set env.eval.video_cfg.save_video=true and runner.val_check_interval, which records evaluations",
        )
    yield from _check_mapping(f"{key}.mapping", env.mapping)
    yield from _check_gr00t_names(f"{key}.mapping", env.mapping)


def _check_rollout(chunk: int, env: TrainEnvConfig) -> Iterator[Problem]:
    key, steps = "env.train", env.max_steps_per_rollout_epoch
    if steps % chunk:
        yield _problem(
            f"{key}.max_steps_per_rollout_epoch",
            steps,
            "Not divisible",
            f"a multiple of actor.model.num_action_chunks ({chunk})",
            f"set {key}.max_steps_per_rollout_epoch={_near_multiple(steps, chunk)}",
        )
    elif not env.auto_reset and steps - chunk >= env.max_episode_steps:
        yield _problem(
            f"{key}.max_steps_per_rollout_epoch",
            steps,
            "Longer than an episode",
            f"at most {-(-env.max_episode_steps // chunk) * chunk}: without auto_reset an environment does nothing "
            f"after its episode of {env.max_episode_steps} steps",
            f"lower {key}.max_steps_per_rollout_epoch, or set {key}.auto_reset=true",
        )


def _check_mapping(key: str, mapping: MappingConfig) -> Iterator[Problem]:
    if mapping.main_images is None and not mapping.states:
        yield _problem(
            f"{key}.states",
            list(mapping.states),
            "The policy would see nothing",
            "at least one state entry, or a camera in main_images",
            f"add {key}.states or {key}.main_images",
        )
    if mapping.main_images is None and mapping.extra_view_images:
        yield _problem(
            f"{key}.main_images",
            None,
            "Extra views without a main view",
            "a camera key, since extra_view_images has some",
            f"set {key}.main_images, or empty {key}.extra_view_images",
        )


def _check_gr00t_names(key: str, mapping: MappingConfig) -> Iterator[Problem]:
    names = mapping.gr00t_mapping
    if names is not None and len(names.video.extra_view_images) != len(mapping.extra_view_images):
        yield _problem(
            f"{key}.gr00t_mapping.video.extra_view_images",
            list(names.video.extra_view_images),
            "One name per camera",
            f"{len(mapping.extra_view_images)} names, one for each of extra_view_images",
            f"give {key}.gr00t_mapping.video.extra_view_images one name per extra view, in the same order",
        )
    if names is not None:
        keys = [bare_key(entry.gr00t_key) for entry in names.state]
        if len(set(keys)) < len(keys):
            yield _problem(
                f"{key}.gr00t_mapping.state",
                keys,
                "A part of the state is named twice",
                "each key once",
                f"give each key of {key}.gr00t_mapping.state one range",
            )
        else:
            yield from _check_gr00t_ranges(f"{key}.gr00t_mapping.state", mapping)
    if mapping.data_config is not None and mapping.data_config_class is not None:
        yield _problem(
            f"{key}.data_config_class",
            mapping.data_config_class,
            "Two data configurations",
            f"null, since {key}.data_config is given",
            f"remove {key}.data_config_class or {key}.data_config",
        )


def _check_gr00t_ranges(key: str, mapping: MappingConfig) -> Iterator[Problem]:
    """The parts have to cover the state once, or a model sees a value in the place of another."""
    parts = gr00t_ranges(mapping)
    if twice := overlaps(parts):
        first, second = twice[0]
        yield _problem(
            key,
            "; ".join(f"{one} and {other}" for one, other in twice),
            "Slices of the state overlap",
            "slices of which none has values of another",
            f"correct the slices in {key}, such as {second.moved_to(first.stop)};"
            f" a value that is meant for two parts is listed twice in the mapping's states",
        )


def _check_model(config: ExperimentConfig) -> Iterator[Problem]:
    model = config.actor.model
    yield from map(Problem.of, model.problems())
    if "value" in config.algorithm.needs and not model.add_value_head:
        yield _problem(
            "actor.model.add_value_head",
            False,
            "A value head is needed",
            f"true, since algorithm.loss_type is {config.algorithm.loss_type}",
            "set actor.model.add_value_head=true",
        )


def _check_embodiment(config: ExperimentConfig) -> Iterator[Problem]:
    train, evaluation = config.env.train.mapping, config.env.eval.mapping
    for field in ("gr00t_mapping", "data_config_class", "data_config", "embodiment_tag", "embodiment_tag_id"):
        if getattr(train, field) != getattr(evaluation, field):
            yield _problem(
                f"env.eval.mapping.{field}",
                _written(getattr(evaluation, field)),
                "Contradiction with env.train",
                f"{_written(getattr(train, field))}, as in env.train.mapping: one policy is trained and evaluated",
                f"give env.eval.mapping.{field} the value of env.train.mapping.{field}",
            )
    for field in ("obs_converter_type", "embodiment_tag"):
        value = getattr(config.actor.model, field)
        for name, env in (("train", config.env.train), ("eval", config.env.eval)):
            of_mapping = getattr(env.mapping, field)
            if value is not None and value != of_mapping:
                yield _problem(
                    f"actor.model.{field}",
                    value,
                    f"Contradiction with env.{name}",
                    f"null, or {of_mapping!r} as in the mapping of env.{name}",
                    f"remove actor.model.{field}; the mapping is what counts",
                )


def _check_placement(config: ExperimentConfig) -> Iterator[Problem]:
    cluster = config.cluster
    if cluster.num_nodes > 1:
        yield _problem(
            "cluster.num_nodes",
            cluster.num_nodes,
            "Not in this release",
            "1: several machines are not in this release",
            "set cluster.num_nodes=1",
        )
    placement = cluster.component_placement
    given = Counter(role.strip() for roles in placement for role in roles.split(","))
    devices = all(_DEVICES.fullmatch(str(value).replace(" ", "")) for value in placement.values())
    if given != Counter(_ROLES) or not devices:
        yield _problem(
            "cluster.component_placement",
            dict(placement),
            "Not a placement",
            f"each of {', '.join(_ROLES)} once, on 'all' or on devices such as '0-3' or '0,2'",
            "write cluster.component_placement: {'actor,env,rollout': all}",
        )


def _check_pretraining(config: ExperimentConfig) -> Iterator[Problem]:
    if config.pretrain is not None:
        yield from map(Problem.of, config.pretrain.architecture.problems(config.actor.model, _inputs(config)))


def _inputs(config: ExperimentConfig) -> dict[str, InputNames]:
    """What the model is told of its inputs, by the key of each mapping."""
    return {f"env.{name}.mapping": input_names(env.mapping) for name, env in vars(config.env).items()}


def _written(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _near_multiple(value: int, divisor: int) -> int:
    return max(1, round(value / divisor)) * divisor
