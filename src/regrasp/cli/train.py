"""`regrasp train`: stage 3, reinforcement learning."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from regrasp.cli.common import add_run_arguments, load_to_run, open_run_folder, prepare_torch

if TYPE_CHECKING:
    from regrasp.config.load import LoadedConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    add_run_arguments(parser)
    parser.add_argument("--max_epochs", metavar="N", type=int, help="number of updates")
    parser.add_argument("--resume_dir", metavar="FOLDER", help="checkpoint, or run folder, to continue from")
    parser.add_argument("--only_eval", action="store_true", help="evaluate instead of training")
    parser.add_argument("--list_tasks", action="store_true", help="list the known tasks and stop")
    parser.add_argument("--force", action="store_true", help="go on where a check of the run's data would stop it")
    parser.add_argument(
        "--recompute_features", action="store_true", help="run the frozen backbone in every epoch: slower, same result"
    )


def run(args: argparse.Namespace) -> int:
    """Train, or evaluate with `--only_eval`."""
    if args.list_tasks:
        from regrasp.cli.tasks import print_tasks

        return print_tasks(args.task, args.overrides)
    from regrasp.config.paths import require_paths

    loaded = load_to_run(args)
    if loaded is None:
        return 0
    runner = loaded.config.runner
    if runner.only_eval or runner.task_type == "embodied_eval":
        from regrasp.runners.play import PlayOptions, play

        require_paths(loaded.config, "play", loaded.file)
        prepare_torch(loaded)
        play(loaded, open_run_folder(loaded, args.run_name, kind=("eval",)), PlayOptions())
        return 0
    require_paths(loaded.config, "train", loaded.file)
    prepare_torch(loaded)
    from regrasp.runners.session import train

    finished = train(loaded, run_folder(loaded, args.run_name))
    return 0 if finished else 130


def run_folder(loaded: LoadedConfig, run_name: str | None) -> Path:
    """The folder of a new run, or of the one that is resumed."""
    resume = loaded.config.runner.resume_dir
    if resume is None:
        return open_run_folder(loaded, run_name)
    from regrasp.checkpoint.read import find_checkpoint

    folder = find_checkpoint(Path(resume)).parents[2]
    print(f"[INFO] Logging to: {folder.resolve()}", flush=True)
    return folder
