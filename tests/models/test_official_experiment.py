"""A checkpoint in the published layout, as an experiment's YAML asks for it: loaded, and trained on another robot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from official_layout import write_official

import regrasp
from lab_recordings import demo, write_recording
from regrasp.data.lerobot import DatasetWriter, FeatureSpec
from regrasp.engine.policies import create_policy
from regrasp.envs.contract import EnvSpec
from regrasp.envs.data_config import KeyConfig
from regrasp.envs.process.simulator import ArraySpec
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import load_config
from regrasp.models.groot.checkpoint import load_groot
from regrasp.models.inputs import InputNames
from regrasp.stages.convert import convert
from regrasp.stages.demonstrations import ACTION, STATE, camera_features
from regrasp.stages.sft import train_base

(MAIN_CAMERA,) = camera_features(1)

KEYS = "[{key: arm, mode: min_max}, {key: gripper, mode: min_max}]"
NAMES = (
    "extra_view_images=[camera_images/wrist_camera]",
    "gr00t_mapping={video: {main_images: wrist_view, extra_view_images: [video.ego_view]},"
    " state: [{gr00t_key: gripper, slice: [0, 1]}, {gr00t_key: state.arm, slice: [1, 5]}]}",
    f"data_config={{video: [ego_view, wrist_view], state: {KEYS}, action: {KEYS}}}",
    "embodiment_tag_id=null",
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_official(folder)
    return folder


def experiment(*mapping: str, overrides: tuple[str, ...] = ()) -> ExperimentConfig:
    """The shipped experiment with other keys of both mappings."""
    both = [f"env.{name}.mapping.{text}" for name in ("train", "eval") for text in mapping]
    return load_config("pick_cube_ppo_groot", ["~pretrain", *both, *overrides]).config


def environments(state_dim: int = 5, cameras: tuple[str, ...] = ("wrist_view", "ego_view")) -> EnvSpec:
    return EnvSpec("task", {}, 5, ("",), 0.1, 10, num_envs=1, state_dim=state_dim, cameras=cameras)


def test_it_is_loaded_by_the_experiments_names(published: Path) -> None:
    config = experiment(*NAMES, overrides=(f"actor.model.model_path={published}", "actor.model.action_dim=5"))
    spec = create_policy(config.actor.model, config.env.train.mapping, environments(), 0).spec
    assert (spec.embodiment_id, spec.num_views, spec.state_dim, spec.action_dim) == (31, 2, 5, 5)


@pytest.mark.parametrize(
    ("env", "key"),
    [(environments(state_dim=6), "states"), (environments(cameras=("wrist_view",)), "extra_view_images")],
)
def test_environments_that_do_not_fit_it_are_refused(published: Path, env: EnvSpec, key: str) -> None:
    config = experiment(*NAMES, overrides=(f"actor.model.model_path={published}", "actor.model.action_dim=5"))
    with pytest.raises(UserError) as error:
        create_policy(config.actor.model, config.env.train.mapping, env, 0, "env.eval.mapping")
    assert error.value.key == f"env.eval.mapping.{key}"


@pytest.mark.parametrize(("states", "warns"), [("arm, gripper", False), ("gripper, arm", True)])
def test_states_in_another_order_than_the_models_are_warned_of(
    published: Path, caplog: pytest.LogCaptureFixture, states: str, warns: bool
) -> None:
    names = (f"states=[{states}]", "gr00t_mapping=null", *NAMES[2:])
    model = (f"actor.model.model_path={published}", "actor.model.action_dim=5")
    config = experiment(NAMES[0], "main_images=front", *names, overrides=model)
    image = ArraySpec((28, 28, 3), "uint8")
    raw = {"camera_images/front": image, "camera_images/wrist_camera": image}
    raw |= {"policy/arm": ArraySpec((4,), "float32"), "policy/gripper": ArraySpec((1,), "float32")}
    env = replace(environments(), raw_observations=raw)
    create_policy(config.actor.model, config.env.train.mapping, env, 0)
    warning = "env.train.mapping.states: policy/gripper 1, policy/arm 4 values wide are taken for arm 4, gripper 1"
    assert any(text.startswith(warning) for text in caplog.messages) == warns


def test_without_a_data_config_it_says_what_to_write(published: Path) -> None:
    config = experiment(overrides=(f"actor.model.model_path={published}",))
    with pytest.raises(UserError, match="data_config_class") as error:
        create_policy(config.actor.model, config.env.train.mapping, environments(), 0)
    assert error.value.key == "mapping.data_config"


def test_it_is_trained_on_demonstrations_of_another_robot(published: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    features = {
        STATE: FeatureSpec("float32", (4,)),
        ACTION: FeatureSpec("float32", (4,)),
        MAIN_CAMERA: FeatureSpec("video", (32, 32, 3)),
    }
    with DatasetWriter(tmp_path / "demos", fps=10, robot_type="arm", features=features) as writer:
        columns = {name: generator.normal(size=(20, 4)).astype(np.float32) for name in (STATE, ACTION)}
        images = generator.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
        writer.add_episode({**columns, MAIN_CAMERA: images}, "pick up the red cube", True)
    padding = "actor.model.rl_head_config.padding_value=90"
    config = experiment(
        "embodiment_tag=arm",
        "embodiment_tag_id=3",
        "gr00t_mapping={video: {main_images: front}, state: [{gr00t_key: joints, slice: [0, 4]}]}",
        "data_config={video: [front], state: [{key: joints, mode: sin_cos}], action: [{key: joints, mode: q99}]}",
        overrides=("sft.steps=2", "sft.batch_size=8", "sft.validation_fraction=0", padding),
    )
    folder, _ = train_base(config, tmp_path / "demos", published, tmp_path / "base")
    processor = load_groot(folder).processor
    assert (processor.config.embodiment_tag, processor.config.embodiment_id) == ("arm", 3)
    assert (processor.config.prompt, processor.config.sequence_length) == ("eagle", 90)
    assert processor.config.data_config.state == (KeyConfig("joints", "sin_cos"),)
    low, high = np.percentile(columns[ACTION], [1, 99], axis=0)
    bounds = processor.unnormalize_actions(torch.tensor([[-1.0] * 4, [1.0] * 4]))
    np.testing.assert_allclose(bounds.numpy(), [low, high], rtol=1e-5)
    assert regrasp.load_policy(folder).spec.embodiment_id == 3


def test_it_is_trained_on_a_recording_of_isaac_lab(published: Path, tmp_path: Path) -> None:
    recording = write_recording(tmp_path / "demos.hdf5", [demo(0), demo(1)])
    small = [
        "actor.model.num_action_chunks=4",
        "actor.model.precision=fp32",
        "env.train.isaaclab.task_description=pick up the red cube",
        "sft.steps=2",
        "sft.batch_size=4",
        "sft.validation_fraction=0",
    ]
    config = load_config("isaaclab_stack_cube_ppo_groot", small).config
    convert(config, [recording], tmp_path / "demos")
    folder, result = train_base(config, tmp_path / "demos", published, tmp_path / "base")
    assert result.num_frames == 12
    config = load_config("isaaclab_stack_cube_ppo_groot", [*small, f"actor.model.model_path={folder}"]).config
    spec = create_policy(config.actor.model, config.env.train.mapping, environments(state_dim=9), 0).spec
    assert (spec.embodiment_id, spec.num_views, spec.state_dim, spec.action_dim) == (31, 2, 9, 7)


def test_it_is_loaded_in_python_by_its_embodiment(published: Path) -> None:
    assert regrasp.load_policy(published, InputNames(embodiment_tag="gr1")).spec.action_dim == 29
    with pytest.raises(UserError, match="new_embodiment, gr1"):
        regrasp.load_policy(published)
