"""Quaternions in two orders are not mixed: among recordings, dataset and experiment, model and task."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from lab_recordings import Demo, demo, write_recording
from regrasp.engine.policies import check_fit
from regrasp.envs.contract import ArraySpec, EnvSpec
from regrasp.envs.quaternions import QuaternionOrder, agreed_order, quaternion_keys
from regrasp.envs.selection import StateSource
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import load_config
from regrasp.models.registry import load_policy
from regrasp.stages.convert import convert
from regrasp.stages.quaternion_checks import QuaternionChecks
from regrasp.stages.sft import train_base

STATES = np.array([[5.0, 0.99, 0.1, 0.05, 0.02]] * 3)
OLD, NEW = Path("old.hdf5"), Path("new.hdf5")
KEY = "env.train.mapping.quaternions"


def experiment(order: str | None = None) -> ExperimentConfig:
    given = (
        [] if order is None else [f"env.train.isaaclab.quaternions={order}", f"env.eval.isaaclab.quaternions={order}"]
    )
    settings = ["actor.model.model_type=mlp", "sft.steps=1", "sft.warmup_steps=1", "sft.validation_fraction=0"]
    return load_config("isaaclab_stack_cube_ppo_groot", [*settings, *given]).config


def recording(folder: Path, order: QuaternionOrder, *, stamped: bool) -> Path:
    """Two episodes near the rotation by nothing."""
    episodes: list[Demo] = []
    for seed in range(2):
        quaternion = np.array([[1, 0.1, 0, 0.05]] * 6, np.float32)
        values = quaternion if order == "wxyz" else np.roll(quaternion, -1, axis=1)
        episodes.append(demo(seed).but({"obs/eef_quat": values}))
    path = write_recording(folder / f"{order}_{stamped}.hdf5", episodes)
    if stamped:
        with h5py.File(path, "a") as file:
            file.attrs["format_version"] = 1
    return path


def recorded(folder: Path) -> str | None:
    return json.loads((folder / "meta/sources.json").read_text())["quaternions"]


def test_both_conventions_are_found_by_file() -> None:
    checks = QuaternionChecks({"x": (0, 1), "policy/eef_quat": (1, 5)})
    checks.add(OLD, STATES)
    assert checks.mixed() is None
    checks.add(NEW, np.hstack([STATES[:, :1], np.roll(STATES[:, 1:], -1, axis=1)]))
    line = checks.mixed()
    assert line is not None
    assert "policy/eef_quat" in line
    assert line.index("old.hdf5") < line.index("last one in new.hdf5")


def test_rotations_are_known_by_name_and_width() -> None:
    states = [("a/eef_quat", 0, 4), ("a/root_pose", 0, 7), ("a/eef_quat", 0, 3), ("a/eef_pos", 0, 3), ("a/pose", 0, 3)]
    assert quaternion_keys([StateSource(*state) for state in states]) == ["a/eef_quat", "a/root_pose"]


@pytest.mark.parametrize("stamped", [True, False], ids=["by_format_version", "by_values"])
def test_recordings_of_two_orders_are_not_mixed(tmp_path: Path, stamped: bool) -> None:
    files = [recording(tmp_path, "wxyz", stamped=False), recording(tmp_path, "xyzw", stamped=stamped)]
    with pytest.raises(UserError, match="eef_quat") as caught:
        convert(experiment(), files, tmp_path / "dataset")
    assert caught.value.key == KEY
    assert all(str(file) in f"{caught.value.problem} {caught.value.value}" for file in files)
    assert not (tmp_path / "dataset").exists()
    if not stamped:
        convert(experiment("wxyz"), files, tmp_path / "dataset")
        assert recorded(tmp_path / "dataset") == "wxyz", "the experiment's word"


def test_the_order_travels_from_the_recording_to_the_model(tmp_path: Path) -> None:
    orders: tuple[QuaternionOrder, QuaternionOrder] = ("wxyz", "xyzw")
    for order, other in (orders, orders[::-1]):
        folder, base = tmp_path / order, tmp_path / f"base_{order}"
        convert(experiment(), [recording(tmp_path, order, stamped=order == "xyzw")], folder)
        assert recorded(folder) == order
        train_base(experiment(), folder, None, base)
        policy = load_policy(base)
        assert policy.spec.quaternions == order
        policy.save(tmp_path / "again")
        assert load_policy(tmp_path / "again").spec.quaternions == order
        env = environment()
        check_fit(policy, experiment().env.train.mapping, replace(env, quaternions=order))
        check_fit(policy, experiment().env.train.mapping, env)
        with pytest.raises(UserError, match="policy/eef_quat") as caught:
            check_fit(policy, experiment().env.train.mapping, replace(env, quaternions=other))
        assert (caught.value.key, caught.value.value) == ("env.train.mapping.states", other)
        assert caught.value.expected == order


def test_a_mapping_of_the_other_order_does_not_train_on_a_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    convert(experiment(), [recording(tmp_path, "wxyz", stamped=False)], folder)
    with pytest.raises(UserError, match="another order than the demonstrations") as caught:
        train_base(experiment("xyzw"), folder, None, tmp_path / "model")
    assert (caught.value.value, caught.value.expected) == ("xyzw", "wxyz")
    shutil.copytree(folder, tmp_path / "earlier")
    made_of = json.loads((folder / "meta/sources.json").read_text())
    del made_of["quaternions"]
    (tmp_path / "earlier/meta/sources.json").write_text(json.dumps(made_of))
    train_base(experiment("xyzw"), tmp_path / "earlier", None, tmp_path / "model")
    assert load_policy(tmp_path / "model").spec.quaternions == "xyzw", "where the dataset does not say it"


def test_a_simulator_of_another_order_than_the_mapping_says_is_refused() -> None:
    mapping = experiment("xyzw").env.train.mapping
    assert agreed_order(mapping, None, "env.train.mapping") == "xyzw"
    with pytest.raises(UserError, match="another order than the mapping says") as caught:
        agreed_order(mapping, "wxyz", "env.train.mapping")
    assert (caught.value.key, caught.value.value) == (KEY, "xyzw")


def environment() -> EnvSpec:
    """What the stack of cubes offers."""
    shapes = {"eef_pos": (3,), "eef_quat": (4,), "gripper_pos": (2,)}
    raw = {f"policy/{name}": ArraySpec(shape, "float32") for name, shape in shapes.items()}
    raw |= {f"policy/{name}": ArraySpec((16, 16, 3), "uint8") for name in ("table_cam", "wrist_cam")}
    return EnvSpec(
        task_id="stack",
        raw_observations=raw,
        action_dim=7,
        instructions=("stack",),
        step_seconds=0.05,
        max_episode_steps=10,
        num_envs=1,
        state_dim=9,
        cameras=("main", "extra_0"),
    )
