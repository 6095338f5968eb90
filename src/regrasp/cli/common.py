"""Flags that commands share, under RLinf's names, and what they mean as configuration overrides."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regrasp.cli.experiment import DEFAULT_CONFIG, choose_experiment, fetch_model, find_model, naming_the_task
from regrasp.config.compose import as_override
from regrasp.config.types import changed
from regrasp.errors import UserError

if TYPE_CHECKING:
    from regrasp.engine.memory import ModelMemory
    from regrasp.engine.placement import Plan, Resources
    from regrasp.envs.process.simulator import SimulatorSpec
    from regrasp.experiment.load import LoadedConfig
    from regrasp.experiment.machine import Needs, Starts
    from regrasp.experiment.paths import Stage

_log = logging.getLogger(__name__)

STAGE_INTERRUPTED = (
    "Nothing of this stage is kept; finished stages are. Run the same command again: the stage starts anew."
)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Which experiment, and the flags every stage has."""
    parser.add_argument(
        "--config_name",
        metavar="NAME",
        help="experiment: a name, or the path of a YAML file; default: that of the run to resume, or of the model, or"
        f" of the task, else {DEFAULT_CONFIG}",
    )
    parser.add_argument("--config_path", metavar="FOLDER", type=Path, help="folder searched before the shipped ones")
    parser.add_argument(
        "--task", metavar="ID", help="task, with its simulator, of training and evaluation, instead of the YAML's"
    )
    parser.add_argument("--num_envs", metavar="N", type=int, help="parallel environments")
    parser.add_argument("--seed", metavar="S", type=int, help="seeds everything")
    parser.add_argument("--headless", action="store_true", help="no window, also where the experiment asks for one")
    parser.add_argument("--dry_run", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="Hydra overrides, such as actor.optim.lr=1e-5"
    )


