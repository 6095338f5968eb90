"""`regrasp pretrain`: the tiny vision-language backbone that the embedded experiments start from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from regrasp.cli.common import STAGE_INTERRUPTED, add_config_arguments, load_to_run, prepare_torch, warn_of_idle

if TYPE_CHECKING:
    from regrasp.experiment.load import LoadedConfig

INTERRUPTED = STAGE_INTERRUPTED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    add_config_arguments(parser)
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="where to write; default: the user's cache")
    parser.add_argument("--again", action="store_true", help="pretrain even if the result is already there")


def run(args: argparse.Namespace) -> int:
    """Pretrain, unless the same was done before."""
    warn_of_idle(args, ["num_envs"], "this stage starts no environments")
    warn_of_idle(args, ["seed"], "the backbone has a seed of its own, pretrain.seed")
    loaded = load_to_run(args, blocks=["pretrain"], check=_check)
    if loaded is None:
        return 0
    prepare_torch(loaded)
    from regrasp.stages.pretrain import pretrain

    folder, error = pretrain(loaded.config, args.output, again=args.again)
    done = "already there" if error is None else f"median grounding error {error:.2f} cm"
    print(f"Backbone: {folder.resolve()} ({done})")
    return 0


def _check(loaded: LoadedConfig) -> None:
    from regrasp.stages.pretrain import check_instructions

    check_instructions(loaded.config)
