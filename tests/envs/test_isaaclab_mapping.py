"""What Isaac Lab tasks need of the mapping: explicit slices, constants, and keys that only they know."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from regrasp.envs.isaaclab.config import IsaacLabEvalConfig, IsaacLabTrainConfig
from regrasp.envs.mapping import ActionMapping
from regrasp.envs.mapping_config import ActionConstant, ActionSlice, MappingConfig
from regrasp.envs.mapping_config import ActionMapping as ActionMappingConfig
from regrasp.envs.registry import create_env, preflight
from regrasp.errors import UserError
from regrasp.experiment.load import load_config

LOCATION = "env.train.mapping"


def mapping(policy_dim: int, simulator_dim: int, **settings: Any) -> ActionMapping:
    return ActionMapping(
        MappingConfig(action_mapping=ActionMappingConfig(**settings)), policy_dim, simulator_dim, LOCATION
    )


SLICES = (ActionSlice(policy=(0, 2), simulator=(3, 5)), ActionSlice(policy=(2, 3), simulator=(0, 1)))
CONSTANTS = (ActionConstant(slice=(1, 3), value=0.5), ActionConstant(slice=(5, 7), value=(7.0, 8.0)))


def test_slices_constants_and_scale_place_the_action() -> None:
    place = mapping(3, 8, slices=SLICES, constants=CONSTANTS, scale=(1.0, 10.0, 100.0))
    actions = torch.tensor([[[1.0, 2.0, 3.0]]])
    placed = place(actions)
    assert placed.tolist() == [[[300.0, 0.5, 0.5, 1.0, 20.0, 7.0, 8.0, 0.0]]]
    assert torch.equal(place.inverse(placed), actions)


def test_pads_can_hold_constants() -> None:
    place = mapping(2, 4, prefix_pad=1, suffix_pad=1, constants=(ActionConstant(slice=(0, 1), value=-1.0),))
    assert place(torch.ones(2, 3, 2)).tolist() == [[[-1.0, 1.0, 1.0, 0.0]] * 3] * 2


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"slices": SLICES, "prefix_pad": 1}, "slices"),
        ({"slices": SLICES[:1]}, "slices"),
        ({"slices": (*SLICES, SLICES[0])}, "slices[2]"),
        ({"slices": (ActionSlice(policy=(0, 3), simulator=(6, 9)),)}, "slices[0]"),
        ({"slices": (ActionSlice(policy=(0, 3), simulator=(0, 2)),)}, "slices[0]"),
        ({"slices": SLICES, "constants": (ActionConstant(slice=(0, 1), value=1.0),)}, "constants[0]"),
        ({"slices": SLICES, "constants": (ActionConstant(slice=(5, 9), value=1.0),)}, "constants[0]"),
        ({"slices": SLICES, "constants": (ActionConstant(slice=(5, 7), value=(1.0,)),)}, "constants[0]"),
    ],
)
def test_a_layout_that_does_not_fit_is_one_error(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as caught:
        mapping(3, 8, **settings)
    assert caught.value.key == f"{LOCATION}.action_mapping.{key}"


def lab(**settings: Any) -> IsaacLabTrainConfig:
    """The shipped Isaac Lab experiment's training environments with other settings of the mapping."""
    env = load_config("isaaclab_stack_cube_ppo_groot").config.env.train
    assert isinstance(env, IsaacLabTrainConfig)
    return dataclasses.replace(env, mapping=dataclasses.replace(env.mapping, **settings))


def test_the_shipped_experiment_is_complete_but_for_its_model() -> None:
    config = load_config("isaaclab_stack_cube_ppo_groot").config
    preflight(config.env.train, "train", config.actor.model.action_dim)
    preflight(config.env.eval, "eval", config.actor.model.action_dim)
    assert config.env.train.mapping == config.env.eval.mapping
    assert isinstance(config.env.eval, IsaacLabEvalConfig)
    assert config.env.eval.init_params.hold_action == "zero"


@pytest.mark.parametrize(
    "settings",
    [
        {"task_description": None},
        {"instruction_key": "goal"},
        {"instruction_key": "goal", "instructions": ("a", "b")},
    ],
)
def test_an_instruction_has_one_source(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="one source") as caught:
        create_env(lab(**settings), "train", 1)
    assert caught.value.key == "env.train.mapping"