def add_model_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """The model to start from."""
    parser.add_argument(
        "--model_path",
        metavar="FOLDER",
        help=f"{what}: a Hugging Face style folder, or org/name[@revision] of the Hugging Face hub",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Which experiment with which model, and where it writes."""
    add_config_arguments(parser)
    add_model_argument(parser, "pretrained model")
    parser.add_argument(
        "--logger", metavar="NAME", action="append", help="metrics backend: tensorboard, wandb or swanlab; repeatable"
    )
    parser.add_argument("--experiment_name", metavar="NAME", help="folder of the run's checkpoints")
    parser.add_argument("--run_name", metavar="NAME", help="suffix of the run's log folder")
    parser.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        help="a run for every combination of the values that overrides list, such as actor.optim.lr=1e-4,3e-4",
    )


def flag_overrides(args: argparse.Namespace) -> dict[str, str]:
    """The override that each flag means, with the flag's name."""
    from regrasp.envs.registry import evaluation_task

    flags = {
        "num_envs": ("env.train.total_num_envs", "env.eval.total_num_envs"),
        "seed": ("runner.seed",),
        "model_path": ("actor.model.model_path",),
        "max_epochs": ("runner.max_epochs",),
        "resume_dir": ("runner.resume_dir",),
        "rl_model_path": ("runner.ckpt_path",),
        "num_episodes": ("env.eval.num_episodes",),
        "experiment_name": ("runner.logger.experiment_name",),
        "num_demos": ("collect.num_demos",),
        "data": ("sft.data",),
        "backbone": ("sft.backbone",),
        "only_eval": ("runner.only_eval",),
        "force": ("runner.force",),
        "recompute_features": ("runner.recompute_features",),
        "video": ("env.eval.video_cfg.save_video",),
    }
    overrides: dict[str, str] = {}
    if args.task is not None:
        tasks = {"train": args.task, "eval": evaluation_task(args.task)}
        overrides |= {as_override(f"env.{name}.init_params.id", task): "--task" for name, task in tasks.items()}
    for flag, keys in flags.items():
        value = getattr(args, flag, None)
        if value is not None and value is not False:
            overrides |= {as_override(key, value): f"--{flag}" for key in keys}
    if getattr(args, "logger", None):
        overrides[f"runner.logger.logger_backends=[{','.join(args.logger)}]"] = "--logger"
    return overrides


def load(args: argparse.Namespace, *, trains: bool = False) -> LoadedConfig:
    """Load the experiment that the flags ask for, check it against its simulators' offer, and print its warnings.

    Args:
        args: The flags.
        trains: Whether updates are to be made.
    """
    from regrasp.envs.registry import preflight
    from regrasp.experiment.load import load_config

    fetch_model(args)
    evaluates = "runner.only_eval=true" in (*flag_overrides(args), *args.overrides)
    if not trains or evaluates:  # a run that is to go on is given by --resume_dir
        find_model(args)
    experiment = choose_experiment(args)
    experiment.tell(rehearses=args.dry_run)
    flags = flag_overrides(args)
    _check_twice(flags, args.overrides)
    overrides = [*flags, *args.overrides]
    args.specs = {}
    with experiment.located():
        loaded = load_config(experiment.name, overrides, args.config_path, flags, args.task, trains=trains)
    if args.headless:
        loaded = _without_window(loaded)
    args.loaded = loaded
    for warning in loaded.warnings:
        _log.warning(warning)
    with naming_the_task(experiment, args, loaded):
        for place, env in vars(loaded.config.env).items():
            args.specs[place] = preflight(env, place, loaded.config.actor.model.action_dim)
    return loaded


_OF_EVALUATION = ("env.eval.init_params.id", "env.eval.total_num_envs")


def _check_twice(flags: Mapping[str, str], overrides: Iterable[str]) -> None:
    """Find a key that a flag and an override give different values; evaluation may have its own where a flag says both.

    Raises:
        UserError: There is one.
    """
    parts = [text.lstrip("+").partition("=") for text in overrides]
    given = {key: value.strip("'\"") for key, _, value in parts}
    for override, flag in flags.items():
        key, _, value = override.partition("=")
        if key in given and given[key] != value.strip("'\"") and key not in _OF_EVALUATION:
            raise UserError(
                f"{flag} and an override contradict each other",
                key=key,
                value=given[key],
                expected=f"{value}, as {flag} says, or one of the two alone",
                fix=f"leave {flag} or {key} out",
            )


def _without_window(loaded: LoadedConfig) -> LoadedConfig:
    """The experiment with simulators that show no window; those without a key for it never do."""
    for name, env in vars(loaded.config.env).items():
        if getattr(env.init_params, "headless", True) is False:
            loaded = changed(loaded, f"config.env.{name}.init_params.headless", True)
    return loaded


def warn_of_idle(args: argparse.Namespace, flags: Iterable[str], why: str) -> None:
    """Tell which of some flags were given: they have no effect in this call."""
    given = [f"--{flag}" for flag in flags if getattr(args, flag) not in (None, False)]
    if given:
        _log.warning("%s: no effect, since %s.", ", ".join(given), why)


def check_model_acts(args: argparse.Namespace, policy: str, flags: Iterable[str]) -> None:
    """Refuse a model, or weights of one, beside something else that acts.

    Raises:
        UserError: One of the flags is given, and `policy` is not "model".
    """
    given = next((flag for flag in flags if getattr(args, flag) is not None), None)
    if given is not None and policy != "model":
        raise UserError(
            "The model would not act",
            key=f"--{given}",
            value=getattr(args, given),
            expected=f"no model with --policy {policy}",
            fix="leave one of the two out",
        )


def take_checkpoint(args: argparse.Namespace, flag: str) -> None:
    """Put what `--checkpoint` names, a path or `latest` or `best`, where an older flag has the path.

    Raises:
        UserError: There is no such checkpoint, or both flags are given.
    """
    if args.checkpoint is None:
        return
    if getattr(args, flag) is not None:
        raise UserError(
            "Two checkpoints",
            key="--checkpoint",
            value=args.checkpoint,
            expected=f"--checkpoint or --{flag}, which mean the same",
            fix=f"leave --{flag} out",
        )
    from regrasp.experiment.load import load_config
    from regrasp.runner.run_folder import checkpoint_of_task

    checkpoint = args.checkpoint
    if checkpoint in ("latest", "best"):
        find_model(args)
        flags = flag_overrides(args)
        name = choose_experiment(args).name
        loaded = load_config(name, [*flags, *args.overrides], args.config_path, flags, args.task)
        checkpoint = str(checkpoint_of_task(loaded.config, best=checkpoint == "best"))
    setattr(args, flag, checkpoint)


def weights_to_lay_over(loaded: LoadedConfig) -> Path | None:
    """The weights that an evaluation lays over its model, if any."""
    weights = loaded.config.runner.ckpt_path
    from regrasp.runner.run_folder import newest_of_run

    return None if weights is None else newest_of_run(Path(weights).expanduser())


def load_to_run(
    args: argparse.Namespace,
    *,
    blocks: Sequence[str] = (),
    reads: Stage | None = None,
    starts: Starts | None = None,
    check: Callable[[LoadedConfig], object] | None = None,
) -> LoadedConfig | None:
    """Load the experiment that the flags ask for; None where `--dry_run` asks to print it and stop.

    Args:
        args: The flags.
        blocks: Of the stages that are to run.
        reads: What has to be on disk.
        starts: Whose environments start, if any do.
        check: What the stage itself finds wrong before it begins, for `--dry_run` to find it too.

    Raises:
        UserError: The experiment does not configure a stage, something is not there, or the machine is too small.
    """
    from regrasp.experiment.machine import all_needs, shortages
    from regrasp.experiment.paths import fetch_inputs, require_paths

    loaded = load(args, trains=starts == "train")
    if reads is not None:
        loaded = args.loaded = fetch_inputs(loaded, reads, downloads=not args.dry_run)
    for block in blocks:
        if getattr(loaded.config, block) is None:
            raise UserError(
                f"This experiment does not configure the stage '{block}'",
                key=block,
                expected=f"a block '{block}:'",
                fix=f"add the block, or use an experiment that has one, such as {DEFAULT_CONFIG}",
            )
    needs = all_needs(loaded.config, args.specs, starts)
    placed = _placed(loaded, starts, imagines=args.dry_run)
    if args.dry_run:
        brief = getattr(args, "brief", False)
        _rehearse(loaded, args.specs, needs, placed, reads, check, trains=starts == "train", brief=brief)
        return None
    if reads is not None:
        require_paths(loaded.config, reads)
    if loaded.config.cluster.address is None:  # what the machines of a Ray cluster have is known once it is joined
        for shortage in shortages(needs):
            raise loaded.located(shortage)
    return loaded


def _placed(loaded: LoadedConfig, starts: Starts | None, *, imagines: bool) -> tuple[Plan, Resources] | None:
    """The processes of a training run, on machines like this one; None for what runs in one process anyway.

    Args:
        loaded: The experiment.
        starts: Whose environments start.
        imagines: Whether what the machines lack is a warning, and the plan one for larger machines. Otherwise a plan
            for machines that are yet to be joined is left to who joins them.

    Raises:
        UserError: The placement cannot be met.
    """
    config = loaded.config
    if starts != "train" or config.runner.evaluates or (config.cluster.address is not None and not imagines):
        return None
    from regrasp.engine.placement import Resources, ShortageError, place, plan, remarks, require_ray

    resources = Resources.of_this_machine(config.cluster.num_nodes)
    try:
        try:
            require_ray(place(config, resources))
        except ShortageError as error:
            if not imagines:
                raise
            _log.warning(loaded.located(error))
            resources = resources.enough_for(config.cluster)
        for remark in remarks(config, place(config, resources), resources):
            _log.warning(remark)
        return plan(config, resources), resources
    except UserError as error:
        raise loaded.located(error) from None


def print_resolved(loaded: LoadedConfig, summary: Sequence[str], *, brief: bool = False) -> None:
    """What `--dry_run` shows, as YAML: every value, if not `brief`, and a summary in comments."""
    if not brief:
        print(loaded.to_yaml())
    print("\n# Summary", loaded.file, *summary, sep="\n# ")


def _rehearse(
    loaded: LoadedConfig,
    specs: Mapping[str, SimulatorSpec | None],
    needs: Mapping[str, Needs],
    placed: tuple[Plan, Resources] | None,
    reads: Stage | None,
    check: Callable[[LoadedConfig], object] | None,
    *,
    trains: bool,
    brief: bool,
) -> None:
    """What `--dry_run` shows: every value, the batch equation, what the run takes; then what it would be refused for.

    What this machine lacks is a warning, so that an experiment of another machine can be looked at: room for the
    environments, and a folder that an earlier stage or a download brings. Torch is imported only where there is a model
    or a plan to look at.
    """
    from regrasp.envs.registry import env_type_of
    from regrasp.experiment.batches import batch_equation
    from regrasp.experiment.machine import describe_needs, shortages
    from regrasp.experiment.paths import MissingInputError

    to_check = loaded if reads is None else _with_what_is_there(loaded, reads)
    several = placed is not None and not placed[0].is_local
    lines, size = _memory(loaded, to_check, several=several) if reads in ("train", "play") else ([], None)
    if placed is not None:
        from regrasp.engine.sizing import Sizing

        sizing = Sizing(placed[0], loaded.config, placed[1], specs, size)
        lines = [*sizing.lines(), *lines]
        needs = sizing.needs_on(0) if several else needs
    where = " on node 0" if loaded.config.cluster.num_nodes > 1 else ""
    equation = [batch_equation(loaded.config)] if trains else []
    print_resolved(loaded, [*equation, *describe_needs(needs, where), *lines], brief=brief)
    for name in needs:
        env = getattr(loaded.config.env, name)
        env_type_of(env, name).look_up(env, name)
    for shortage in shortages(needs):
        _log.warning(loaded.located(shortage))
    if check is not None and to_check is not None:
        try:
            check(to_check)
        except MissingInputError as missing:
            _log.warning(loaded.located(missing))


def _with_what_is_there(loaded: LoadedConfig, reads: Stage) -> LoadedConfig | None:
    """The experiment as far as what it reads is here: without a missing model folder; None without data to train on.

    Raises:
        UserError: What is there is not what is to be read.
    """
    from regrasp.experiment.paths import DEMONSTRATIONS, MissingInputError, require_paths

    try:
        require_paths(loaded.config, reads)
    except MissingInputError as missing:
        if missing.value is not None:
            _log.warning(loaded.located(missing))
        if reads == "sft":
            return None
        if missing.key == DEMONSTRATIONS:
            return _with_what_is_there(changed(loaded, "config.algorithm.demo_buffer", None), reads)
        return changed(loaded, "config.actor.model.model_path", None)
    return loaded


def _memory(
    loaded: LoadedConfig, to_check: LoadedConfig | None, *, several: bool
) -> tuple[list[str], ModelMemory | None]:
    """The estimate of what the model takes, or why there is none, in words; and what speaks against its folder."""
    model = loaded.config.actor.model
    if model.model_path is None:
        return ["memory: no model folder is given, so its size is not known"], None
    if to_check is None or to_check.config.actor.model.model_path is None:
        return [f"memory: the model folder {model.model_path} is not on this machine, so its size is not known"], None
    from regrasp.engine.memory import memory_estimate, model_memory
    from regrasp.experiment.inputs import input_names

    for name, env in vars(loaded.config.env).items():
        if warning := model.slot_warning(input_names(env.mapping)):
            _log.warning("env.%s.mapping.embodiment_tag_id: %s", name, warning)
    size = model_memory(to_check.config)
    return memory_estimate(to_check.config, size, several=several), size


def prepare_torch(loaded: LoadedConfig) -> None:
    """Set torch's CPU threads as the configuration says."""
    import torch

    if loaded.config.runner.torch_threads is not None:
        torch.set_num_threads(loaded.config.runner.torch_threads)
