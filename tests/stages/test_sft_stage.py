"""Supervised training of the base model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from run_toys import groot_experiment

from regrasp.checkpoint.hub_folder import load_safetensors
from regrasp.data.lerobot import DatasetWriter, DemonstrationDataset, FeatureSpec
from regrasp.errors import UserError
from regrasp.models.groot.checkpoint import load_groot
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.models.origin import read_origin
from regrasp.models.registry import load_policy
from regrasp.stages.dataset_features import check_sources, find_features
from regrasp.stages.demonstrations import ACTION, STATE
from regrasp.stages.pretrain import cached_backbone
from regrasp.stages.sft import train_base
from regrasp.stages.train import check
from regrasp.stages.training_frames import load_frames


def changed_parts(first: Path, second: Path) -> set[str]:
    one, other = load_safetensors(first), load_safetensors(second)
    assert one.keys() == other.keys()
    return {".".join(name.split(".")[:2]) for name in one if not torch.equal(one[name], other[name])}


def test_the_loss_falls(backbone: Path, demos: Path, tmp_path: Path) -> None:
    _, short = train_base(groot_experiment("sft.steps=2").config, demos, backbone, tmp_path / "short")
    _, long = train_base(groot_experiment("sft.steps=80", "sft.lr=3e-3").config, demos, backbone, tmp_path / "long")
    assert long.train_loss < 0.8 * short.train_loss
    assert long.num_episodes == 5
    assert long.validation_loss is not None


def test_the_head_alone_or_everything_is_trained(backbone: Path, demos: Path, tmp_path: Path) -> None:
    for train in ("head", "all"):
        train_base(groot_experiment(f"sft.train={train}", "sft.steps=2").config, demos, backbone, tmp_path / train)
    assert all(part.startswith("action_head.") for part in changed_parts(backbone, tmp_path / "head"))
    assert {part for part in changed_parts(backbone, tmp_path / "all") if part.startswith("backbone.")}


def test_the_same_seed_gives_the_same_model(base_model: Path, backbone: Path, demos: Path, tmp_path: Path) -> None:
    train_base(groot_experiment().config, demos, backbone, tmp_path / "same")
    train_base(groot_experiment("runner.seed=9").config, demos, backbone, tmp_path / "other")
    assert changed_parts(base_model, tmp_path / "same") == set()
    assert changed_parts(base_model, tmp_path / "other")


def test_statistics_of_the_demonstrations_travel_with_the_model(base_model: Path, demos: Path) -> None:
    columns = DemonstrationDataset(demos).load_columns([STATE, ACTION])
    processor = load_groot(base_model).processor
    for normalizer, values in ((processor.state, columns[STATE]), (processor.action, columns[ACTION])):
        scaled = normalizer.normalize(torch.from_numpy(values))
        torch.testing.assert_close(scaled.amax(0), torch.ones(4))
        torch.testing.assert_close(scaled.amin(0), -torch.ones(4))


def test_held_out_episodes_are_not_trained_on(backbone: Path, demos: Path, tmp_path: Path) -> None:
    dataset = DemonstrationDataset(demos)
    lengths = np.bincount(dataset.load_columns(["episode_index"])["episode_index"])
    _, result = train_base(groot_experiment("sft.validation_fraction=0.4").config, demos, backbone, tmp_path / "a")
    assert result.num_frames == lengths[:3].sum()
    _, result = train_base(groot_experiment("sft.validation_fraction=0").config, demos, backbone, tmp_path / "b")
    assert result.num_frames == lengths.sum()
    assert result.validation_loss is None


def test_every_nth_frame_of_each_episode_is_trained_on_with_its_own_chunk(base_model: Path, demos: Path) -> None:
    dataset, policy = DemonstrationDataset(demos), load_groot(base_model)
    columns = dataset.load_columns([ACTION, "frame_index", "episode_index"])
    configs = (groot_experiment(f"sft.frame_stride={n}", "sft.validation_fraction=0").config for n in (1, 3))
    (every, _), (thinned, _) = (
        load_frames(policy, find_features(dataset, config), config.env.train.mapping, config.sft)
        for config in configs
        if config.sft is not None
    )
    kept = torch.from_numpy(columns["frame_index"] % 3 == 0)
    assert 0 < len(thinned.actions) < len(every.actions) == dataset.num_frames
    assert torch.equal(thinned.actions, every.actions[kept])
    assert all(torch.equal(thinned.inputs[name], every.inputs[name][kept]) for name in ("images", "input_ids", "state"))
    images = torch.from_numpy(dataset.load_images(dataset.cameras[0]))
    assert torch.equal(thinned.inputs["images"][:, 0], images[kept])


def test_a_state_policy_needs_no_backbone(demos: Path, tmp_path: Path) -> None:
    config = groot_experiment("actor.model.model_type=mlp", "sft.steps=20", "sft.batch_size=16").config
    folder, result = train_base(config, demos, None, tmp_path)
    policy = load_policy(folder)
    assert isinstance(policy, MlpPolicy)
    assert policy.spec.state_dim == DemonstrationDataset(demos).load_columns([STATE])[STATE].shape[1]
    assert result.num_frames > 0


def test_a_missing_camera_is_named(backbone: Path, tmp_path: Path) -> None:
    features = {STATE: FeatureSpec("float32", (4,)), ACTION: FeatureSpec("float32", (4,))}
    with DatasetWriter(tmp_path / "blind", fps=10, robot_type="none", features=features) as writer:
        columns = {name: np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32) for name in features}
        writer.add_episode(columns, "pick up the red cube", True)
    with pytest.raises(UserError, match="cannot be told") as caught:
        train_base(groot_experiment().config, tmp_path / "blind", backbone, tmp_path / "model")
    assert (caught.value.key, caught.value.expected) == (
        "sft.features.cameras",
        "for each of ['camera_images/front_camera'] one of []",
    )


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("env.train.mapping.extra_view_images=[camera_images/wrist_camera]", "extra_view_images", "1 camera(s) in all"),
        ("env.train.mapping.main_images=camera_images/wrist_camera", "main_images", "camera_images/front_camera"),
        ("env.train.mapping.main_images=other/front_camera", "main_images", "camera_images/front_camera"),
        (
            "env.train.mapping.states=[policy/gripper_opening,policy/gripper_position]",
            "states",
            "policy/gripper_position[0:3], policy/gripper_opening[0:1]",
        ),
        (
            "env.train.mapping.states=[{key: policy/gripper_position, slice: [1, 3]},policy/gripper_opening]",
            "states",
            "policy/gripper_position[0:3], policy/gripper_opening[0:1]",
        ),
        ("actor.model.action_dim=3", "actor.model.action_dim", "4"),
    ],
)
def test_the_experiment_maps_what_the_demonstrations_were_made_of(
    backbone: Path, demos: Path, tmp_path: Path, override: str, key: str, expected: str
) -> None:
    with pytest.raises(UserError, match="Another mapping than the demonstrations") as caught:
        train_base(groot_experiment(override).config, demos, backbone, tmp_path / "model")
    assert str(caught.value.key).endswith(key)
    assert caught.value.expected == expected
    assert not (tmp_path / "model").exists()


def test_images_are_not_turned_otherwise_than_in_the_demonstrations(
    backbone: Path, demos: Path, tmp_path: Path
) -> None:
    other = tmp_path / "demos"
    shutil.copytree(demos, other)
    made_of = json.loads((other / "meta/sources.json").read_text())
    (other / "meta/sources.json").write_text(json.dumps(made_of | {"image_transforms": [["rotate_180"]]}))
    with pytest.raises(UserError, match="Another mapping than the demonstrations") as caught:
        train_base(groot_experiment().config, other, backbone, tmp_path / "model")
    assert caught.value.key == "env.train.mapping.image_transform"
    assert caught.value.expected == "{'camera_images/front_camera': ['rotate_180']}"
    del made_of["image_transforms"]  # as earlier versions wrote it
    (other / "meta/sources.json").write_text(json.dumps(made_of))
    train_base(groot_experiment("sft.steps=1").config, other, backbone, tmp_path / "model")


def test_slices_may_be_written_out_and_groups_left_out(backbone: Path, demos: Path, tmp_path: Path) -> None:
    states = "env.train.mapping.states=[{key: gripper_position, slice: [0, 3]},gripper_opening]"
    config = groot_experiment(states, "env.train.mapping.main_images=front_camera", "sft.steps=1").config
    train_base(config, demos, backbone, tmp_path / "model")


def test_another_instruction_than_the_demonstrations_have_is_a_warning(
    backbone: Path, demos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = groot_experiment("env.train.mapping.task_description=pick up the red", "sft.steps=1").config
    train_base(config, demos, backbone, tmp_path / "model")
    (line,) = caplog.messages
    assert "'pick up the red'" in line
    assert "'pick up the" in line.partition("say")[2]


def test_another_task_is_a_warning_that_names_both(
    base_model: Path, demos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    of_cubes, another = "Regrasp-Pick-Cube-v0", "Regrasp-Stack-Cube-v0"
    origin = read_origin(base_model)
    assert (origin.tasks, origin.instructions) == ((of_cubes,), DemonstrationDataset(demos).tasks)
    tasks = [f"env.{name}.init_params.id={another}" for name in ("train", "eval")]
    config = groot_experiment(f"actor.model.model_path={base_model}", *tasks).config
    (warning,) = check_sources(DemonstrationDataset(demos), config)
    check(config)
    for text in (warning, *caplog.messages):
        assert another in text
        assert of_cubes in text
    caplog.clear()
    check(groot_experiment(f"actor.model.model_path={base_model}").config)
    assert caplog.messages == []


def test_a_dataset_that_does_not_say_what_it_is_made_of(backbone: Path, demos: Path, tmp_path: Path) -> None:
    other = tmp_path / "demos"
    shutil.copytree(demos, other)
    (other / "meta/sources.json").write_text('{"cameras": 3}')
    config = groot_experiment("sft.steps=1").config
    with pytest.raises(UserError, match="cameras and states") as caught:
        train_base(config, other, backbone, tmp_path / "model")
    assert str(caught.value.file) == str(other / "meta/sources.json")
    (other / "meta/sources.json").unlink()
    train_base(config, other, backbone, tmp_path / "model")


def test_a_missing_backbone_says_how_to_get_one(demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = groot_experiment().config
    assert config.pretrain is not None
    with pytest.raises(UserError, match=r"these values of pretrain\.\*") as caught:
        train_base(config, demos, None, tmp_path / "model")
    assert str(cached_backbone(config.pretrain)) in str(caught.value)
    assert "same pretrain.* overrides" in str(caught.value.fix)
    assert "sft.backbone=<folder>" in str(caught.value.fix)


@pytest.mark.parametrize("given", [None, "empty"])
def test_an_experiment_that_pretrains_nothing_asks_for_a_published_model(
    demos: Path, tmp_path: Path, given: str | None
) -> None:
    backbone = tmp_path / given if given else "null"
    config = groot_experiment("~pretrain", f"sft.backbone={backbone}").config
    with pytest.raises(UserError, match="backbone") as caught:
        train_base(config, demos, None, tmp_path / "model")
    assert caught.value.key == "sft.backbone"
    assert "GR00T N1.5" in str(caught.value.expected)
    assert "--backbone nvidia/GR00T-N1.5-3B" in str(caught.value.fix)
    assert "regrasp pretrain" not in str(caught.value)


def test_the_backbone_of_the_cache_is_found(
    backbone: Path, demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = groot_experiment("sft.steps=1").config
    assert config.pretrain is not None
    shutil.copytree(backbone, cached_backbone(config.pretrain))
    folder, _ = train_base(config, demos, None, tmp_path / "model")
    assert (folder / "model.safetensors").is_file()
