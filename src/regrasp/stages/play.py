"""Evaluation of a policy, or of a task by expert, random or zero actions."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from regrasp.checkpoint.read import full_weights_file
from regrasp.engine.acting import create_chooser
from regrasp.engine.policies import check_folder_fits, warn_of_another_task
from regrasp.envs.registry import create_env, env_type_of
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import LoadedConfig
from regrasp.folders import atomic_file
from regrasp.hub import shown
from regrasp.logging.intervals import wilson_interval
from regrasp.logging.progress import progress
from regrasp.logging.report import EvaluationSummary, Group, VideoItem
from regrasp.logging.text import printable
from regrasp.rollout.episodes import EpisodeResult
from regrasp.rollout.evaluation import VideoRecorder, evaluate
from regrasp.rollout.state_watch import StateWatch
from regrasp.runner.summary import summarize
from regrasp.runner.videos import NUM_VIDEOS, EpisodeVideos

Kind = Literal["model", "expert", "zero", "random"]
EVALUATION_FILE = "evaluation.json"
EPISODES_FILE = "episodes.jsonl"


@dataclass(frozen=True)
class PlayOptions:
    """What acts, and how many episodes are recorded."""

    kind: Kind = "model"
    rl_model_path: Path | None = None
    num_videos: int = NUM_VIDEOS
    group: Group = "base"
    """Under which heading the report shows the videos."""


@dataclass(frozen=True)
class PlayResult:
    """Outcome of an evaluation."""

    summary: EvaluationSummary
    episodes: list[EpisodeResult]
    videos: list[VideoItem]
    seconds: float


def check(config: ExperimentConfig, options: PlayOptions) -> None:
    """Find, before a simulator starts, what an evaluation would be refused for.

    Raises:
        UserError: What is to act is not there, or does not fit.
    """
    if options.rl_model_path is not None:
        full_weights_file(options.rl_model_path)
    if options.kind == "model":
        check_folder_fits(config, "eval")
        warn_of_another_task(config, "eval")
    if options.kind == "expert":
        env_type_of(config.env.eval, "eval").check_expert(config.env.eval, "eval")


def play(loaded: LoadedConfig, run_dir: Path, options: PlayOptions) -> PlayResult:
    """Evaluate `env.eval.num_episodes` episodes, write results and videos into `run_dir`, and print a table."""
    config = loaded.config
    started = time.monotonic()
    max_chunk = config.actor.model.num_action_chunks if options.kind == "model" else 1
    check(config, options)
    with contextlib.closing(create_env(config.env.eval, "eval", max_chunk, config.seed)) as env:
        watch = StateWatch()
        choose = create_chooser(options.kind, config, env, "eval", config.seed, options.rl_model_path, watch)
        videos = EpisodeVideos(run_dir, config.env.eval.video_cfg, env.spec.step_seconds, options.group)
        num_episodes = config.env.eval.num_episodes * config.algorithm.eval_rollout_epoch
        with progress("Evaluating", num_episodes) as bar:
            outcomes: list[float] = []

            def count(result: EpisodeResult) -> None:
                outcomes.append(result.total_reward if result.success is None else result.success)
                mean = sum(outcomes) / len(outcomes)
                shown = {"return": f"{mean:.1f}"} if result.success is None else {"success": f"{mean:.0%}"}
                bar.advance(1, **shown)

            wants_video = config.env.eval.video_cfg.save_video
            recorder = VideoRecorder(options.num_videos, videos.write) if wants_video else None
            episodes = evaluate(env, choose, range(num_episodes), config.seed, config.env.eval.seed, count, recorder)
    watch.report()
    summary = replace(summarize(episodes, _who_acts(config, options)), model=_whose_weights(config, options))
    result = PlayResult(summary, episodes, videos.items, time.monotonic() - started)
    try:
        _write(result, run_dir)
    finally:
        print_summary(result.summary)
    return result


def _who_acts(config: ExperimentConfig, options: PlayOptions) -> str:
    """What acts, in words for the report."""
    if options.kind != "model":
        return {"expert": "Scripted expert", "random": "Random actions", "zero": "Zero actions"}[options.kind]
    named = config.actor.model.model_path
    model = f"Model {shown(Path(named))}" if named else "Model without training"
    return f"{model} with the weights of {options.rl_model_path.name}" if options.rl_model_path else model


def _whose_weights(config: ExperimentConfig, options: PlayOptions) -> str | None:
    """The folder of the model that acts, or of the checkpoint with its weights; None where none does."""
    named = options.rl_model_path or config.actor.model.model_path
    return str(Path(named).expanduser().resolve()) if options.kind == "model" and named else None


def print_summary(summary: EvaluationSummary) -> None:
    """Success with its interval, overall and by instruction, if the task has it; then the task's own measures."""
    if summary.success is None:
        print(f"episodes: {summary.episodes}")
    else:
        _print_success(summary, summary.success)
    for name, measure in summary.measures.items():
        title = printable(name).replace("_", " ")
        if measure.low is None:
            print(f"{title}: {measure.mean:.3f}")
        else:
            print(f"mean {title}: {measure.mean:.3f}, 95 % interval {measure.low:.3f} - {measure.high:.3f}")


def _print_success(summary: EvaluationSummary, success: float) -> None:
    by_instruction = {printable(name): counts for name, counts in summary.per_instruction.items()}
    rows = {"all episodes": (round(success * summary.episodes), summary.episodes), **by_instruction}
    width = max(len(name) for name in rows)
    print(f"{'instruction':<{width}}  success   95 % interval    episodes")
    for name, (successes, episodes) in rows.items():
        low, high = wilson_interval(successes, episodes)
        print(f"{name:<{width}}  {successes / episodes:6.1%}   {low:6.1%} - {high:6.1%}   {episodes:8d}")


def _write(result: PlayResult, run_dir: Path) -> None:
    with atomic_file(run_dir / EVALUATION_FILE) as draft:
        draft.write_text(result.summary.to_json() + "\n", encoding="utf-8")
    with atomic_file(run_dir / EPISODES_FILE) as draft, draft.open("w", encoding="utf-8") as file:
        for index, episode in enumerate(result.episodes):
            line = {"episode": index, **{k: v for k, v in vars(episode).items() if k != "info"}, **episode.info}
            file.write(json.dumps(line) + "\n")
