"""The command-line surface: frozen, so that a new flag is a decision, and parsed as users type it."""

from __future__ import annotations

import argparse
import importlib

import pytest

from regrasp.cli.common import flag_overrides
from regrasp.cli.main import COMMANDS, main

CONFIG = ["--config_name", "--config_path", "--task", "--num_envs", "--seed", "--headless", "--dry_run", "overrides"]
SWEEP = ["-m", "--multirun"]
LOGGER = ["--logger", "--experiment_name", "--run_name"]
FLAGS = {
    "quickstart": [*CONFIG, "--output"],
    "pretrain": [*CONFIG, "--output", "--again"],
    "collect": [*CONFIG, "--policy", "--model_path", "--num_demos", "--output", "--overwrite"],
    "convert": [*CONFIG, "files", "--output", "--overwrite", "--keep_failed", "--fps"],
    "sft": [*CONFIG, "--data", "--backbone", "--output", "--overwrite"],
    "train": [
        *CONFIG,
        *LOGGER,
        *SWEEP,
        "--model_path",
        "--watch",
        "--max_epochs",
        "--max_iterations",
        "--resume_dir",
        "--checkpoint",
        "--only_eval",
        "--list_tasks",
        "--force",
        "--recompute_features",
    ],
    "distill": [*CONFIG, "--model_path", "--output", "--overwrite"],
    "play": [
        *CONFIG,
        *LOGGER,
        *SWEEP,
        "--model_path",
        "--rl_model_path",
        "--checkpoint",
        "--num_episodes",
        "--video",
        "--num_videos",
        "--policy",
    ],
    "export": [
        "--model_path",
        "--rl_model_path",
        "--output",
        "--dtype",
        "--max_shard_size",
        "--with_value_head",
        "--config_name",
    ],
    "push": ["folder", "repo", "--private", "--message", "--evaluation", "--dry_run"],
    "report": ["run_dir", "--output"],
    "watch": ["run_dir", "--port"],
    "compare": ["runs", "--output"],
    "doctor": ["--rendering"],
    "tasks": [],
    "completion": ["shell"],
}


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    importlib.import_module(f"regrasp.cli.{command}").add_arguments(parser)
    return parser


def test_commands_are_frozen():
    assert list(COMMANDS) == list(FLAGS)


@pytest.mark.parametrize("command", FLAGS)
def test_flags_are_frozen(command: str):
    found = [name for action in parser_of(command)._actions for name in action.option_strings or [action.dest]]
    assert sorted(found) == sorted(FLAGS[command])


@pytest.mark.parametrize("command", FLAGS)
def test_every_flag_is_explained(command: str):
    assert all(action.help for action in parser_of(command)._actions)


@pytest.mark.parametrize(
    ("command", "arguments", "overrides"),
    [
        ("train", "--task T-v0", ["env.train.init_params.id='T-v0'", "env.eval.init_params.id='T-v0'"]),
        ("train", "--num_envs 8", ["env.train.total_num_envs=8", "env.eval.total_num_envs=8"]),
        ("train", "--seed 5", ["runner.seed=5"]),
        ("train", "--max_epochs 3", ["runner.max_epochs=3"]),
        ("train", "--max_iterations 3", ["runner.max_epochs=3"]),
        ("train", "--only_eval --force", ["runner.only_eval=true", "runner.force=true"]),
        ("train", "--recompute_features", ["runner.recompute_features=true"]),
        ("train", "--logger wandb --logger tensorboard", ["runner.logger.logger_backends=[wandb,tensorboard]"]),
        ("play", "--video --num_episodes 9", ["env.eval.num_episodes=9", "env.eval.video_cfg.save_video=true"]),
        ("train", "--seed 5 runner.seed=6", ["runner.seed=5", "runner.seed=6"]),
        ("train", "", []),
    ],
)
def test_flags_become_overrides_and_the_users_own_come_last(command: str, arguments: str, overrides: list[str]):
    args = parser_of(command).parse_args(arguments.split())
    assert [*flag_overrides(args), *args.overrides] == overrides


@pytest.mark.parametrize(
    "arguments",
    [
        "runner.max_epochs=3 runner.seed=4 --task Regrasp-Pick-Cube-v0",
        "--task Regrasp-Pick-Cube-v0 runner.max_epochs=3 runner.seed=4",
        "runner.max_epochs=3 --task Regrasp-Pick-Cube-v0 runner.seed=4",
        "runner.max_epochs=7 --task Regrasp-Pick-Cube-v0 runner.seed=1 runner.max_epochs=3 runner.seed=4",
    ],
)
def test_overrides_may_stand_anywhere(arguments: str, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--dry_run", *arguments.split()]) == 0
    out = capsys.readouterr().out
    assert "\n  max_epochs: 3\n" in out
    assert "\n  seed: 4\n" in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("trian", "invalid choice: 'trian' (did you mean train?)"),
        ("xyzzy", "invalid choice: 'xyzzy' (choose from quickstart, pretrain"),
        ("train --num_env 4", "unrecognized arguments: --num_env (did you mean --num_envs?)"),
        ("play --seed 3 --modelpath=base", "unrecognized arguments: --modelpath=base (did you mean --model_path?)"),
        ("train --xyzzy", "unrecognized arguments: --xyzzy\n"),
        ("train --episodes=3 runner.seed=1", "unrecognized arguments: --episodes=3"),
        ("train --num_envs four", "invalid int value: 'four'"),
        ("play --policy human", "invalid choice: 'human'"),
        ("convert --fps fast", "invalid int value: 'fast'"),
        ("doctor runner.seed=1", "unrecognized arguments: runner.seed=1"),
        ("report", "RUN"),
        (
            "export --model_path base --output out --max_shard_size 5",
            "'5' (a number and its unit, such as 500MB",
        ),
        ("export --model_path base --output out --dtype float8", "invalid choice: 'float8'"),
    ],
)
def test_argument_mistakes(arguments: str, complaint: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err
