"""What the blocks of an experiment say against each other; what is wrong within one block, the block says itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, is_dataclass
from typing import Any

from regrasp.envs.selection import image_transforms
from regrasp.errors import UserError, spelled
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.batches import batch_equation, num_optimizer_steps, num_samples, num_updates
from regrasp.experiment.inputs import input_names


def cross_check(config: ExperimentConfig, *, trains: bool) -> Iterator[UserError]:
    """Everything that is wrong with a configuration whose single values are right.

    Args:
        config: The experiment.
        trains: Whether an update is to be made, if the configuration asks for training at all.
    """
    train, model = config.env.train, config.actor.model
    inputs = {f"env.{name}.mapping": input_names(env.mapping) for name, env in vars(config.env).items()}
    yield from config.actor.problems()
    if trains and not config.runner.evaluates:
        yield from config.algorithm.problems(train)
        yield from _check_warmup(config)
    yield from train.rollout_problems("env.train", model.num_action_chunks)
    yield from train.problems("env.train")
    yield from config.env.eval.problems("env.eval")
    for key, names in inputs.items():
        yield from names.problems(key)
    yield from config.cluster.problems()
    if config.pretrain is not None:
        yield from config.pretrain.architecture.problems(model, inputs)
    yield from _check_learning(config)
    yield from _check_embodiment(config)


def oddities(config: ExperimentConfig, *, trains: bool) -> list[str]:
    """What is valid and probably not what was meant; `trains` as for `cross_check`."""
    actor = config.actor
    warnings = [
        *config.env.train.mapping.oddities("env.train.mapping"),
        *actor.model.oddities(),
        *(actor.fsdp_config.oddities() if trains else ()),
    ]
    if trains and config.runner.val_before_train and config.runner.val_check_interval < 1:
        warnings.append("runner.val_before_train says nothing without runner.val_check_interval: nothing is evaluated.")
    if trains and (other := _unlike_kwargs(config)):
        warnings.append(other)
    one_pass = trains and not config.runner.evaluates and not config.algorithm.stores_experience
    if one_pass and actor.global_batch_size > num_samples(config):
        warnings.insert(
            0,
            f"actor.global_batch_size ({actor.global_batch_size}) is more than one update's samples"
            f" ({batch_equation(config).split(';')[0]}), so each epoch is one minibatch of all of them.",
        )
    return warnings


def _unlike_kwargs(config: ExperimentConfig) -> str | None:
    """What to tell where the same task is made with other arguments for training than for evaluation."""
    train, evaluation = (getattr(config.env, name).init_params for name in ("train", "eval"))
    own, other = (getattr(one, "kwargs", None) for one in (train, evaluation))
    if own == other or own is None or other is None or train.id != evaluation.id:
        return None
    return (
        f"{train.id} is evaluated with env.eval.init_params.kwargs {dict(other)}, and trained with"
        f" env.train.init_params.kwargs {dict(own)}."
    )


def idle_keys(config: ExperimentConfig, given: Collection[str], *, trains: bool) -> list[str]:
    """What is said of one call and has no effect; of what a file says, a variant that inherits it may need less.

    Args:
        config: The experiment.
        given: Keys that the command line sets.
        trains: As for `cross_check`; what an evaluation does not look at is not told.
    """
    model, algorithm = config.actor.model, config.algorithm
    idle: dict[str, str] = {}
    if trains and not config.runner.evaluates:
        idle |= {f"actor.model.{name}": why for name, why in model.idle()}
        idle |= {f"algorithm.{name}": why for name, why in algorithm.idle(model)}
    if model.imitates_without_noise:
        idle["sft.noise_repeats"] = f"actor.model.model_type {model.model_type} imitates without noise"
    told = dict.fromkeys(given)
    found = ((key, why) for key in told for name, why in idle.items() if f"{key}.".startswith(f"{name}."))
    return [f"{key} has no effect: {why}." for key, why in found]


def unlike_rlinf(config: ExperimentConfig) -> Iterator[str]:
    """What values of RLinf's keys mean here and do not mean there; in brackets the value that means the same."""
    evaluation, passes = config.env.eval, config.algorithm.eval_rollout_epoch
    yield from config.algorithm.unlike_rlinf(config.env.train)
    if evaluation.num_episodes != evaluation.total_num_envs:
        played = evaluation.num_episodes * passes
        yield (
            f"env.eval.num_episodes: an evaluation plays {played} episodes; in RLinf as many as environments"
            f" ({evaluation.total_num_envs}), times rollout epochs"
        )
    if evaluation.video_cfg.save_video and evaluation.video_cfg.video_base_dir is not None:
        yield "env.eval.video_cfg.video_base_dir: every run has a folder in it; in RLinf runs write to the same files"


