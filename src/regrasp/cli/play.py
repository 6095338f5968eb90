"""`regrasp play`: evaluate a model, or look at a task."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from regrasp.cli.common import (
    add_run_arguments,
    check_model_acts,
    load_to_run,
    prepare_torch,
    take_checkpoint,
    warn_of_idle,
    weights_to_lay_over,
)

if TYPE_CHECKING:
    from regrasp.experiment.load import LoadedConfig
    from regrasp.stages.play import PlayOptions

INTERRUPTED = "An evaluation that did not end has no result. Run the same command again."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    add_run_arguments(parser)
    parser.add_argument(
        "--rl_model_path",
        metavar="FOLDER",
        help="global_step_N folder whose full_weights.pt is laid over; of a run's folder, the newest",
    )
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="the same as --rl_model_path; or latest, or best, of this task's runs"
    )
    parser.add_argument("--num_episodes", metavar="N", type=int, help="episodes, one fixed seed each")
    parser.add_argument("--video", action="store_true", help="record videos")
    parser.add_argument("--num_videos", metavar="N", type=int, help="episodes recorded with --video; default: 8")
    parser.add_argument("--policy", choices=("model", "expert", "zero", "random"), default="model", help="what acts")


def run(args: argparse.Namespace) -> int:
    """Evaluate."""
    check_model_acts(args, args.policy, ["model_path", "rl_model_path", "checkpoint"])
    warn_of_idle(args, ["logger", "experiment_name"], "an evaluation sends no metrics and writes no checkpoints")
    take_checkpoint(args, "rl_model_path")
    reads = "play" if args.policy == "model" else None
    loaded = load_to_run(args, reads=reads, starts="evaluation", check=lambda loaded: _check(args, loaded))
    if not args.loaded.config.env.eval.video_cfg.save_video:
        warn_of_idle(args, ["num_videos"], "no videos are recorded without --video")
    if loaded is None:
        return 0
    from regrasp.runner.run_folder import open_run_folder, tell_folder

    with open_run_folder(loaded, args.given, args.run_name, evaluates=True) as run_dir:
        prepare_torch(loaded)
        from regrasp.stages.play import play

        result = play(loaded, run_dir, _options(args, loaded), partial(tell_folder, run_dir))
        if result.videos:
            print(f"Videos: {result.videos[0].file.parent.resolve()}")
    return 0


def _check(args: argparse.Namespace, loaded: LoadedConfig) -> None:
    from regrasp.stages.play import check

    check(loaded.config, _options(args, loaded))


def _options(args: argparse.Namespace, loaded: LoadedConfig) -> PlayOptions:
    from regrasp.runner.videos import NUM_VIDEOS
    from regrasp.stages.play import PlayOptions

    weights = weights_to_lay_over(loaded)
    return PlayOptions(
        kind=args.policy,
        rl_model_path=weights,
        num_videos=NUM_VIDEOS if args.num_videos is None else args.num_videos,
        group="finetuned" if weights else "base",
    )
