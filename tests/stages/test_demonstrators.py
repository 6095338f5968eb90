"""Demonstrations by a trained policy and by a function of the user's."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from run_toys import SMALL, successes

from lab_python import LAB_PYTHON, STAND_IN, needs_lab
from regrasp.cli.main import main
from regrasp.data.lerobot import DemonstrationDataset
from regrasp.envs.contract import Observation
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import load_config
from regrasp.models.registry import load_policy
from regrasp.rollout.choosers import load_script, nested
from regrasp.stages.collect import collect
from regrasp.stages.demonstrations import ACTION, STATE

SCRIPT = """
import numpy as np
import torch

calls = []

def reach(observation, steps):
    policy = observation["policy"]
    offset = policy["object_positions"][:, :3] - policy["gripper_position"]
    actions = torch.cat([(offset / 0.05).clamp(-1, 1), steps[:, None] / 100], 1)
    calls.append((observation, steps.clone(), actions))
    return actions

def short(observation, steps):
    return np.zeros((len(steps), 3))

def still(observation, steps):
    return np.full((len(steps), 4), 0.125)

number = 3
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder holds a module `my_script`."""
    (tmp_path / "my_script.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_script", raising=False)
    return tmp_path


def experiment(*overrides: str) -> ExperimentConfig:
    own = ("env.train.total_num_envs=3", "collect.num_demos=3", "collect.only_successful=false")
    return load_config("pick_cube_ppo_mlp", [*SMALL, *own, *overrides]).config


def record(config: ExperimentConfig, policy: str, folder: Path) -> DemonstrationDataset:
    return DemonstrationDataset(collect(config, folder, policy)[0])


def test_a_function_acts_on_the_observation_of_the_groups(script: Path) -> None:
    dataset = record(experiment(), "my_script:reach", script / "dataset")
    columns = dataset.load_columns([STATE, ACTION, "episode_index"])
    calls = sys.modules["my_script"].calls
    assert [steps.tolist() for _, steps, _ in calls] == [[i] * 3 for i in range(len(calls))]
    assert {name: tuple(value.shape) for name, value in calls[0][0]["policy"].items()} == {
        "gripper_position": (3, 3),
        "gripper_opening": (3, 1),
        "object_positions": (3, 9),
        "target_one_hot": (3, 3),
    }
    for episode in range(3):
        states, actions = (columns[name][columns["episode_index"] == episode] for name in (STATE, ACTION))
        mine = calls[: len(states)]
        positions = [observation["policy"]["gripper_position"][episode] for observation, _, _ in mine]
        assert np.array_equal(states[:, :3], torch.stack(positions)), "what it saw stands beside what it did"
        assert np.array_equal(actions, torch.stack([returned[episode] for _, _, returned in mine]))


def test_what_a_function_returns_is_executed_and_recorded_without_noise(script: Path) -> None:
    dataset = record(experiment("collect.action_noise=5.0"), "my_script:still", script / "dataset")
    columns = dataset.load_columns([STATE, ACTION, "episode_index"])
    assert (columns[ACTION] == 0.125).all()
    positions = columns[STATE][columns["episode_index"] == 0][:, :3]
    assert (np.diff(positions, axis=0)[1:6] > 0).all(), "a steady push, without noise"


def test_observations_that_the_mapping_does_not_name_reach_the_function(script: Path) -> None:
    config = experiment("env.train.mapping.states=[gripper_position]")
    dataset = record(config, "my_script:reach", script / "dataset")
    assert dataset.features[STATE].shape == (3,)
    assert sys.modules["my_script"].calls[0][0]["policy"]["object_positions"].abs().sum() > 0


def test_an_action_of_another_width_is_one_error(script: Path) -> None:
    with pytest.raises(UserError, match="did not return an action") as caught:
        record(experiment(), "my_script:short", script / "dataset")
    assert caught.value.value == "my_script:short returned (3, 3)"
    assert not (script / "dataset").exists()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("my_skript:reach", "no module 'my_skript'"),
        ("my_script.sub:reach", "no module 'my_script.sub'"),
        ("my_script:lft", "my_script has no 'lft'"),
        ("my_script:number", "my_script:number is no function"),
    ],
)
def test_a_function_that_is_not_there_is_one_error(script: Path, name: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        load_script(name)
    assert caught.value.key == "--policy"


def test_a_module_that_misses_another_is_not_mistaken_for_it(script: Path) -> None:
    (script / "broken.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(UserError, match=r"broken cannot be imported: .*not_installed_anywhere"):
        load_script("broken:act")


def test_groups_are_dictionaries() -> None:
    one, two, three = torch.zeros(1), torch.ones(1), torch.ones(2)
    assert nested({"policy/a": one, "policy/b/c": two, "whole": three}) == {
        "policy": {"a": one, "b": {"c": two}},
        "whole": three,
    }


def test_a_policy_plays_its_chunks(start_model: Path, tmp_path: Path) -> None:
    config = experiment(f"actor.model.model_path={start_model}", "collect.action_noise=5.0")
    dataset = record(config, "model", tmp_path / "dataset")
    columns = dataset.load_columns([STATE, ACTION, "frame_index"])
    policy = load_policy(start_model)
    decisions = np.flatnonzero(columns["frame_index"] % 4 == 0)
    states = torch.from_numpy(columns[STATE][decisions])
    chunks = policy.predict(Observation({}, {"state": states}, ["x"] * len(states))).detach().numpy()
    for frame, chunk in zip(decisions, chunks, strict=True):
        assert np.allclose(columns[ACTION][frame : frame + 4], chunk, atol=1e-5)


def test_a_policys_demonstrations_do_not_depend_on_the_number_of_environments(
    start_model: Path, tmp_path: Path
) -> None:
    found = []
    for num_envs in (1, 3):
        config = experiment(f"actor.model.model_path={start_model}", f"env.train.total_num_envs={num_envs}")
        columns = record(config, "model", tmp_path / str(num_envs)).load_columns([STATE, ACTION, "episode_index"])
        found.append(columns)
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


def test_a_policy_that_never_succeeds_is_named(start_model: Path, tmp_path: Path) -> None:
    config = experiment(f"actor.model.model_path={start_model}", "collect.only_successful=true")
    with pytest.raises(UserError, match=r"The policy succeeded in 0 of 9 attempts.* nothing was written"):
        record(config, "model", tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


LAB_SCRIPT = """
import torch

