"""`regrasp collect`: stage 1, demonstrations by a scripted expert, a policy, or a function of the user's."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from regrasp.cli.common import (
    STAGE_INTERRUPTED,
    add_config_arguments,
    add_model_argument,
    check_model_acts,
    load_to_run,
    prepare_torch,
)
from regrasp.errors import UserError

if TYPE_CHECKING:
    from regrasp.experiment.load import LoadedConfig

INTERRUPTED = STAGE_INTERRUPTED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    add_config_arguments(parser)
    parser.add_argument(
        "--policy",
        metavar="NAME",
        help="what acts: expert, the task's own; model; or your module:function; default: expert, and model with"
        " --model_path",
    )
    add_model_argument(parser, "policy to record")
    parser.add_argument("--num_demos", metavar="N", type=int, help="demonstrations to keep")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="dataset folder; default: collect.output_dir")
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset that is there")


def run(args: argparse.Namespace) -> int:
    """Record a dataset."""
    policy = _policy(args)
    loaded = load_to_run(
        args,
        blocks=["collect"],
        reads="play" if policy == "model" else None,
        starts="collect",
        check=lambda loaded: _check(args, loaded, policy),
    )
    if loaded is None:
        return 0
    if policy == "model" and loaded.config.actor.model.model_path is None:
        expected = "the folder of a trained model"
        raise UserError("No model is given", key="actor.model.model_path", expected=expected, fix="pass --model_path")
    prepare_torch(loaded)
    from regrasp.stages.collect import collect

    folder, attempts = collect(loaded.config, args.output, policy, overwrite=args.overwrite)
    print(f"Demonstrations: {folder.resolve()} ({attempts} attempts)")
    return 0


def _check(args: argparse.Namespace, loaded: LoadedConfig, policy: str) -> None:
    from regrasp.stages.collect import check

    check(loaded.config, args.output, policy, overwrite=args.overwrite)


def _policy(args: argparse.Namespace) -> str:
    """What acts.

    Raises:
        UserError: It has no such form, or a model is given that would not act.
    """
    policy = args.policy or ("expert" if args.model_path is None else "model")
    if policy not in ("expert", "model") and not all(policy.partition(":")):
        raise UserError(
            "Not something that can act",
            key="--policy",
            value=policy,
            expected="expert, model, or module:function",
            fix="correct it",
        )
    check_model_acts(args, policy, ["model_path"])
    return policy
