"""A model, a checkpoint and an export know their experiment, and commands take it from there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from regrasp.cli.main import main
from regrasp.experiment.load import load_config
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.models.origin import EXPERIMENT_FILE, ORIGIN_FILE
from regrasp.stages.collect import collect
from regrasp.stages.sft import train_base
from regrasp.stages.train import train

SMALL = (
    "runner.logger.logger_backends=[]",
    "runner.max_epochs=2",
    "runner.save_interval=1",
    "runner.val_check_interval=-1",
    "runner.force=true",
    "env.train.total_num_envs=4",
    "env.train.num_workers=1",
    "env.eval.total_num_envs=4",
    "env.eval.num_workers=1",
    "env.eval.num_episodes=4",
    "actor.global_batch_size=24",
    "actor.micro_batch_size=24",
    "algorithm.rollout_epoch=1",
    "collect.num_demos=2",
    "sft.steps=2",
    "sft.validation_fraction=0",
    "actor.optim.lr=2e-5",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, `base`, and a run of two updates, `run`."""
    folder = tmp_path_factory.mktemp("made")
    config = load_config("pick_cube_ppo_mlp", SMALL).config
    collect(config, folder / "demos")
    train_base(config, folder / "demos", output=folder / "base")
    loaded = load_config("pick_cube_ppo_mlp", [*SMALL, f"actor.model.model_path={folder / 'base'}"])
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text(loaded.to_yaml())
    assert train(loaded, run, "regrasp train")
    return folder


def rehearse(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict, str]:
    """Exit code of a dry run, the experiment that it printed, and what it said."""
    command, *rest = arguments
    code = main([command, "--dry_run", *rest])
    printed = capsys.readouterr()
    return code, yaml.safe_load(printed.out) or {}, printed.err


def test_folders_keep_name_task_mapping_and_every_value(made: Path) -> None:
    model = made / "run" / "pick_cube_ppo_mlp" / "checkpoints" / "global_step_2" / "model"
    for folder in (made / "base", model):
        described = json.loads((folder / ORIGIN_FILE).read_text())
        assert described["experiment"] == "pick_cube_ppo_mlp"
        assert described["tasks"] == ["Regrasp-Pick-Cube-v0"]
        assert (
            load_config(str(folder / EXPERIMENT_FILE)).config
            == load_config(
                "pick_cube_ppo_mlp",
                [
                    *(setting for setting in SMALL if setting != "runner.force=true"),
                ],
            ).config
        )