def _check_learning(config: ExperimentConfig) -> Iterator[UserError]:
    """What the algorithm needs of the policy, and what an evaluation has no use for."""
    if "value" in config.algorithm.needs and not config.actor.model.add_value_head:
        yield UserError(
            "A value head is needed",
            key="actor.model.add_value_head",
            value=False,
            expected=f"true, since algorithm.loss_type is {config.algorithm.loss_type}",
            fix="set actor.model.add_value_head=true",
        )
    if "q_head" in config.algorithm.needs and not config.actor.model.add_q_head:
        yield UserError(
            "Critics of actions are needed",
            key="actor.model.add_q_head",
            value=False,
            expected=f"true, since algorithm.loss_type is {config.algorithm.loss_type}",
            fix="set actor.model.add_q_head=true and actor.model.add_value_head=false",
        )
    if config.actor.model.add_q_head and "q_head" not in config.algorithm.needs:
        yield UserError(
            "Critics of actions have no effect",
            key="actor.model.add_q_head",
            value=True,
            expected=f"false, since algorithm.loss_type is {config.algorithm.loss_type}",
            fix="set actor.model.add_q_head=false, or algorithm.adv_type=embodied_sac",
        )
    if config.algorithm.stores_experience:
        yield from _check_stored(config)
    if config.rollout.recompute_logprobs:
        yield from _check_recomputed(config)
    if config.runner.evaluates and config.runner.resume_dir is not None:
        yield UserError(
            "An evaluation does not go on from a checkpoint",
            key="runner.resume_dir",
            value=config.runner.resume_dir,
            expected="null, for a run that only evaluates",
            fix="give the checkpoint's folder model/ as --model_path; or lay its weights over the base model, with"
            " runner.ckpt_path or `regrasp play --rl_model_path`",
        )


def _check_recomputed(config: ExperimentConfig) -> Iterator[UserError]:
    """What goes against ratios to log-probabilities of the policy that learns, instead of the one that acted."""
    key, fix = "rollout.recompute_logprobs", "set rollout.recompute_logprobs=false"
    if "log_prob" not in config.algorithm.needs:
        yield UserError(
            "There are no probability ratios",
            key=key,
            value=True,
            expected=f"false with algorithm.loss_type {config.algorithm.loss_type}",
            fix=fix,
        )
    elif config.runner.max_staleness:
        yield UserError(
            "A rollout that overlaps the update before it is taken by an older policy, whose ratio counts",
            key=key,
            value=True,
            expected=f"false with runner.max_staleness {config.runner.max_staleness}",
            fix=f"{fix}, or runner.max_staleness=0",
        )


def _check_stored(config: ExperimentConfig) -> Iterator[UserError]:
    """What goes against experience that is stored as features and trained on again and again."""
    model = config.actor.model
    if config.runner.recompute_features:
        yield UserError(
            "Not with stored experience",
            key="runner.recompute_features",
            value=True,
            expected=f"false with algorithm.loss_type {config.algorithm.loss_type}",
            fix="set runner.recompute_features=false",
        )
    if model.trains_backbone:
        yield UserError(
            "The features of stored experience would not stay what they are",
            key="actor.model.trainable",
            value=model.trainable,
            expected=f"head, without adapters, with algorithm.loss_type {config.algorithm.loss_type}",
            fix="set actor.model.trainable=head and actor.model.is_lora=false",
        )


def _check_warmup(config: ExperimentConfig) -> Iterator[UserError]:
    """What the optimizer needs of the length of the run."""
    warmup, run_steps = config.actor.optim.critic_warmup_steps, num_updates(config) * num_optimizer_steps(config)
    if 0 < run_steps <= warmup:
        yield UserError(
            "Longer than the run",
            key="actor.optim.critic_warmup_steps",
            value=warmup,
            expected=f"less than the run's {run_steps} optimizer steps, or the policy is never trained",
            fix="lower actor.optim.critic_warmup_steps or raise runner.max_epochs",
        )


def _check_embodiment(config: ExperimentConfig) -> Iterator[UserError]:
    """One policy is trained and evaluated, so that both mappings have to call its inputs the same."""
    train, evaluation = config.env.train.mapping, config.env.eval.mapping
    for field in ("gr00t_mapping", "data_config_class", "data_config", "embodiment_tag", "embodiment_tag_id"):
        trained, evaluated = _written(getattr(train, field)), _written(getattr(evaluation, field))
        if trained != evaluated:
            yield UserError(
                "Contradiction with env.train",
                key=f"env.eval.mapping.{field}",
                value=evaluated,
                expected=f"{trained}, as in env.train.mapping: one policy is trained and evaluated",
                fix=f"give env.eval.mapping.{field} the value of env.train.mapping.{field}",
            )
    seen = [(config.env.train, train), (config.env.eval, evaluation)]
    cameras = [(env.env_type, mapping.main_images, mapping.extra_view_images) for env, mapping in seen]
    if cameras[0] == cameras[1] and image_transforms(train) != image_transforms(evaluation):
        yield UserError(
            "The same cameras are seen in two ways",
            key="env.eval.mapping.image_transform",
            value=evaluation.image_transform,
            expected=f"{train.image_transform}, as in env.train.mapping: one policy is trained and evaluated",
            fix="give env.eval.mapping.image_transform the value of env.train.mapping.image_transform",
        )
    for field in ("obs_converter_type", "embodiment_tag"):
        value = getattr(config.actor.model, field)
        for name, mapping in (("train", train), ("eval", evaluation)):
            if value not in (None, getattr(mapping, field)):
                yield UserError(
                    f"Contradiction with env.{name}",
                    key=f"actor.model.{field}",
                    value=value,
                    expected=f"null, or {spelled(getattr(mapping, field))} as in the mapping of env.{name}",
                    fix=f"remove actor.model.{field}; the mapping is what counts",
                )


def _written(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
