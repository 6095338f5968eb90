"""`regrasp play`: evaluate a model, or look at a task."""

from __future__ import annotations

import argparse

from regrasp.cli.common import add_run_arguments, load_to_run, prepare_torch, take_checkpoint, weights_to_lay_over

INTERRUPTED = "An evaluation that did not end has no result. Run the same command again."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    add_run_arguments(parser)
    parser.add_argument(
        "--rl_model_path", metavar="FOLDER", help="global_step_N folder whose full_weights.pt is laid over"
    )
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="the same as --rl_model_path; or latest, or best, of this task's runs"
    )
    parser.add_argument("--num_episodes", metavar="N", type=int, help="episodes, one fixed seed each")
    parser.add_argument("--video", action="store_true", help="record videos")
    parser.add_argument("--num_videos", metavar="N", type=int, default=8, help="episodes recorded with --video")
    parser.add_argument("--policy", choices=("model", "expert", "zero", "random"), default="model", help="what acts")


def run(args: argparse.Namespace) -> int:
    """Evaluate."""
    take_checkpoint(args, "rl_model_path")
    loaded = load_to_run(args, reads="play" if args.policy == "model" else None, starts="evaluation")
    if loaded is None:
        return 0
    weights = weights_to_lay_over(loaded)
    from regrasp.runner.run_folder import open_run_folder

    with open_run_folder(loaded, args.given, args.run_name, evaluates=True) as run_dir:
        prepare_torch(loaded)
        from regrasp.stages.play import PlayOptions, play

        options = PlayOptions(
            kind=args.policy,
            rl_model_path=weights,
            num_videos=args.num_videos,
            group="finetuned" if weights else "base",
        )
        result = play(loaded, run_dir, options)
        if result.videos:
            print(f"Videos: {result.videos[0].file.parent.resolve()}")
    return 0
