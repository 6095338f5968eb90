"""Runs that stop themselves, and what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_toys import checkpoint, groot_experiment, metrics, mlp_experiment, saved_steps

from regrasp.checkpoint.read import read_checkpoint
from regrasp.engine.local import Collected, LocalEngine
from regrasp.envs.contract import Step
from regrasp.envs.process.vector import RemoteVecEnv
from regrasp.errors import SimulatorError, TrainingHaltedError
from regrasp.experiment.load import LoadedConfig, load_config
from regrasp.rollout.episodes import EpisodeResult
from regrasp.runner.guards import SignalGuard
from regrasp.runner.runner import EmbodiedRunner
from regrasp.stages.train import train

HEAD = "actor.model.rl_head_config"
NO_GRADIENT = {"actor/grad_norm": 0.0, "critic/grad_norm": 0.0}


def episodes(count: int, *, success: bool = False, reward: float = 0.0) -> list[EpisodeResult]:
    return [EpisodeResult(0, "do it", success, reward, 5, {})] * count


def test_no_success_and_no_reward_at_all() -> None:
    guard = SignalGuard(force=False, noise_key="actor.model.rl_head_config.noise_level")
    guard.after_rollout(episodes(63), is_flat=False)
    with pytest.raises(TrainingHaltedError, match="None of the first 64 episodes") as caught:
        guard.after_rollout(episodes(1), is_flat=False)
    for cause in ("base model", "mapping", "instruction", "noise_level", "--force"):
        assert cause in str(caught.value)


@pytest.mark.parametrize(
    ("experiment", "key"),
    [
        (groot_experiment(f"{HEAD}.noise_anneal=false"), f"{HEAD}.noise_level"),
        (groot_experiment(f"{HEAD}.noise_anneal=true"), f"{HEAD}.noise_params"),
        (groot_experiment(f"{HEAD}.noise_method=flow_noise"), None),
        (mlp_experiment(), "actor.model.mlp.initial_std"),
        (mlp_experiment("actor.model.model_path=learned"), None),
    ],
)
def test_the_noise_is_named_by_the_key_of_the_model(experiment: LoadedConfig, key: str | None) -> None:
    block = experiment.config.actor.model
    assert block.noise_key == key
    for part in (key or "").split(".")[2:]:
        block = getattr(block, part)
    guard = SignalGuard(force=False, noise_key=key)
    with pytest.raises(TrainingHaltedError) as caught:
        guard.after_rollout(episodes(64), is_flat=False)
    assert f"exploration noise is too large{f' ({key})' if key else ''}." in str(caught.value)


@pytest.mark.parametrize("found", [{"success": True}, {"reward": -0.1}, {"reward": 0.1}])
def test_one_success_or_reward_is_enough(found: dict) -> None:
    guard = SignalGuard(force=False)
    guard.after_rollout(episodes(1, **found), is_flat=False)
    for _ in range(10):
        guard.after_rollout(episodes(64), is_flat=False)


def test_advantages_that_do_not_vary() -> None:
    guard = SignalGuard(force=False)
    for is_flat in (True, True, True, True, False, True, True, True, True):
        guard.after_rollout(episodes(1, success=True), is_flat=is_flat)
    with pytest.raises(TrainingHaltedError, match="advantages of 5 updates in a row") as caught:
        guard.after_rollout(episodes(1, success=True), is_flat=True)
    assert "every episode succeeds, or none does" in str(caught.value)


def test_gradients_that_vanish() -> None:
    guard = SignalGuard(force=False)
    none = NO_GRADIENT
    for metrics_of in (none, none, none, none, {**none, "critic/grad_norm": 1.0}, {}, none, none, none, none):
        guard.after_update(metrics_of)
    with pytest.raises(TrainingHaltedError, match="gradient was zero in 5 updates") as caught:
        guard.after_update(none)
    assert "actor.model.trainable" in str(caught.value)


def test_force_stops_nothing_and_warns_once_of_each(caplog: pytest.LogCaptureFixture) -> None:
    guard = SignalGuard(force=True)
    for _ in range(10):
        guard.after_rollout(episodes(64), is_flat=True)
        guard.after_update(NO_GRADIENT)
    warnings = caplog.messages
    assert len(warnings) == 3
    for warning, text in zip(warnings, ("None of the first 64", "advantages of 5", "gradient was zero"), strict=True):
        assert text in warning
        assert "Continuing because runner.force is true" in warning


def test_updates_without_any_reward_are_hinted_at_once(caplog: pytest.LogCaptureFixture) -> None:
    guard = SignalGuard(force=False)
    guard.after_rollout(episodes(1, success=True), is_flat=False)
    for found in (episodes(4), [], episodes(4), episodes(4, reward=0.5), episodes(4), episodes(4)):
        guard.after_rollout(found, is_flat=False)
    assert not caplog.messages
    for _ in range(5):
        guard.after_rollout(episodes(4), is_flat=False)
    (hint,) = caplog.messages
    assert hint.startswith("No episode of the last 3 updates had a success or any reward")


def test_an_update_without_anything_to_learn_from_is_told_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    guard = SignalGuard(force=True)
    for number in range(45):
        guard.after_rollout(episodes(1, success=True), is_flat=False, why_nothing="All dropped." if number % 2 else "")
    assert caplog.messages == ["An update had nothing to learn from, and changed nothing. All dropped."] * 3


def test_updates_that_are_cut_short_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    guard = SignalGuard(force=False, num_steps=24)
    for made in (1, 3, 4, 5, 6, 1, 1, 1, 1):
        guard.after_update({"actor/grad_norm": 1.0, "actor/minibatches": float(made)})
    assert not caplog.messages, "a quarter of the steps ends the row"
    for _ in range(3):
        guard.after_update({"actor/grad_norm": 1.0, "actor/minibatches": 2.0})
    (warning,) = caplog.messages
    assert warning.startswith("5 updates in a row were cut short, the last one after 2 of 24 optimizer steps")
    assert all(name in warning for name in ("algorithm.target_kl", "actor.optim.lr", "bf16"))


@pytest.mark.parametrize(("name", "is_told"), [("pick_cube_ppo_groot", True), ("pick_cube_sac_groot", False)])
def test_updates_from_stored_experience_are_as_long_as_episodes_are(
    name: str, is_told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nothing: Any = None
    runner = EmbodiedRunner(load_config(name).config, nothing, nothing, tmp_path, "")
    for _ in range(9):
        runner._guard.after_update({"actor/grad_norm": 1.0, "actor/minibatches": 2.0})
    assert bool(caplog.messages) == is_told


def restored(guard: SignalGuard) -> SignalGuard:
    """A guard in another process."""
    other = SignalGuard(force=False)
    other.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    return other


def test_episodes_are_counted_over_a_resumption() -> None:
    guard = SignalGuard(force=False)
    guard.after_rollout(episodes(63), is_flat=False)
    with pytest.raises(TrainingHaltedError, match="None of the first 64 episodes"):
        restored(guard).after_rollout(episodes(1), is_flat=False)
    guard.after_rollout(episodes(1, success=True), is_flat=False)
    restored(guard).after_rollout(episodes(64), is_flat=False)


@pytest.mark.parametrize("interrupted_after", range(1, 5))
def test_updates_in_a_row_are_counted_over_a_resumption(interrupted_after: int) -> None:
    guard = SignalGuard(force=False)
    for update in range(4):
        guard.after_rollout(episodes(1, success=True), is_flat=True)
        guard.after_update(NO_GRADIENT)
        if update + 1 == interrupted_after:
            guard = restored(guard)
    with pytest.raises(TrainingHaltedError, match="advantages of 5 updates"):
        guard.after_rollout(episodes(1), is_flat=True)
    with pytest.raises(TrainingHaltedError, match="gradient was zero in 5 updates"):
        guard.after_update(NO_GRADIENT)


def test_what_a_forced_run_saw_counts_when_it_is_resumed_without_force() -> None:
    forced = SignalGuard(force=True)
    forced.after_rollout(episodes(64, reward=1.0), is_flat=False)
    restored(forced).after_rollout(episodes(64), is_flat=False)


MANY = (
    "env.train.total_num_envs=32",
    "runner.val_check_interval=-1",
    "runner.max_epochs=3",
    "actor.global_batch_size=96",
    "actor.micro_batch_size=96",
    "algorithm.update_epoch=1",
)


def test_a_run_without_any_success_halts_and_keeps_what_it_had(tmp_path: Path, start_model: Path) -> None:
    model = f"actor.model.model_path={start_model}"
    with pytest.raises(TrainingHaltedError, match="None of the first 64 episodes"):
        train(mlp_experiment(*MANY, model, "runner.save_interval=-1"), tmp_path)
    assert saved_steps(tmp_path) == [1], "the update before the rollout that halted the run"
    with pytest.raises(TrainingHaltedError, match="None of the first 64 episodes"):
        train(mlp_experiment(*MANY, model, f"runner.resume_dir={tmp_path}"), tmp_path)
    assert saved_steps(tmp_path) == [1], "the resumed run halts at the same update"
    forced = mlp_experiment(*MANY, model, "runner.force=true", f"runner.resume_dir={tmp_path}")
    assert train(forced, tmp_path)
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3]


def test_a_simulator_that_fails_costs_one_rollout(
    tmp_path: Path, start_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_step, calls = RemoteVecEnv.end_step, 0

    def failing(self: RemoteVecEnv) -> Step:
        nonlocal calls
        calls += 1
        if calls == 3 + 2:
            raise SimulatorError("died")
        return end_step(self)

    monkeypatch.setattr(RemoteVecEnv, "end_step", failing)
    overrides = (f"actor.model.model_path={start_model}", "runner.save_interval=-1", "runner.max_restarts=0")
    with pytest.raises(SimulatorError, match="died"):
        train(mlp_experiment(*overrides), tmp_path)
    assert read_checkpoint(checkpoint(tmp_path, 1)).step == 1


@pytest.mark.parametrize("place", ["rewards", "states"])
def test_a_number_that_is_not_finite_is_never_learned_from(
    tmp_path: Path, start_model: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    end_step, learned = RemoteVecEnv.end_step, []

    def broken(self: RemoteVecEnv) -> Step:
        result = end_step(self)
        (result.rewards if place == "rewards" else result.observation.state["state"])[4, 0] = float("nan")
        return result

    monkeypatch.setattr(RemoteVecEnv, "end_step", broken)
    monkeypatch.setattr(LocalEngine, "update", lambda *args: learned.append(args))
    with pytest.raises(TrainingHaltedError, match=r"Environment 4 returned a (reward|state)"):
        train(mlp_experiment(f"actor.model.model_path={start_model}"), tmp_path)
    assert not learned


@pytest.mark.parametrize("save_interval", [pytest.param(2, marks=pytest.mark.full), -1])
def test_the_batch_of_a_loss_that_is_not_finite_can_be_looked_at(
    tmp_path: Path, start_model: Path, monkeypatch: pytest.MonkeyPatch, save_interval: int
) -> None:
    collect = LocalEngine.collect

    def poisoned(self: LocalEngine, update: int, should_stop) -> Collected:
        collected = collect(self, update, should_stop)
        if update == 2:
            assert self.decisions is not None
            self.decisions["advantages"][5] = float("nan")
        return collected

    monkeypatch.setattr(LocalEngine, "collect", poisoned)
    with pytest.raises(TrainingHaltedError, match="loss is not finite") as caught:
        train(
            mlp_experiment(f"actor.model.model_path={start_model}", f"runner.save_interval={save_interval}"), tmp_path
        )
    file = tmp_path / "halted" / "batch_update_2.pt"
    assert str(file) in str(caught.value)
    batch = torch.load(file, weights_only=True)
    assert batch["advantages"].isnan().sum() == 1
    assert batch["inputs"]["state"].shape == (len(batch["advantages"]), 16)
    assert batch["trace"]["actions"].shape == (len(batch["advantages"]), 4, 4)
    assert saved_steps(tmp_path) == [2]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_a_first_ratio_away_from_one_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    guard = SignalGuard(force=False)
    for error in (0.0, 0.02, 0.05, 0.07):
        guard.after_update({"actor/grad_norm": 1.0, "actor/first_ratio_error": error})
    assert [record.message for record in caplog.records if "0.050 away from 1" in record.message] == caplog.messages


def test_a_policy_older_than_the_one_that_trains_has_other_ratios(caplog: pytest.LogCaptureFixture) -> None:
    SignalGuard(force=False, on_policy=False).after_update({"actor/grad_norm": 1.0, "actor/first_ratio_error": 0.5})
    assert not caplog.messages