@pytest.mark.parametrize("command", ["play", "train"])
def test_commands_take_the_models_experiment(made: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, experiment, said = rehearse(capsys, command, "--model_path", str(made / "base"), "algorithm.gamma=0.9")
    assert code == 0
    assert "[WARN]" not in said
    assert experiment["actor"]["optim"]["lr"] == 2e-5
    assert experiment["algorithm"]["gamma"] == 0.9
    assert experiment["actor"]["model"]["model_path"] == str(made / "base")
    code, experiment, _ = rehearse(capsys, command, f"actor.model.model_path={made / 'base'}")
    assert (code, experiment["actor"]["optim"]["lr"]) == (0, 2e-5)


def test_a_run_means_its_newest_model(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = made / "run" / "pick_cube_ppo_mlp" / "checkpoints" / "global_step_2"
    for command, given in (("play", made / "run"), ("collect", made / "run"), ("play", newest)):
        code, experiment, said = rehearse(capsys, command, "--model_path", str(given))
        assert (code, experiment["actor"]["model"]["model_path"]) == (0, str(newest / "model")), said
    code, experiment, _ = rehearse(capsys, "train", "--resume_dir", str(made / "run"), "--max_iterations", "4")
    assert (code, experiment["runner"]["max_epochs"]) == (0, 4)
    assert experiment["actor"]["model"]["model_path"] == str(made / "base")


def test_an_evaluation_says_which_experiment_it_took(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["play", "--model_path", str(made / "run"), f"runner.logger.log_path={tmp_path}"]) == 0
    said = capsys.readouterr().out
    model = made / "run" / "pick_cube_ppo_mlp" / "checkpoints" / "global_step_2" / "model"
    assert f"[INFO] The newest checkpoint of {made / 'run'}: {model.parent}" in said
    assert f"[INFO] Experiment: {model / EXPERIMENT_FILE}, of the model {model}" in said


def test_another_experiment_is_held_against_the_models_own(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--model_path", str(made / "base"), "--config_name", "pick_cube_ppo_mlp"]
    code, _, said = rehearse(capsys, "play", *chosen)
    assert code == 0
    assert "[WARN]" not in said
    swapped = "mapping.states=[gripper_opening,gripper_position,policy/object_positions,policy/target_one_hot]"
    code, _, said = rehearse(capsys, "play", *chosen, f"env.eval.{swapped}")
    assert code == 0
    assert said.count("[WARN]") == 1
    assert "env.eval.mapping.states is [{key: 'gripper_opening'" in said
    assert "the model was trained with [{key: 'policy/gripper_position'" in said
    code, _, said = rehearse(capsys, "train", *chosen, "--task", "Regrasp-Stack-Cube-v0")
    assert code == 2, "six instructions make the state wider"
    code, _, said = rehearse(capsys, "play", *chosen, "env.eval.mapping.states=[gripper_position]")
    assert code == 2
    assert f"--config_name {made / 'base' / EXPERIMENT_FILE}" in said
    code, _, said = rehearse(
        capsys, "train", "--model_path", str(made / "base"), "--config_name", "pick_cube_ppo_groot"
    )
    assert code == 2
    assert f"--config_name {made / 'base' / EXPERIMENT_FILE}" in said


def test_a_folder_of_an_earlier_version_is_used_with_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MlpPolicy(state_dim=16, action_dim=4, num_action_chunks=4).save(tmp_path / "old")
    code, _, said = rehearse(capsys, "play", "--model_path", str(tmp_path / "old"))
    assert code == 2, "the default asks for a GR00T"
    assert f"{tmp_path / 'old'} does not say which experiment it was made with: pick_cube_sac_groot is taken" in said
    assert "--config_name" in said.partition("error:")[2]
    code, _, said = rehearse(
        capsys, "play", "--model_path", str(tmp_path / "old"), "--config_name", "pick_cube_ppo_mlp"
    )
    assert code == 0
    assert "does not say" not in said


def test_a_kept_experiment_that_cannot_be_read_says_how_to_name_another(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "base", tmp_path / "base")
    file = tmp_path / "base" / EXPERIMENT_FILE
    for text in (file.read_text().replace("gamma:", "gama:"), "env: {", "3"):
        file.write_text(text)
        assert main(["play", "--model_path", str(tmp_path / "base")]) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert str(file) in error
        assert "--config_name" in error


def test_a_task_of_another_simulator_has_its_own_experiment(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model_path", str(made / "base"), "--policy", "model"]
    code, _, said = rehearse(capsys, "play", *model, "--task", "Isaac-Stack-Cube-Franka-IK-Rel-Visuomotor-v0")
    assert code == 2
    assert "isaaclab_stack_cube_ppo_groot" in said
    code, experiment, said = rehearse(capsys, "play", *model, "--task", "Regrasp-Pick-Cube-v0")
    assert (code, experiment["actor"]["optim"]["lr"]) == (0, 2e-5)


def test_an_export_keeps_the_experiment_or_gets_another(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["export", "--model_path", str(made / "base"), "--output"]
    assert main([*base, str(tmp_path / "own"), "--rl_model_path", str(made / "run")]) == 0
    kept = (made / "base" / EXPERIMENT_FILE).read_text()
    assert (tmp_path / "own" / EXPERIMENT_FILE).read_text() == kept
    assert main([*base, str(tmp_path / "other"), "--config_name", "pick_cube_ppo_mlp"]) == 0
    other = load_config(str(tmp_path / "other" / EXPERIMENT_FILE)).config
    assert other == load_config("pick_cube_ppo_mlp").config
    capsys.readouterr()
    assert main([*base, str(tmp_path / "no"), "--config_name", "pick_cube_ppo_groot"]) == 2
    assert f"--config_name {made / 'base' / EXPERIMENT_FILE}" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
