"""The trocar task as an environment: its start, its observations, its ends, its expert and its options."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from vec_envs import PICK, assert_same_step, entries, make_env

from regrasp.cli.main import main
from regrasp.envs.mapping_config import ActionMapping, MappingConfig
from regrasp.envs.mujoco.config import MujocoEnvConfig, MujocoInitParams
from regrasp.envs.mujoco.env import Mujoco
from regrasp.envs.mujoco.simulator import MujocoSimulator, create_task
from regrasp.envs.mujoco.tasks.trocar.scene import Layout
from regrasp.envs.process.vector import RemoteVecEnv
from regrasp.errors import UserError

TROCAR = "Regrasp-Assemble-Trocar-G129-Dex3-v0"
EVAL = "Regrasp-Assemble-Trocar-G129-Dex3-Eval-v0"
STATES = MappingConfig(states=entries("robot_joint_state", "robot_dex3_joint_state"))
CAMERAS = MappingConfig(
    main_images="front_camera",
    extra_view_images=("left_wrist_camera", "right_wrist_camera"),
    states=entries("policy/robot_dex3_joint_state"),
)
STAGES = ("lifted", "tips_met", "inserted", "placed")


def objects_at_start(task_id: str, seeds: range, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres (N, 2, 3), axes (N, 2, 3) and the tray's yaw (N,) after resets."""
    task = create_task(task_id, options)
    data, episode, layout = mujoco.MjData(task.model), np.zeros(task.episode_size), Layout(task.model)
    centres, axes, yaws = [], [], []
    for seed in seeds:
        task.reset(data, episode, np.random.default_rng(seed))
        poses = layout.poses(data)
        centres.append(poses.centres)
        axes.append(poses.axes)
        yaws.append(2 * np.arctan2(data.mocap_quat[0, 3], data.mocap_quat[0, 0]))
    return np.array(centres), np.array(axes), np.array(yaws)


def test_without_randomness_the_start_is_the_recorded_one():
    centres, axes, _ = objects_at_start(TROCAR, range(1), yaw_degrees=[0, 0], object_jitter=0.0, shift_x=0.0)
    np.testing.assert_allclose(centres[0, :, :2], [[-1.60202, 1.91362], [-1.50635, 1.90997]])
    np.testing.assert_allclose(axes[0, 0], [0, 1, 0], atol=1e-9)
    np.testing.assert_allclose(axes[0, 1], [-0.084, 0.996, 0], atol=1e-3)
    np.testing.assert_allclose(centres[0, :, 2], 0.87183, atol=0.002)


def test_tray_and_objects_turn_about_the_trays_centre_and_objects_jitter():
    centres, axes, yaws = objects_at_start(TROCAR, range(300))
    degrees = np.degrees(yaws)
    assert 0 <= degrees.min() < 0.3
    assert 9.7 < degrees.max() <= 10
    np.testing.assert_allclose(np.arctan2(-axes[:, 0, 0], axes[:, 0, 1]), yaws, atol=1e-9)
    centre = np.array([-1.54919 + 0.05, 2.03365])
    recorded = np.array([[-1.60202, 1.91362], [-1.50635, 1.90997]]) + np.array([0.05, 0])
    arm = recorded - centre
    turned = np.stack(
        [
            arm[:, 0] * np.cos(yaws)[:, None] - arm[:, 1] * np.sin(yaws)[:, None],
            arm[:, 0] * np.sin(yaws)[:, None] + arm[:, 1] * np.cos(yaws)[:, None],
        ],
        -1,
    )
    jitter = centres[..., :2] - centre - turned
    assert 0.019 < np.abs(jitter).max() <= 0.02
    assert np.abs(np.corrcoef(jitter.reshape(300, 4).T) - np.eye(4)).max() < 0.2, "each object on its own"


def test_evaluation_angles_are_evenly_spaced_and_belong_to_the_seed():
    _, _, yaws = objects_at_start(EVAL, range(100))
    assert sorted(set(np.degrees(yaws).round(6))) == list(range(11))
    np.testing.assert_array_equal(yaws, objects_at_start(EVAL, range(100))[2])


def test_everything_lies_still_until_touched():
    task = create_task(TROCAR)
    data, episode, layout = mujoco.MjData(task.model), np.zeros(task.episode_size), Layout(task.model)
    task.reset(data, episode, np.random.default_rng(0))
    before = layout.poses(data).centres.copy()
    mujoco.mj_step(task.model, data, 50 * task.physics_steps)
    np.testing.assert_allclose(layout.poses(data).centres, before, atol=0.001)


