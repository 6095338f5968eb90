"""A whole small PPO run on the real simulator."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from run_toys import OVER_EPOCHS, checkpoint, metrics, mlp_experiment, same_weights, saved_steps, without_values

from regrasp.checkpoint.read import read_checkpoint
from regrasp.engine.local import Collected, LocalEngine
from regrasp.envs.config import EnvConfig
from regrasp.envs.contract import VecEnv
from regrasp.errors import UserError
from regrasp.runner import runner as runner_module
from regrasp.stages import engines as session
from regrasp.stages.play import PlayOptions, play
from regrasp.stages.train import train

DOCUMENTED = {
    *(f"train/actor/{name}" for name in ("policy_loss", "policy_loss_abs", "ratio", "ratio_abs", "clipped_ratio")),
    *(f"train/actor/{name}" for name in ("dual_cliped_ratio", "approx_kl", "clip_fraction", "grad_norm", "lr")),
    *(f"train/actor/{name}" for name in ("entropy_loss", "total_loss", "first_ratio_error")),
    *(f"train/critic/{name}" for name in ("value_loss", "value_clip_ratio", "explained_variance", "lr")),
    *(f"rollout/{what}_{kind}" for what in ("advantages", "returns") for kind in ("mean", "max", "min")),
    *(f"env/{name}" for name in ("success_once", "return", "episode_len", "reward", "num_trajectories")),
    "env/total_steps",
}
DOCUMENTED_EVALUATION = {
    f"eval/{tag}" for tag in ("success_once", "return", "episode_len", "reward", "num_trajectories")
}
DOCUMENTED_TIMES = {"time/step", "time/generate_rollouts", "time/actor_training", "time/env_steps_per_second"}


def test_metrics_have_the_documented_names(finished_run: Path) -> None:
    lines = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        evaluated = line["step"] in (2, 4)
        expected = DOCUMENTED | DOCUMENTED_TIMES | (DOCUMENTED_EVALUATION | {"time/eval"} if evaluated else set())
        assert expected <= line.keys(), expected - line.keys()
        assert any(tag.startswith("eval/") for tag in line) is evaluated
        assert all(value is not None for value in line.values())
    assert without_values(mlp_experiment(), finished_run) == []


def test_metrics_count_what_happened(finished_run: Path) -> None:
    total = 0
    for line in metrics(finished_run):
        # Nobody succeeds by chance: every episode lasts 12 steps, three decisions.
        assert line["env/num_trajectories"] == 6
        assert line["env/episode_len"] == 12
        assert line["rollout/decisions"] == 18
        assert line["train/actor/minibatches"] == 2 * 3
        assert line["train/actor/first_ratio_error"] < 1e-4
        assert line["train/actor/grad_norm"] > 0
        total += 6 * 12
        assert line["env/total_steps"] == total
    rates = [line["train/actor/lr"] for line in metrics(finished_run)]
    assert rates == pytest.approx([rates[0] * (1 - i / 4) for i in range(4)])


def test_a_run_trains(finished_run: Path) -> None:
    assert not same_weights(checkpoint(finished_run, 1), checkpoint(finished_run, 4))


def test_checkpoints_hold_the_state_of_their_update(finished_run: Path) -> None:
    assert saved_steps(finished_run) == [1, 2, 3, 4]
    for step in saved_steps(finished_run):
        content = read_checkpoint(checkpoint(finished_run, step))
        assert content.step == step
        assert content.state["env_steps"] == step * 72
        assert content.optimizer_state["num_steps"] == step * 6
        assert content.frozen_names == frozenset()
        assert content.export is not None


def test_the_exported_model_gives_the_numbers_of_the_last_evaluation(finished_run: Path, tmp_path: Path) -> None:
    result = play(
        mlp_experiment(f"actor.model.model_path={checkpoint(finished_run, 4) / 'model'}"), tmp_path, PlayOptions()
    )
    last = metrics(finished_run)[-1]
    assert last["eval/num_trajectories"] == result.summary.episodes == 4
    assert last["eval/success_once"] == result.summary.success
    assert last["eval/return"] == sum(episode.total_reward for episode in result.episodes) / 4
    assert last["eval/episode_len"] == sum(episode.length for episode in result.episodes) / 4


def test_checkpoints_are_written_at_the_interval_and_pruned(start_model: Path, tmp_path: Path) -> None:
    overrides = (
        "runner.max_epochs=5",
        "runner.save_interval=2",
        "runner.keep_checkpoints=2",
        "runner.export_model=last",
    )
    assert train(
        mlp_experiment(f"actor.model.model_path={start_model}", "runner.val_check_interval=-1", *overrides), tmp_path
    )
    assert saved_steps(tmp_path) == [4, 5]
    assert not (checkpoint(tmp_path, 4) / "model").exists()
    assert (checkpoint(tmp_path, 5) / "model").is_dir()
    assert not any(tag.startswith("eval/") for line in metrics(tmp_path) for tag in line)


@pytest.mark.parametrize(
    "variant", [pytest.param((), marks=pytest.mark.full), ("env.train.num_workers=2", "env.eval.num_workers=2")]
)
def test_the_same_seed_gives_the_same_run(
    finished_run: Path, start_model: Path, tmp_path: Path, variant: tuple[str, ...]
) -> None:
    assert train(mlp_experiment(f"actor.model.model_path={start_model}", *variant), tmp_path)
    assert same_weights(checkpoint(finished_run, 4), checkpoint(tmp_path, 4))
    assert metrics(finished_run) == metrics(tmp_path)


@pytest.mark.parametrize("variant", ["runner.seed=7", pytest.param("env.train.seed=7", marks=pytest.mark.full)])
def test_another_seed_gives_another_run(finished_run: Path, start_model: Path, tmp_path: Path, variant: str) -> None:
    assert train(mlp_experiment(f"actor.model.model_path={start_model}", "runner.max_epochs=1", variant), tmp_path)
    assert not same_weights(checkpoint(finished_run, 1), checkpoint(tmp_path, 1))


@pytest.mark.parametrize(("interval", "started"), [(1, ["train", "eval"]), (-1, ["train"])])
def test_every_simulator_that_the_run_needs_starts_before_it_with_its_seed(
    start_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: int, started: list[str]
) -> None:
    create, collect, events = session.create_env, LocalEngine.collect, []

    def recorded_create(config: EnvConfig, name: Literal["train", "eval"], max_chunk: int, seed: int) -> VecEnv:
        events.append((name, seed))
        return create(config, name, max_chunk, seed)

    def recorded_collect(self: LocalEngine, *args: Any) -> Collected:
        events.append("rollout")
        return collect(self, *args)

    monkeypatch.setattr(session, "create_env", recorded_create)
    monkeypatch.setattr(LocalEngine, "collect", recorded_collect)
    settings = ("runner.max_epochs=1", "runner.seed=7", f"runner.val_check_interval={interval}")
    assert train(mlp_experiment(f"actor.model.model_path={start_model}", *settings), tmp_path)
    assert events == [*((name, 7) for name in started), "rollout"]


def test_evaluation_does_not_change_the_run(finished_run: Path, start_model: Path, tmp_path: Path) -> None:
    overrides = ("runner.val_check_interval=1", "env.eval.num_episodes=2", "env.eval.total_num_envs=1")
    assert train(mlp_experiment(f"actor.model.model_path={start_model}", *overrides), tmp_path)
    assert same_weights(checkpoint(finished_run, 4), checkpoint(tmp_path, 4))


def test_evaluations_are_recorded_when_asked(start_model: Path, tmp_path: Path) -> None:
    overrides = ("runner.max_epochs=2", "runner.val_check_interval=1", "env.eval.video_cfg.save_video=true")
    assert train(mlp_experiment(f"actor.model.model_path={start_model}", *overrides), tmp_path)
    for step in (1, 2):
        videos = tmp_path / "evaluations" / f"global_step_{step}" / "videos"
        assert sorted(file.name for file in videos.iterdir()) == [f"episode_00{i}_failure.mp4" for i in range(4)]


def test_a_new_state_policy_needs_no_model(tmp_path: Path) -> None:
    overrides = ("runner.max_epochs=2", "runner.val_check_interval=-1", "env.train.total_num_envs=2", *OVER_EPOCHS)
    assert train(mlp_experiment(*overrides, "actor.global_batch_size=4"), tmp_path)
    assert [line["rollout/decisions"] for line in metrics(tmp_path)] == [4, 4]
    assert [line["env/num_trajectories"] for line in metrics(tmp_path)] == [0, 2]


def test_a_disk_that_is_full_for_a_while_costs_no_update(
    start_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write, full = runner_module.new_checkpoint, [1, 2]

    def refuse(folder: Path, step: int, save: Callable[[Path], None]) -> Path:
        if step in full:
            raise UserError("It could not be written: No space left on device")
        return write(folder, step, save)

    monkeypatch.setattr(runner_module, "new_checkpoint", refuse)
    experiment = f"actor.model.model_path={start_model}", "runner.save_interval=1"
    for name in ("whole", "last"):
        (tmp_path / name).mkdir()
    assert train(mlp_experiment(*experiment, "runner.max_epochs=4"), tmp_path / "whole")
    assert saved_steps(tmp_path / "whole") == [3, 4]
    assert caplog.text.count("No space left on device") == 1
    full[:] = [4]
    with pytest.raises(UserError, match="No space left"):
        train(mlp_experiment(*experiment, "runner.max_epochs=4"), tmp_path / "last")
    assert saved_steps(tmp_path / "last") == [1, 2, 3]


def test_the_base_model_is_evaluated_first_where_that_is_asked_for(
    start_model: Path, finished_run: Path, tmp_path: Path
) -> None:
    loaded = mlp_experiment(f"actor.model.model_path={start_model}", "runner.val_before_train=true")
    for name in ("run", "play"):
        (tmp_path / name).mkdir()
    assert train(loaded, tmp_path / "run")
    first, *others = metrics(tmp_path / "run")
    assert others == metrics(finished_run), "it changes nothing of the run"
    summary = play(loaded, tmp_path / "play", PlayOptions()).summary
    assert (first["step"], first["env/total_steps"]) == (0, 0.0)
    assert (first["eval/success_once"], first["eval/num_trajectories"]) == (summary.success, summary.episodes)


def test_an_evaluation_before_training_without_evaluations_is_told() -> None:
    warnings = mlp_experiment("runner.val_before_train=true", "runner.val_check_interval=-1").warnings
    assert any("runner.val_before_train says nothing" in warning for warning in warnings)