def test_one_simulator_runs_per_gpu() -> None:
    with pytest.raises(UserError, match="one simulator per GPU"):
        create_env(dataclasses.replace(lab(), num_workers=2), "train", 1)


def test_a_python_without_isaac_lab_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="no 'isaaclab'") as caught:
        create_env(lab(), "train", 1)
    assert caught.value.key == "env.train.python"
    assert "set env.isaaclab.python" in str(caught.value.fix)


def test_a_python_that_does_not_exist_is_named_as_it_is_written() -> None:
    loaded = load_config("isaaclab_stack_cube_ppo_groot", ["env.isaaclab.python=/no/such/python"])
    with pytest.raises(UserError, match="cannot be started") as caught:
        create_env(loaded.config.env.eval, "eval", 1)
    assert caught.value.key == "env.eval.python"
    located = loaded.located(caught.value)
    assert (located.key, located.file) == ("env.isaaclab.python", "command line")
    assert "env.isaaclab.python" in str(located.fix)


def test_keys_of_isaac_lab_have_no_effect_elsewhere() -> None:
    overrides = ["env.train.env_type=mujoco", "env.eval.env_type=mujoco", "env.isaaclab=null"]
    with pytest.raises(UserError, match="isaaclab only") as caught:
        load_config("isaaclab_stack_cube_ppo_groot", overrides)
    assert "key:      env.train.isaaclab.reward_source\n" in str(caught.value)
    keys = ("isaaclab.reward_source=task", "init_params.hold_action=last")
    defaults = [f"env.{name}.{key}" for name in ("train", "eval") for key in keys]
    config = load_config("isaaclab_stack_cube_ppo_groot", [*overrides, *defaults]).config
    assert not hasattr(config.env.train.mapping, "reward_source")


def test_task_options_are_the_embedded_simulators() -> None:
    with pytest.raises(UserError, match="mujoco only") as caught:
        load_config("isaaclab_stack_cube_ppo_groot", ["env.train.init_params.task_options={object_jitter: 0.0}"])
    assert caught.value.key == "env.train.init_params.task_options"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [("device", "gpu", "'cpu', or 'cuda:<n>'"), ("camera_size", "[8,8,8]", r"\[height, width\]")],
)
def test_a_wrong_setting_is_told_where_it_was_written(key: str, value: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        load_config("isaaclab_stack_cube_ppo_groot", [f"env.isaaclab.{key}={value}"])
    assert f"key:      env.isaaclab.{key}\n  value:" in str(caught.value)
    assert "problems" not in str(caught.value)


def test_null_stands_for_a_default_of_the_mapping(tmp_path: Path) -> None:
    nulls = [f"env.train.isaaclab.{key}=null" for key in ("extra_view_images", "action_mapping", "instructions")]
    mapping = load_config("isaaclab_stack_cube_ppo_groot", nulls).config.env.train.mapping
    assert mapping == dataclasses.replace(lab().mapping, extra_view_images=())
    assert load_config("pick_cube_ppo_mlp", ["+env.isaaclab=null"]).config == load_config("pick_cube_ppo_mlp").config
    with pytest.raises(UserError, match="Unknown key"):
        load_config("isaaclab_stack_cube_ppo_groot", ["+env.train.isaaclab.extra_view_image=null"])


def test_shared_settings_are_defaults_of_both(tmp_path: Path) -> None:
    shared = ["env.isaaclab.device=cuda:1", "env.isaaclab.camera_size=[112,224]", "+env.eval.init_params.device=cuda:2"]
    envs: Any = load_config("isaaclab_stack_cube_ppo_groot", shared).config.env
    assert (envs.train.init_params.device, envs.eval.init_params.device) == ("cuda:1", "cuda:2")
    assert envs.train.init_params.camera_size == envs.eval.init_params.camera_size == (112, 224)
    with pytest.raises(UserError, match=r"Unknown key: env\.isaaclab"):
        load_config("isaaclab_stack_cube_ppo_groot", ["+env.isaaclab.pyton=/usr/bin/python3"])
