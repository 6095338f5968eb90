"""How runners tell a model what the experiment calls its inputs."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from run_toys import groot_experiment, mlp_experiment

from regrasp.config.types import changed
from regrasp.engine.policies import check_folder_fits, check_inputs, load_model
from regrasp.envs.data_config import DataConfig
from regrasp.envs.mapping_config import Gr00tVideoMapping, MappingConfig, StateEntry
from regrasp.envs.mujoco.env import Mujoco
from regrasp.envs.selection import camera_names, state_names
from regrasp.errors import UserError
from regrasp.experiment.inputs import input_names
from regrasp.experiment.load import LoadedConfig, load_config
from regrasp.models.groot.processing.data_config import data_config, published
from regrasp.models.inputs import InputNames
from regrasp.runner.resume import check_slot
from regrasp.stages.play import PlayOptions, play
from regrasp.stages.train import train
from rl_toys import EchoPolicy

REFERENCE = Path(__file__).parents[1] / "config" / "reference_experiment.yaml"


class TrocarNames(EchoPolicy):
    """A policy that was trained with the reference's names."""

    spec = replace(
        EchoPolicy.spec,
        cameras=("left_wrist_view", "right_wrist_view", "room_view"),
        state_parts=tuple((f"{side}_{part}", 7) for part in ("arm", "hand") for side in ("left", "right")),
    )


def test_the_reference_experiment_in_names() -> None:
    config = load_config(str(REFERENCE)).config
    names = input_names(config.env.train.mapping)
    assert names == InputNames(
        embodiment_tag="new_embodiment",
        embodiment_tag_id=31,
        data_config="gr00t_config:IsaacLabDataConfig",
    )


def test_the_reference_experiments_names_of_cameras_and_state() -> None:
    mapping = load_config(str(REFERENCE)).config.env.train.mapping
    assert camera_names(mapping) == ("room_view", "left_wrist_view", "right_wrist_view")
    ranges = {"left_arm": (0, 7), "right_arm": (7, 14), "left_hand": (14, 21), "right_hand": (21, 28)}
    assert state_names(mapping) == ranges
    policy = TrocarNames()
    check_inputs(policy, mapping)
    assert mapping.gr00t_mapping is not None
    state = mapping.gr00t_mapping.state
    names = replace(mapping.gr00t_mapping, state=(*state[:2], replace(state[2], slice=(14, 20))))
    with pytest.raises(UserError, match=r"left_hand \[14, 20\] \(6 wide\); right_hand missing") as caught:
        check_inputs(policy, replace(mapping, gr00t_mapping=names))
    assert caught.value.key == "env.train.mapping.gr00t_mapping.state"
    for views in (("left", "right"), ("left_wrist_view",)):
        video = Gr00tVideoMapping("room_view", views)
        with pytest.raises(UserError, match="cameras are not the model's") as caught:
            check_inputs(policy, replace(mapping, gr00t_mapping=replace(mapping.gr00t_mapping, video=video)))
        assert caught.value.key == "env.train.mapping.gr00t_mapping.video"
        assert "left_wrist_view, right_wrist_view, room_view" in str(caught.value)


def test_the_order_of_the_actions_parts_is_compared() -> None:
    mapping = load_config(str(REFERENCE)).config.env.train.mapping
    policy = TrocarNames()
    policy.spec = replace(policy.spec, action_parts=(("left_arm", 7), ("right_arm", 7)))

    def keys(*names: str) -> MappingConfig:
        return replace(mapping, action_mapping=replace(mapping.action_mapping, keys=names))

    check_inputs(policy, keys())
    check_inputs(policy, keys("action.left_arm", "right_arm"))
    for wrong in (("action.right_arm", "action.left_arm"), ("left_arm",)):
        with pytest.raises(UserError, match=r"another order[\s\S]*left_arm \(7 wide\), right_arm") as caught:
            check_inputs(policy, keys(*wrong))
        assert caught.value.key == "env.train.mapping.action_mapping.keys"


def test_an_experiment_without_names_leaves_them_open() -> None:
    config = mlp_experiment().config
    names = input_names(config.env.train.mapping)
    assert names == InputNames(embodiment_tag="new_embodiment")


def test_a_written_out_data_config_means_the_same_as_its_name() -> None:
    block = TypeAdapter(DataConfig).dump_python(published()["oxe_droid"], mode="json", exclude_none=True)
    entries = {
        kind: [f"{{{', '.join(f'{k}: {v}' for k, v in e.items())}}}" for e in block[kind]]
        for kind in ("state", "action")
    }
    text = (
        f"{{video: {block['video']}, state: [{','.join(entries['state'])}], action: [{','.join(entries['action'])}],"
        f" language: {block['language']}}}"
    )
    overrides = [f"env.{name}.mapping.data_config={text}" for name in ("train", "eval")]
    config = groot_experiment(*overrides).config
    value = input_names(config.env.train.mapping).data_config
    assert value is not None
    assert data_config(value, file=None, key="") == published()["oxe_droid"]