def test_observations_are_those_of_the_reference():
    spec = Mujoco().describe(env_config(), "train")
    assert spec.raw_observations == {
        "camera_images/front_camera": ((224, 224, 3), "uint8"),
        "camera_images/left_wrist_camera": ((224, 224, 3), "uint8"),
        "camera_images/right_wrist_camera": ((224, 224, 3), "uint8"),
        "policy/robot_joint_state": ((87,), "float32"),
        "policy/robot_dex3_joint_state": ((14,), "float32"),
    }
    assert spec.action_dim == 43
    assert spec.step_seconds == pytest.approx(0.02)
    assert spec.info == ("stage", *STAGES, "truly_inserted")
    env = make_env(TROCAR, 1, mapping=CAMERAS)
    first = env.reset([0], [0])
    env.close()
    assert first.images["main"].shape == (1, 224, 224, 3)
    assert first.images["extra_1"].shape == (1, 224, 224, 3)
    red = first.images["main"][0].int()
    assert ((red[..., 0] - red[..., 1:].amax(-1)) > 60).sum() > 100, "the puncture device is seen at the start"
    assert first.instruction == ["assemble trocar from tray"]


def follow_expert(env: RemoteVecEnv, steps: int) -> tuple[torch.Tensor, Any]:
    """Sum of rewards (N,) and the last step that did anything."""
    total, last = torch.zeros(env.spec.num_envs), None
    for _ in range(steps):
        step = env.step(env.expert_actions()[:, None])
        total += step.rewards.sum(1)
        if step.num_executed.any():
            last = step
    assert last is not None
    return total, last


def test_the_expert_assembles():
    env = make_env(TROCAR, 8, 2, mapping=STATES, limit=256)
    env.reset(range(8), range(500, 508))
    total, last = follow_expert(env, 230)
    env.close()
    assert last.terminated.all()
    assert last.success.all()
    assert total.tolist() == [4.0] * 8
    assert last.info["stage"].tolist() == [4.0] * 8
    for name in (*STAGES, "truly_inserted"):
        assert last.info[name].tolist() == [1.0] * 8, name


def test_an_episode_that_does_nothing_earns_nothing():
    env = make_env(TROCAR, 1, mapping=STATES, limit=12)
    env.reset([0], [0])
    hold = torch.zeros(1, 4, 43)
    steps = [env.step(hold) for _ in range(3)]
    env.close()
    assert not any(step.rewards.any() or step.success.any() for step in steps)
    assert steps[-1].truncated.tolist() == [True]
    assert steps[-1].info["stage"].tolist() == [0.0]


def test_the_dense_reward_is_an_option():
    env = make_env(TROCAR, 1, mapping=STATES, limit=256, task_options={"dense_reward": True})
    env.reset([0], [0])
    total, last = follow_expert(env, 230)
    env.close()
    assert last.success.all()
    assert 0.02 * 120 < total.item() < 0.02 * 4 * 220


def test_an_object_that_falls_truncates_the_episode():
    task = create_task(TROCAR)
    simulator = MujocoSimulator(task, 1, 256)
    simulator.reset([0], [0])
    layout = Layout(task.model)
    layout.place(simulator._data[0], 1, np.array([-1.0, 1.0, 0.6]), np.array([1.0, 0, 0, 0]))
    outcomes = [simulator.advance(np.zeros((1, 43)), np.ones(1, bool)) for _ in range(15)]
    falls = [outcome.truncated[0] for outcome in outcomes]
    assert not falls[0]
    assert falls[-1]
    assert not any(outcome.terminated[0] or outcome.success[0] for outcome in outcomes)


def test_one_step_gets_one_answer_however_often_it_is_asked():
    env = make_env(TROCAR, 1, mapping=STATES, limit=256)
    runs = []
    for times in (1, 2):
        env.reset([0], [3])
        states = []
        for _ in range(100):
            answers = [env.expert_actions() for _ in range(times)]
            assert all(torch.equal(answer, answers[0]) for answer in answers)
            states.append(env.step(answers[0][:, None]).observation.state["state"])
        runs.append(torch.stack(states))
    env.close()
    assert torch.equal(*runs)


def test_a_restored_episode_goes_on_bit_for_bit():
    env = make_env(TROCAR, 2, mapping=STATES, limit=256)
    env.reset(range(2), range(2))
    follow_expert(env, 110)
    state = env.state_dict()
    first = [env.step(env.expert_actions()[:, None]) for _ in range(40)]
    env.close()
    other = make_env(TROCAR, 2, mapping=STATES, limit=256)
    other.reset(range(2), range(7, 9))
    follow_expert(other, 5)
    other.load_state_dict(state)
    for step in first:
        assert_same_step(other.step(other.expert_actions()[:, None]), step)
    other.close()


