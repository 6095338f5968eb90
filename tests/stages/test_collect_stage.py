"""Demonstrations: successful, noisy where executed and clean where recorded, and the same every time."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from run_toys import groot_experiment
from torch import Tensor

from regrasp.data.lerobot import DemonstrationDataset
from regrasp.envs.config import EnvConfig
from regrasp.envs.contract import Observation, Step, VecEnv
from regrasp.envs.mapping import ActionMapping
from regrasp.envs.registry import create_env
from regrasp.errors import UserError
from regrasp.experiment import CollectConfig
from regrasp.experiment.load import load_config
from regrasp.rollout.choosers import expert_chooser
from regrasp.seeding import episode_seed
from regrasp.stages.collect import Demonstrator, record
from regrasp.stages.demonstrations import ACTION, STATE, camera_features

(MAIN_CAMERA,) = camera_features(1)

SEED = 5


class Recorder:
    """A vector environment that remembers what was asked of it."""

    def __init__(self, env: VecEnv) -> None:
        self._env = env
        self.expert: list[Tensor] = []
        self.executed: list[Tensor] = []
        self.steps: list[Step] = []
        self.seeds: list[int] = []
        self.first: list[Observation] = []

    def __getattr__(self, name: str):
        return getattr(self._env, name)

    def reset(self, env_ids, seeds) -> Observation:
        self.seeds += seeds
        self.first.append(copy.deepcopy(self._env.reset(env_ids, seeds)))
        return self.first[-1]

    def expert_actions(self) -> Tensor:
        self.expert.append(self._env.expert_actions())
        return self.expert[-1].clone()

    def step(self, actions: Tensor) -> Step:
        self.executed.append(actions.clone())
        self.steps.append(copy.deepcopy(self._env.step(actions)))
        return self.steps[-1]


def env_config(num_envs: int, *overrides: str) -> EnvConfig:
    settings = [f"env.train.total_num_envs={num_envs}", "env.train.num_workers=1", "actor.global_batch_size=1"]
    return load_config("pick_cube_ppo_groot", [*settings, "actor.micro_batch_size=1", *overrides]).config.env.train


def recorded_with(
    folder: Path, num_envs: int, *overrides: str, **settings
) -> tuple[DemonstrationDataset, Recorder, int]:
    config = env_config(num_envs, *overrides)
    env = create_env(config, "train", max_chunk=1)
    try:
        mapping = ActionMapping(config.mapping, 4, 4, "env.train.mapping")
        recorder = Recorder(env)
        expert = Demonstrator("expert", expert_chooser(recorder), noisy=True)  # pyright: ignore[reportArgumentType]
        values = {"num_demos": 4, "action_noise": 0.15} | settings
        attempts = record(CollectConfig(**values), config, recorder, mapping, SEED, folder, expert)  # pyright: ignore[reportArgumentType]
        return DemonstrationDataset(folder), recorder, attempts
    finally:
        env.close()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemonstrationDataset, Recorder, int]:
    return recorded_with(tmp_path_factory.mktemp("recorded"), num_envs=4)


def test_a_camera_that_is_turned_is_recorded_as_the_policy_sees_it(
    recorded: tuple[DemonstrationDataset, Recorder, int], tmp_path: Path
) -> None:
    transform = "mapping.image_transform={camera_images/front_camera: [rotate_90, flip_vertical]}"
    turned, recorder, _ = recorded_with(tmp_path, 4, f"env.train.{transform}", f"env.eval.{transform}")
    plain = recorded[0].load_images(MAIN_CAMERA)
    expected = np.rot90(plain, -1, (1, 2))[:, ::-1].astype(int)
    assert np.abs(turned.load_images(MAIN_CAMERA) - expected).mean() < 3, "but for what the codec loses"
    seen, before = recorder.first[0].images["main"].numpy(), recorded[1].first[0].images["main"].numpy()
    assert np.array_equal(seen, np.rot90(before, -1, (1, 2))[:, ::-1])
    made_of = json.loads((tmp_path / "meta/sources.json").read_text())
    assert made_of["image_transforms"] == [["rotate_90", "flip_vertical"]]


def test_a_dataset_of_successful_episodes(demos: Path) -> None:
    dataset = DemonstrationDataset(demos)
    assert dataset.num_episodes == 5
    assert dataset.cameras == (MAIN_CAMERA,)
    assert set(dataset.tasks) <= {f"pick up the {color} cube" for color in ("red", "green", "blue")}
    columns = dataset.load_columns([STATE, ACTION, "episode_index"])
    lengths = np.bincount(columns["episode_index"])
    assert (lengths < 40).all(), "a success ends an episode before its limit"
    assert dataset.load_images(MAIN_CAMERA).shape == (len(columns[STATE]), 84, 84, 3)


def test_modality_names_cameras_parts_and_instruction(demos: Path) -> None:
    modality = json.loads((demos / "meta/modality.json").read_text())
    info = json.loads((demos / "meta/info.json").read_text())
    assert all(view["original_key"] in info["features"] for view in modality["video"].values())
    for name, feature in (("state", "observation.state"), ("action", "action")):
        ends = [part["end"] for part in modality[name].values()]
        assert [part["start"] for part in modality[name].values()] == [0, *ends[:-1]]
        assert ends[-1] == info["features"][feature]["shape"][0]
    assert modality["annotation"] == {"human.task_description": {"original_key": "task_index"}}


def test_noise_is_executed_and_the_clean_action_recorded(
    recorded: tuple[DemonstrationDataset, Recorder, int],
) -> None:
    dataset, recorder, attempts = recorded
    assert attempts == 4, "all succeeded, in one wave"
    columns = dataset.load_columns([STATE, ACTION, "episode_index"])
    differences = []
    for episode in range(4):
        mine = columns["episode_index"] == episode
        length = int(mine.sum())
        clean = torch.stack([actions[episode] for actions in recorder.expert[:length]])
        executed = torch.stack([actions[episode, 0] for actions in recorder.executed[:length]])
        assert np.array_equal(columns[ACTION][mine], clean.numpy())
        differences.append((executed - clean).numpy())
        states = [recorder.first[0].state["state"][episode]] + [
            step.observation.state["state"][episode] for step in recorder.steps[: length - 1]
        ]
        assert np.array_equal(columns[STATE][mine], torch.stack(states).numpy())
        assert bool(recorder.steps[length - 1].success[episode])
    noise = np.concatenate(differences)
    assert (noise[:, -1] == 0).all(), "the gripper's command has no noise"
    assert noise[:, :-1].std() == pytest.approx(0.15, rel=0.15)
    assert abs(noise[:, :-1].mean()) < 0.03


def test_images_are_those_of_the_decision(recorded: tuple[DemonstrationDataset, Recorder, int]) -> None:
    dataset, recorder, _ = recorded
    columns = dataset.load_columns(["episode_index"])
    decoded = dataset.load_images(MAIN_CAMERA)[columns["episode_index"] == 2].astype(int)
    seen = [recorder.first[0].images["main"][2]] + [step.observation.images["main"][2] for step in recorder.steps]
    for index in (0, 1, len(decoded) - 1):
        error = np.abs(decoded[index] - seen[index].numpy().astype(int)).mean()
        assert error < 3.0, "the video is lossy, but not that lossy"


@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_dataset_does_not_depend_on_the_number_of_environments(
    recorded: tuple[DemonstrationDataset, Recorder, int], tmp_path: Path, num_envs: int
) -> None:
    first, second = recorded[0], recorded_with(tmp_path, num_envs)[0]
    names = [STATE, ACTION, "episode_index", "task_index", "timestamp"]
    one, other = first.load_columns(names), second.load_columns(names)
    assert all(np.array_equal(one[name], other[name]) for name in names)
    assert np.array_equal(first.load_images(MAIN_CAMERA), second.load_images(MAIN_CAMERA))


def test_seeds_are_those_of_data(recorded: tuple[DemonstrationDataset, Recorder, int]) -> None:
    assert recorded[1].seeds == [episode_seed(SEED, "data", index) for index in range(4)]


def test_failures_are_left_out_or_kept_as_asked(tmp_path: Path) -> None:
    # So much noise that the expert fails now and then.
    only, _, attempts = recorded_with(tmp_path / "only", 4, action_noise=1.2, num_demos=3, max_attempts_factor=10.0)
    assert attempts > 3
    every, _, all_attempts = recorded_with(
        tmp_path / "every", 4, action_noise=1.2, num_demos=attempts, max_attempts_factor=10.0, only_successful=False
    )
    assert all_attempts == attempts
    kept = {bytes(states) for states in _episodes(only)}
    assert kept < {bytes(states) for states in _episodes(every)}


def _episodes(dataset: DemonstrationDataset) -> list[np.ndarray]:
    columns = dataset.load_columns([STATE, "episode_index"])
    return [columns[STATE][columns["episode_index"] == i] for i in range(dataset.num_episodes)]


def test_an_expert_that_fails_too_often_is_an_error(tmp_path: Path) -> None:
    recorded_with(tmp_path, 4, num_demos=1)
    with pytest.raises(UserError, match=r"expert succeeded in \d+ of 4 attempts.* as it was before") as caught:
        recorded_with(tmp_path, 4, action_noise=20.0, num_demos=4, max_attempts_factor=1.0)
    assert caught.value.key == "collect.max_attempts_factor"
    assert "collect.only_successful=false" in str(caught.value.fix)
    assert DemonstrationDataset(tmp_path).num_episodes == 1


def test_a_task_without_an_expert_is_refused() -> None:
    config = groot_experiment().config
    env = create_env(config.env.train, "train", max_chunk=1)
    try:
        object.__setattr__(env.capabilities, "has_expert", False)
        with pytest.raises(UserError, match="no scripted expert") as caught:
            expert_chooser(env, "env.train")
    finally:
        env.close()
    assert caught.value.key == "env.train.init_params.id"
