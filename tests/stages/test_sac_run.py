"""Runs of soft actor-critic resume bit for bit, and their models act elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from run_toys import (
    OVER_EPOCHS,
    assert_resumes_equal,
    assert_same_checkpoint,
    checkpoint,
    copy_until,
    groot_experiment,
    metrics,
    mlp_experiment,
    same_weights,
    without_values,
)

from regrasp.cli.main import main
from regrasp.errors import UserError
from regrasp.experiment.load import LoadedConfig
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.registry import load_policy
from regrasp.stages.train import train

SAC = (
    "actor.model.add_value_head=false",
    "actor.model.add_q_head=true",
    "algorithm.adv_type=embodied_sac",
    "algorithm.loss_type=embodied_sac",
    "algorithm.update_epoch=3",
    "algorithm.replay_buffer.capacity=64",
    "algorithm.replay_buffer.min_decisions=4",
)


def experiment(*overrides: str) -> LoadedConfig:
    return mlp_experiment(*SAC, "runner.val_check_interval=-1", *overrides)


@pytest.mark.parametrize(
    "settings",
    [pytest.param((), marks=pytest.mark.full), (*OVER_EPOCHS, "algorithm.n_step=2")],
    ids=["whole", "over_epochs"],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, settings: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert train(experiment(*settings), run)
    lines = metrics(run)
    assert without_values(experiment(*settings), run) == []
    assert len({line["train/sac/critic_loss"] for line in lines}) == len(lines)
    copy = copy_until(run, 2, tmp_path / "copy")
    assert_resumes_equal(experiment(*settings, f"runner.resume_dir={copy}"), run, copy)
    policy = load_policy(checkpoint(run, 4) / "model")
    assert "q_head" not in policy.offers
    stored = torch.load(checkpoint(run, 4) / "actor/model_state_dict/full_weights.pt", weights_only=True)
    for name, weight in policy.state_dict().items():
        assert torch.equal(weight, stored[name]), name


def test_a_groots_residual_resumes_bit_for_bit_and_its_model_acts_with_it(base_model: Path, tmp_path: Path) -> None:
    model = f"actor.model.model_path={base_model}"
    settings = (
        *SAC,
        model,
        "actor.model.q_head.num_decisions=4",
        "actor.model.residual.random_updates=1",
        "runner.max_epochs=3",
    )
    run = tmp_path / "run"
    run.mkdir()
    assert train(groot_experiment(*settings), run)
    copy = copy_until(run, 2, tmp_path / "copy")
    assert train(groot_experiment(*settings, f"runner.resume_dir={copy}"), copy)
    assert_same_checkpoint(checkpoint(run, 3), checkpoint(copy, 3))
    policy = load_policy(checkpoint(run, 3) / "model")
    assert isinstance(policy, GrootPolicy)
    assert policy.residual is not None
    assert any(weight.any() for weight in policy.residual.body[-1].parameters())


@pytest.mark.parametrize("latents", [True, pytest.param(False, marks=pytest.mark.full)])
def test_an_actor_of_a_groots_noise_resumes_bit_for_bit_and_stays_with_the_model(
    base_model: Path, tmp_path: Path, latents: bool
) -> None:
    settings = (
        *SAC,
        f"actor.model.model_path={base_model}",
        "actor.model.proposal=dsrl",
        "actor.model.dsrl.hidden=[16]",
        f"algorithm.latent_targets={str(latents).lower()}",
        "runner.max_epochs=3",
    )
    run = tmp_path / "run"
    run.mkdir()
    assert train(groot_experiment(*settings), run)
    assert all("train/sac/latent_loss" in line for line in metrics(run))
    copy = copy_until(run, 2, tmp_path / "copy")
    assert train(groot_experiment(*settings, f"runner.resume_dir={copy}"), copy)
    assert_same_checkpoint(checkpoint(run, 3), checkpoint(copy, 3))
    policy = load_policy(checkpoint(run, 3) / "model")
    assert isinstance(policy, GrootPolicy)
    assert policy.noise_actor is not None
    assert policy.latent_head is None


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            ("actor.model.proposal=sac_flow", "algorithm.proximity=[1.0,1.0,0]", "algorithm.proximity_to=start"),
            marks=pytest.mark.full,
        ),
        pytest.param(
            (
                "actor.model.proposal=selection",
                "algorithm.entropy_tuning.alpha_type=fixed_alpha",
                "algorithm.entropy_tuning.initial_alpha=0",
            ),
            marks=pytest.mark.full,
        ),
    ],
    ids=["sac_flow", "selection"],
)
def test_a_head_that_critics_train_resumes_bit_for_bit_and_a_plain_model_comes_out(
    base_model: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    settings = (*SAC, f"actor.model.model_path={base_model}", *settings, "runner.max_epochs=3")
    run = tmp_path / "run"
    run.mkdir()
    assert train(groot_experiment(*settings), run)
    copy = copy_until(run, 2, tmp_path / "copy")
    assert train(groot_experiment(*settings, f"runner.resume_dir={copy}"), copy)
    assert_same_checkpoint(checkpoint(run, 3), checkpoint(copy, 3))
    assert not same_weights(checkpoint(run, 1), checkpoint(run, 3))
    policy = load_policy(checkpoint(run, 3) / "model")
    assert isinstance(policy, GrootPolicy)
    assert policy.steering is None
    assert policy.student() is None


@pytest.mark.full
def test_a_run_with_its_replay_in_files_and_demonstrations_beside_it_resumes_bit_for_bit(
    base_model: Path, demos: Path, tmp_path: Path
) -> None:
    buffers = (f"algorithm.demo_buffer.load_path={demos}", "algorithm.demo_buffer.share=0.25")
    files = ("algorithm.replay_buffer.max_memory_gb=1e-6", f"algorithm.replay_buffer.storage_path={tmp_path}")
    settings = (*SAC, f"actor.model.model_path={base_model}", *buffers, "runner.max_epochs=3")
    run, in_files = tmp_path / "run", tmp_path / "in_files"
    for folder, added in ((run, ()), (in_files, files)):
        folder.mkdir()
        assert train(groot_experiment(*settings, *added), folder)
    assert same_weights(checkpoint(run, 3), checkpoint(in_files, 3))
    assert metrics(run) == metrics(in_files)
    assert {line["train/demo_buffer/share"] for line in metrics(run)} == {0.25}
    copy = copy_until(in_files, 2, tmp_path / "copy")
    assert train(groot_experiment(*settings, *files, f"runner.resume_dir={copy}"), copy)
    assert_same_checkpoint(checkpoint(in_files, 3), checkpoint(copy, 3))


def test_what_is_wrong_with_replayed_demonstrations_and_files_is_found_before_anything_starts(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["train", "--config_name", "pick_cube_sac_groot", "--model_path", str(base_model)]
    load, store = "algorithm.demo_buffer.load_path", "algorithm.replay_buffer.storage_path"
    for override, is_warning, said in (
        (f"{load}=absent", True, "The folder does not exist."),
        (f"{load}=org/absent", True, "`hf download org/absent --repo-type dataset` fetches it"),
        (f"{load}={base_model}", False, "This folder holds no dataset: it has no meta/info.json"),
        (f"{store}=absent", True, "Stored experience has no folder for its files"),
    ):
        given = [override, "algorithm.replay_buffer.max_memory_gb=1"]
        assert main([*command, "--dry_run", *given]) == (0 if is_warning else 2)
        error = capsys.readouterr().err
        assert said in error
        assert f"key:      {override.partition('=')[0]}" in error
        assert main([*command, *given]) == 2
    assert "Logging to" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_policy_that_imitates_has_no_entropy(base_model: Path, tmp_path: Path) -> None:
    settings = (*SAC, f"actor.model.model_path={base_model}", "actor.model.proposal=selection")
    with pytest.raises(UserError, match="no entropy"):
        train(groot_experiment(*settings), tmp_path)


def test_targets_from_critics_of_latents_need_such_critics(base_model: Path, tmp_path: Path) -> None:
    settings = (*SAC, f"actor.model.model_path={base_model}", "algorithm.latent_targets=true")
    with pytest.raises(UserError, match="no critics of latents"):
        train(groot_experiment(*settings), tmp_path)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("actor.model.add_value_head=true", "actor.model.add_value_head"),
        ("actor.model.add_q_head=false", "actor.model.add_q_head"),
        ("runner.recompute_features=true", "runner.recompute_features"),
        ("algorithm.group_size=2", "algorithm.group_size"),
        ("algorithm.replay_buffer.min_decisions=65", "algorithm.replay_buffer.min_decisions"),
        ("algorithm.updates_per_decision=1", "algorithm.update_epoch"),
    ],
)
def test_what_cannot_be_is_said(change: str, key: str) -> None:
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        experiment(change)


def test_critics_without_an_algorithm_that_asks_for_them_are_a_mistake() -> None:
    with pytest.raises(UserError, match=r"no effect[\s\S]*add_q_head"):
        mlp_experiment("actor.model.add_q_head=true", "actor.model.add_value_head=false")