def test_scattered_scenes_say_where_both_objects_are():
    task = create_task(TROCAR)
    data, layout, rng = mujoco.MjData(task.model), Layout(task.model), np.random.default_rng(0)
    found = []
    for _ in range(100):
        scene = task.scatter(data, rng)
        assert scene.instructions == task.instructions
        assert scene.positions.shape == (1, 2, 3)
        np.testing.assert_array_equal(scene.positions[0], layout.poses(data).centres)
        found.append(scene.positions[0].copy())
    heights = np.array(found)[..., 2]
    assert 0.15 < (heights > 0.88).mean() < 0.45, "some are held up"
    assert np.ptp(np.array(found)[..., :2], axis=0).min() > 0.08


def env_config(task_id: str = TROCAR, **options: Any) -> MujocoEnvConfig:
    return MujocoEnvConfig(
        env_type="mujoco",
        total_num_envs=1,
        max_episode_steps=256,
        init_params=MujocoInitParams(id=task_id, task_options=options),
        mapping=MappingConfig(
            states=entries("robot_joint_state"), action_mapping=ActionMapping(prefix_pad=15, suffix_pad=0)
        ),
    )


@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        ({"yaw_degree": [0, 5]}, "yaw_degree", "yaw_degrees"),
        ({"object_jitter": 0.5}, "object_jitter", "0 to 0.03"),
        ({"yaw_degrees": [5, 0]}, "yaw_degrees", "low <= high"),
        ({"yaw_degrees": 5}, "yaw_degrees", "low <= high"),
        ({"dense_reward": "yes"}, "dense_reward", "true or false"),
    ],
)
def test_a_wrong_option_is_told_before_anything_starts(options: dict[str, Any], key: str, words: str):
    with pytest.raises(UserError) as caught:
        Mujoco().describe(env_config(**options), "eval")
    assert caught.value.key == f"env.eval.init_params.task_options.{key}"
    assert caught.value.value == options[key]
    assert words in str(caught.value)


def test_a_task_without_options_takes_none():
    with pytest.raises(UserError, match="has no options"):
        Mujoco().describe(env_config(PICK, object_jitter=0.0), "train")


@pytest.fixture
def without_mink(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refusing(name: str, *rest: Any, **named: Any) -> Any:
        if name == "mink":
            raise ImportError(name)
        return real(name, *rest, **named)

    for module in ("ik", "expert"):
        monkeypatch.delitem(sys.modules, f"regrasp.envs.mujoco.tasks.trocar.{module}", raising=False)
    monkeypatch.setattr(builtins, "__import__", refusing)


@pytest.mark.usefixtures("without_mink")
def test_without_mink_the_expert_names_the_extra():
    task = create_task(TROCAR)
    data, episode = mujoco.MjData(task.model), np.zeros(task.episode_size)
    task.reset(data, episode, np.random.default_rng(0))
    with pytest.raises(UserError, match=r'pip install "regrasp\[trocar\]"'):
        task.expert(data, episode)


@pytest.mark.usefixtures("without_mink")
@pytest.mark.parametrize("command", [("play", "--policy", "expert"), ("collect",)])
def test_without_mink_no_environment_starts_for_the_expert(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RemoteVecEnv, "__init__", lambda *_, **__: pytest.fail("an environment was started"))
    mapping = "{main_images: null, states: [robot_dex3_joint_state]}"
    overrides = [f"env.{name}.init_params.id={TROCAR}" for name in ("train", "eval")]
    overrides += [f"env.{name}.mapping={mapping}" for name in ("train", "eval")]
    flags = ["--config_name", "pick_cube_ppo_mlp", *overrides, "actor.model.action_dim=43"]
    assert main([*command, *flags]) == 2
    assert 'pip install "regrasp[trocar]"' in capsys.readouterr().err


@pytest.mark.usefixtures("without_mink")
def test_without_mink_other_experts_act():
    Mujoco().check_expert(env_config(PICK), "eval")
    with pytest.raises(UserError, match="mink"):
        Mujoco().check_expert(env_config(), "eval")


def test_the_task_itself_does_not_need_mink():
    code = "import sys, regrasp.envs.mujoco.tasks.trocar.task; sys.exit('mink' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