def push(observation, steps):
    position = observation["policy"]["position"]
    assert observation["policy"]["num_resets"].shape == (len(steps), 1)
    assert observation["camera_images"]["front"].shape == (len(steps), 8, 8, 3)
    action = torch.zeros(len(steps), 3)
    action[:, 0] = torch.where(position[:, 1] > 0.5, 0.1, 0.2)
    return action
"""


@needs_lab
@pytest.mark.full
def test_a_function_records_in_isaac_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_push", raising=False)
    (tmp_path / "my_push.py").write_text(LAB_SCRIPT)
    mapping = ("task_description=push", "main_images=front", "extra_view_images=[]", "states=[position]")
    arguments = [
        "env.train.init_params.id=lab_tasks:Point-v0",
        "env.isaaclab.device=cpu",
        f"env.isaaclab.python={LAB_PYTHON}",
        "env.train.total_num_envs=4",
        "env.train.max_episode_steps=10",
        "env.train.max_steps_per_rollout_epoch=16",
        *(f"env.train.isaaclab.{value}" for value in mapping),
        "actor.model.action_dim=3",
        "actor.micro_batch_size=4",
        "actor.global_batch_size=4",
    ]
    command = ["collect", "--config_name", "isaaclab_stack_cube_ppo_groot", "--policy", "my_push:push"]
    assert main([*command, "--num_demos", "4", "--output", "pushes", *arguments]) == 0
    dataset = DemonstrationDataset(tmp_path / "pushes")
    columns = dataset.load_columns([STATE, ACTION, "episode_index"])
    assert successes(dataset) == [True] * 4
    for episode in dataset.episodes:
        states, actions = columns[STATE][episode.start : episode.stop], columns[ACTION][episode.start : episode.stop]
        push = 0.1 if states[0, 1] > 0.5 else 0.2
        assert np.allclose(actions, [push, 0, 0])
        assert np.allclose(states[:, 0], push * np.arange(len(states)), atol=1e-6), "before the action"
        assert len(states) == (4 if push == 0.1 else 2), "0.35 is a success"