def test_an_error_names_the_mapping_that_was_used(base_model: Path, tmp_path: Path) -> None:
    model = f"actor.model.model_path={base_model}"
    with pytest.raises(UserError) as caught:
        play(groot_experiment(model, "env.eval.mapping.states=[policy/gripper_position]"), tmp_path, PlayOptions())
    assert caught.value.key == "env.eval.mapping.states"
    with pytest.raises(UserError) as caught:
        train(groot_experiment(model, "env.train.mapping.states=[policy/gripper_position]"), tmp_path)
    assert caught.value.key == "env.train.mapping.states"


@pytest.mark.parametrize(
    ("mapping", "has_processor", "warns"),
    [
        ("embodiment_tag_id=0", False, True),
        ("embodiment_tag_id=0", True, False),
        ("embodiment_tag_id=31", False, False),
        ("embodiment_tag_id=null", False, False),
        ("embodiment_tag=arm", False, False),
    ],
)
def test_another_slot_than_the_published_one_is_warned_of(
    tmp_path: Path, mapping: str, has_processor: bool, warns: bool
) -> None:
    if has_processor:
        (tmp_path / "processor_config.json").write_text("{}")
    changes = [f"env.{name}.mapping.{mapping}" for name in ("train", "eval")]
    config = groot_experiment("~pretrain", f"actor.model.model_path={tmp_path}", *changes).config
    warning = config.actor.model.slot_warning(input_names(config.env.train.mapping))
    assert (warning is not None and "slot is 31" in warning) == warns


def test_a_slot_left_out_is_the_model_folders_own(base_model: Path) -> None:
    config = groot_experiment(f"actor.model.model_path={base_model}").config
    mapping = config.env.train.mapping
    assert mapping.embodiment_tag_id is None
    policy = load_model(config.actor.model, base_model, mapping)
    assert policy.spec.embodiment_id == 0
    check_inputs(policy, mapping)
    for change in ({"embodiment_tag_id": 1}, {"embodiment_tag": "gr1"}):
        with pytest.raises(UserError, match="another embodiment"):
            check_inputs(policy, replace(mapping, **change))


def test_a_published_models_run_goes_on_with_its_own_slot_only(tmp_path: Path) -> None:
    def experiment(slot: str) -> LoadedConfig:
        changes = [f"env.{name}.mapping.embodiment_tag_id={slot}" for name in ("train", "eval")]
        return groot_experiment("~pretrain", f"actor.model.model_path={tmp_path}", *changes)

    for before, now in (("null", "31"), ("31", "null"), ("3", "3")):
        check_slot(experiment(before).to_yaml(), experiment(now).config, tmp_path)
    for before, now in (("null", "3"), ("3", "null"), ("3", "4")):
        with pytest.raises(UserError, match="begun with the projectors of another embodiment"):
            check_slot(experiment(before).to_yaml(), experiment(now).config, tmp_path)


@pytest.mark.parametrize("name", ["train", "eval"])
def test_a_state_of_another_width_is_told_before_a_simulator_starts(
    start_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("a simulator has started")

    monkeypatch.setattr("regrasp.stages.engines.create_env", start)
    monkeypatch.setattr("regrasp.stages.play.create_env", start)
    changes = (f"actor.model.model_path={start_model}", f"env.{name}.mapping.states=[policy/gripper_position]")
    loaded = mlp_experiment(*changes, "runner.val_check_interval=2")
    with pytest.raises(UserError, match="does not have the width") as caught:
        train(loaded, tmp_path)
    assert (caught.value.key, caught.value.value) == (f"env.{name}.mapping.states", "3 values")
    if name == "eval":
        with pytest.raises(UserError, match="does not have the width"):
            play(loaded, tmp_path, PlayOptions())


@pytest.mark.parametrize(("slices", "told"), [([(0, 2), (0, 1)], True), ([(0, 2), None], False)])
def test_slices_tell_the_width_where_only_the_simulator_knows_the_rest(
    start_model: Path, monkeypatch: pytest.MonkeyPatch, slices: list[tuple[int, int] | None], told: bool
) -> None:
    monkeypatch.setattr(Mujoco, "describe", lambda *_: None)
    entries = tuple(StateEntry(f"policy/{index}", bounds) for index, bounds in enumerate(slices))
    config = mlp_experiment(f"actor.model.model_path={start_model}").config
    config = changed(config, "env.train.mapping.states", entries)
    with pytest.raises(UserError, match="does not have the width") if told else contextlib.nullcontext():
        check_folder_fits(config, "train")
