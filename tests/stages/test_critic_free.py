"""Algorithms without a value function, in whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from run_toys import assert_same_checkpoint, checkpoint, metrics, mlp_experiment, without_values

from regrasp.models.registry import load_policy
from regrasp.stages.play import PlayOptions, play
from regrasp.stages.train import train

ALGORITHMS = {"grpo": ("algorithm.group_size=3",), "reinpp": ("algorithm.kl_beta=0.01",)}


def overrides(adv_type: str, start: Path) -> list[str]:
    chosen = (f"algorithm.adv_type={adv_type}", "algorithm.loss_type=actor", "runner.force=true")
    return [*chosen, *ALGORITHMS[adv_type], f"actor.model.model_path={start}"]


@pytest.mark.parametrize("adv_type", [pytest.param("grpo", marks=pytest.mark.full), "reinpp"])
def test_a_run_has_no_value_head_and_resumes_bit_for_bit(adv_type: str, start_model: Path, tmp_path: Path) -> None:
    assert "value" in load_policy(start_model).offers
    loaded = mlp_experiment(*overrides(adv_type, start_model))
    assert loaded.config.actor.model.add_value_head is False
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    resumed.mkdir()
    assert train(loaded, whole)
    weights = torch.load(checkpoint(whole, 4) / "actor" / "model_state_dict" / "full_weights.pt", weights_only=True)
    assert not any(name.startswith("value_head") for name in weights)
    assert not any("critic" in tag for row in metrics(whole) for tag in row)
    if adv_type == "reinpp":  # of the other, every group is dropped: nobody succeeds
        assert without_values(loaded, whole) == []

    again = mlp_experiment(*overrides(adv_type, start_model), f"runner.resume_dir={checkpoint(whole, 2)}")
    assert train(again, resumed)
    assert_same_checkpoint(checkpoint(whole, 4), checkpoint(resumed, 4))
    assert metrics(resumed) == metrics(whole)[2:]


@pytest.mark.parametrize("adv_type", ["grpo", pytest.param("reinpp", marks=pytest.mark.full)])
def test_its_model_is_evaluated_and_trained_on_with_a_value_head(
    adv_type: str, start_model: Path, tmp_path: Path
) -> None:
    run, evaluation, further = tmp_path / "run", tmp_path / "evaluation", tmp_path / "further"
    for folder in (run, evaluation, further):
        folder.mkdir()
    assert train(mlp_experiment(*overrides(adv_type, start_model), "runner.max_epochs=1"), run)
    model = checkpoint(run, 1) / "model"
    assert "value" not in load_policy(model).offers
    assert len(play(mlp_experiment(f"actor.model.model_path={model}"), evaluation, PlayOptions()).episodes) == 4
    ppo = mlp_experiment(f"actor.model.model_path={model}", "runner.max_epochs=1", "runner.force=true")
    assert train(ppo, further)
    assert "value" in load_policy(checkpoint(further, 1) / "model").offers
