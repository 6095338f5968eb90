"""`regrasp train`: stage 3, reinforcement learning."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from regrasp.checkpoint.layout import EXPORT
from regrasp.cli.common import (
    add_run_arguments,
    load_to_run,
    prepare_torch,
    take_checkpoint,
    warn_of_idle,
    weights_to_lay_over,
)
from regrasp.cli.watch import watched
from regrasp.errors import NoSignalError, UserError

if TYPE_CHECKING:
    from regrasp.experiment.load import LoadedConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    add_run_arguments(parser)
    parser.add_argument("--max_epochs", "--max_iterations", metavar="N", type=int, help="number of updates")
    parser.add_argument("--resume_dir", metavar="FOLDER", help="checkpoint, or run folder, to continue from")
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="the same as --resume_dir; or latest, or best, of this task's runs"
    )
    parser.add_argument("--only_eval", action="store_true", help="evaluate instead of training")
    parser.add_argument("--list_tasks", action="store_true", help="list the known tasks and stop")
    parser.add_argument("--watch", action="store_true", help="serve a page about the run while it goes on")
    parser.add_argument("--force", action="store_true", help="go on where a check of the run's data would stop it")
    parser.add_argument(
        "--recompute_features", action="store_true", help="run the frozen backbone in every epoch: slower, same result"
    )


def run(args: argparse.Namespace) -> int:
    """Train, or evaluate with `--only_eval`."""
    if args.list_tasks:
        from regrasp.cli.tasks import print_tasks

        others = vars(args).keys() - {"list_tasks", "task", "overrides", "command", "given"}
        warn_of_idle(args, sorted(others), "--list_tasks lists tasks and stops")
        return print_tasks(args.task, args.overrides)
    take_checkpoint(args, "resume_dir")
    loaded = load_to_run(args, reads="train", starts="train", check=_check)
    runner = args.loaded.config.runner
    if runner.evaluates:
        idle = ["max_epochs", "force", "recompute_features", "watch", "logger", "experiment_name"]
        warn_of_idle(args, idle, "this run only evaluates")
    if loaded is None:
        return 0
    if runner.evaluates:
        return _evaluate(args, loaded)
    from regrasp.runner.run_folder import command_line, newest_checkpoint, open_run_folder, resumed_folder, tell_folder

    resumed = None if runner.resume_dir is None else resumed_folder(runner.resume_dir)
    if resumed is not None:
        warn_of_idle(args, ["run_name"], "a run that goes on keeps its folder")
    place = nullcontext(resumed) if resumed else open_run_folder(loaded, args.given, args.run_name)
    with place as run_dir, watched(run_dir, wanted=args.watch):
        prepare_torch(loaded)
        from regrasp.stages.train import train

        try:
            finished = train(loaded, run_dir, command_line(args.given), partial(tell_folder, run_dir))
        except KeyboardInterrupt:
            finished = False
        except Exception as error:
            refused = resumed is not None and isinstance(error, UserError)
            command = _forced(args.given) if isinstance(error, NoSignalError) else args.given
            note = _own_settings(args, run_dir) if refused else _how_to_continue(command, run_dir)
            if note is not None:
                error.add_note(note)
            raise
        if finished:
            checkpoint = newest_checkpoint(run_dir)
            assert checkpoint is not None
            print(f"Model: {checkpoint / EXPORT}\nReport: {shlex.join(['regrasp', 'report', str(run_dir.absolute())])}")
            return 0
        nothing = "No update was finished, so nothing is kept. Run the same command again."
        print("\ninterrupted", _how_to_continue(args.given, run_dir) or nothing, sep="\n", file=sys.stderr)
        return 130


def _check(loaded: LoadedConfig) -> None:
    from regrasp.runner.run_folder import resumed_folder
    from regrasp.stages import play, train

    config = loaded.config
    if config.runner.evaluates:
        play.check(config, play.PlayOptions(rl_model_path=weights_to_lay_over(loaded)))
        return
    train.check(config)
    if config.runner.resume_dir is not None:
        train.check_resume(loaded, Path(config.runner.resume_dir), resumed_folder(config.runner.resume_dir))


def _evaluate(args: argparse.Namespace, loaded: LoadedConfig) -> int:
    from regrasp.runner.run_folder import open_run_folder, tell_folder

    with open_run_folder(loaded, args.given, args.run_name, evaluates=True) as run_dir:
        prepare_torch(loaded)
        from regrasp.stages.play import PlayOptions, play

        options = PlayOptions(rl_model_path=weights_to_lay_over(loaded))
        play(loaded, run_dir, options, partial(tell_folder, run_dir))
    return 0


def _own_settings(args: argparse.Namespace, run_dir: Path) -> str | None:
    """The command that continues a run with the settings that it has had; None where it is the one that was given."""
    from regrasp.runner.run_folder import recorded_resume_command, resume_command

    command = recorded_resume_command(run_dir)
    if command in (None, resume_command(args.given, run_dir)):
        return None
    return f"With the run's own settings: {command}"


def _forced(command: Sequence[str]) -> list[str]:
    """The command, which goes on where a check of the run's data has stopped it."""
    return [*(text for text in command if not text.startswith("runner.force=")), "--force"]


def _how_to_continue(command: Sequence[str], run_dir: Path) -> str | None:
    """What a run that ended early has kept, and the command that continues it; None if it has kept nothing."""
    from regrasp.runner.run_folder import newest_checkpoint, resume_command

    checkpoint = newest_checkpoint(run_dir)
    if checkpoint is None:
        return None
    return f"Checkpoint: {checkpoint}\nTo continue: {resume_command(command, run_dir)}"
