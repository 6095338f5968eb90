"""A resumed run is the uninterrupted one, bit for bit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from run_toys import (
    OVER_EPOCHS,
    assert_resumes_equal,
    checkpoint,
    copy_until,
    groot_experiment,
    metrics,
    mlp_experiment,
    same_weights,
)

from regrasp.checkpoint.hub_folder import load_safetensors
from regrasp.checkpoint.layout import MANIFEST, OPTIMIZER, TENSORS
from regrasp.engine.policies import overlay_rl_weights
from regrasp.errors import UserError
from regrasp.models.registry import load_policy
from regrasp.runner.resume import changes_warning, passed_over_warning
from regrasp.stages.train import train


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.full), 2])
def test_episodes_within_rollouts(
    finished_run: Path, start_model: Path, tmp_path: Path, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    copy = copy_until(finished_run, step, tmp_path / "copy")
    experiment = mlp_experiment(f"actor.model.model_path={start_model}", f"runner.resume_dir={copy}")
    assert_resumes_equal(experiment, finished_run, copy)
    assert "differs" not in caplog.text


def test_episodes_over_rollouts(start_model: Path, tmp_path: Path) -> None:
    settings = (f"actor.model.model_path={start_model}", "runner.val_check_interval=-1", *OVER_EPOCHS)
    run = tmp_path / "run"
    run.mkdir()
    assert train(mlp_experiment(*settings), run)
    assert [line["env/num_trajectories"] for line in metrics(run)] == [0, 6, 6, 0], "some updates end no episode"
    copy = copy_until(run, 2, tmp_path / "copy")
    assert_resumes_equal(mlp_experiment(*settings, f"runner.resume_dir={copy}"), run, copy)


@pytest.mark.parametrize("recompute", ["false", pytest.param("true", marks=pytest.mark.full)])
def test_a_policy_that_sees_images(groot_start: Path, tmp_path: Path, recompute: str) -> None:
    settings = (
        f"actor.model.model_path={groot_start}",
        f"runner.recompute_features={recompute}",
        "runner.val_check_interval=-1",
        "actor.optim.lr=1e-3",
        *OVER_EPOCHS,
    )
    run = tmp_path / "run"
    run.mkdir()
    assert train(groot_experiment(*settings), run)
    assert not same_weights(checkpoint(run, 1), checkpoint(run, 4))
    copy = copy_until(run, 2, tmp_path / "copy")
    assert_resumes_equal(groot_experiment(*settings, f"runner.resume_dir={copy}"), run, copy)


@pytest.mark.full
def test_adapters_on_the_language_model(groot_start: Path, tmp_path: Path) -> None:
    settings = (
        f"actor.model.model_path={groot_start}",
        "actor.model.is_lora=true",
        "actor.model.lora.rank=2",
        "runner.val_check_interval=-1",
        "actor.optim.lr=1e-3",
        *OVER_EPOCHS,
    )
    run = tmp_path / "run"
    run.mkdir()
    assert train(groot_experiment(*settings), run)
    copy = copy_until(run, 2, tmp_path / "copy")
    assert_resumes_equal(groot_experiment(*settings, f"runner.resume_dir={copy}"), run, copy)
    model = checkpoint(run, 4) / "model"
    start, merged = load_safetensors(groot_start), load_safetensors(model)
    layer = "backbone.eagle_model.language_model.model.layers.0.self_attn.q_proj.weight"
    assert start.keys() <= merged.keys()
    assert not torch.equal(start[layer], merged[layer])
    base = load_policy(groot_start)
    with pytest.raises(UserError, match="adapters") as caught:
        overlay_rl_weights(base, checkpoint(run, 4))
    assert "model/" in str(caught.value.fix)


def test_a_run_from_nothing_with_a_penalty_keeps_its_start(tmp_path: Path) -> None:
    settings = ("runner.val_check_interval=-1", "algorithm.kl_beta=0.1", "algorithm.entropy_bonus=0.1", *OVER_EPOCHS)
    run = tmp_path / "run"
    run.mkdir()
    assert train(mlp_experiment(*settings), run)
    assert metrics(run)[-1]["train/actor/kl_to_start"] != 0
    copy = copy_until(run, 2, tmp_path / "copy")
    assert_resumes_equal(mlp_experiment(*settings, f"runner.resume_dir={copy}"), run, copy)


def test_a_finished_run_has_nothing_left_to_do(finished_run: Path, start_model: Path, tmp_path: Path) -> None:
    copy = copy_until(finished_run, 4, tmp_path / "copy")
    assert train(mlp_experiment(f"actor.model.model_path={start_model}", f"runner.resume_dir={copy}"), copy)
    assert metrics(copy) == metrics(finished_run)


def test_another_configuration_is_pointed_out(
    finished_run: Path, start_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = copy_until(finished_run, 3, tmp_path / "copy")
    experiment = mlp_experiment(
        f"actor.model.model_path={start_model}", f"runner.resume_dir={copy}", "actor.optim.lr=1e-5"
    )
    assert train(experiment, copy)
    assert "configuration differs" in caplog.text
    assert "actor.optim.lr was 0.0003 and is 1e-05." in caplog.text
    assert metrics(copy)[-1]["train/actor/lr"] == pytest.approx(1e-5 / 4)


def test_at_most_five_changes_are_named() -> None:
    before = "a: {x: 1, y: [1, 2]}\nb: 0\ngone: 3\n"
    assert changes_warning(before, before) is None
    text = changes_warning(before, "a: {x: 2, y: [1, 2]}\nb: 0\nnew: {z: null}\n")
    assert text is not None
    assert text.endswith("a.x was 1 and is 2; gone was 3 and is not there; new.z was not there and is null.")
    many = changes_warning(*(str({f"k{i}": value for i in range(8)}) for value in (1, 2)))
    assert many is not None
    assert many.endswith("k4 was 1 and is 2; and 3 more.")


@pytest.mark.parametrize("damaged", [OPTIMIZER, TENSORS])
def test_a_damaged_checkpoint_is_refused_and_the_earlier_one_named(
    finished_run: Path, start_model: Path, tmp_path: Path, damaged: str
) -> None:
    copy = copy_until(finished_run, 3, tmp_path / "copy")
    file = checkpoint(copy, 3) / damaged
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(UserError, match=damaged) as caught:
        train(mlp_experiment(f"actor.model.model_path={start_model}", f"runner.resume_dir={copy}"), copy)
    assert str(checkpoint(copy, 2)) in str(caught.value)


def test_a_newest_checkpoint_that_is_cut_off_is_pointed_out(
    finished_run: Path, start_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = copy_until(finished_run, 3, tmp_path / "copy")
    os.truncate(checkpoint(copy, 3) / OPTIMIZER, 10)
    experiment = mlp_experiment(f"actor.model.model_path={start_model}", f"runner.resume_dir={copy}")
    assert_resumes_equal(experiment, finished_run, copy)
    (line,) = (line for line in caplog.messages if "Passed over" in line)
    assert line.startswith(f"Passed over: {checkpoint(copy, 3)} ({OPTIMIZER} has 10 bytes")
    assert line.endswith(f"goes on from {checkpoint(copy, 2)} instead.")


def test_only_newer_checkpoints_are_passed_over_and_none_by_who_names_one(finished_run: Path, tmp_path: Path) -> None:
    copy = copy_until(finished_run, 3, tmp_path / "copy")
    taken = checkpoint(copy, 2)
    shutil.rmtree(checkpoint(copy, 1))
    checkpoint(copy, 1).mkdir()
    (checkpoint(copy, 3) / MANIFEST).unlink()
    assert passed_over_warning(taken, taken) is None
    assert passed_over_warning(copy, checkpoint(copy, 3)) is None
    warning = passed_over_warning(copy, taken) or ""
    assert f"{checkpoint(copy, 3)} ({MANIFEST} is missing" in warning
    assert str(checkpoint(copy, 1)) not in warning


def test_a_run_that_cannot_be_continued_says_why(tmp_path: Path) -> None:
    settings = (
        "runner.max_epochs=1",
        "runner.val_check_interval=-1",
        "runner.logger.logger_backends=[tensorboard]",
    )
    run = tmp_path / "run"
    run.mkdir()
    assert train(mlp_experiment(*settings), run)
    written = sorted(run.rglob("*"))
    for key, change in (
        ("actor.model", "actor.model.mlp.hidden=[8]"),
        ("env.train.total_num_envs", "env.train.total_num_envs=5"),
    ):
        with pytest.raises(UserError, match="begun with") as caught:
            train(mlp_experiment(*settings, "runner.max_epochs=2", f"runner.resume_dir={run}", change), run)
        assert caught.value.key == key
        assert sorted(run.rglob("*")) == written, "a refused run leaves no trace"


def test_weights_of_a_checkpoint_are_plain_tensors(finished_run: Path) -> None:
    weights = torch.load(
        checkpoint(finished_run, 4) / "actor/model_state_dict/full_weights.pt", weights_only=True, map_location="cpu"
    )
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
