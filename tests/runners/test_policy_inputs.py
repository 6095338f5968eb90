"""How runners tell a model what the experiment calls its inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_toys import groot_experiment, mlp_experiment

from regrasp.config.load import load_config
from regrasp.errors import UserError
from regrasp.models.groot.data_config import BUILT_IN, data_config
from regrasp.models.inputs import InputNames
from regrasp.runners.play import PlayOptions, play
from regrasp.runners.policies import input_names
from regrasp.runners.session import train

REFERENCE = Path(__file__).parents[1] / "config" / "reference_experiment.yaml"


def test_the_reference_experiment_in_names() -> None:
    config = load_config(str(REFERENCE), ["+actor.model.tokenizer_path=eagle"]).config
    names = input_names(config.actor.model, config.env.train.mapping)
    assert names == InputNames(
        embodiment_tag="new_embodiment",
        embodiment_tag_id=31,
        views=("room_view", "left_wrist_view", "right_wrist_view"),
        state=(("left_arm", 0, 7), ("right_arm", 7, 14), ("left_hand", 14, 21), ("right_hand", 21, 28)),
        data_config="gr00t_config:IsaacLabDataConfig",
        tokenizer_path=Path("eagle"),
    )


def test_an_experiment_without_names_leaves_them_open() -> None:
    config = mlp_experiment().config
    names = input_names(config.actor.model, config.env.train.mapping)
    assert names == InputNames(embodiment_tag="new_embodiment")


def test_a_written_out_data_config_means_the_same_as_its_name() -> None:
    block = BUILT_IN["oxe_droid"].to_json()
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
    value = input_names(config.actor.model, config.env.train.mapping).data_config
    assert value is not None
    assert data_config(value, file=None, key="") == BUILT_IN["oxe_droid"]


def test_an_error_names_the_mapping_that_was_used(base_model: Path, tmp_path: Path) -> None:
    model = f"actor.model.model_path={base_model}"
    with pytest.raises(UserError) as caught:
        play(groot_experiment(model, "env.eval.mapping.states=[policy/gripper_position]"), tmp_path, PlayOptions())
    assert caught.value.key == "env.eval.mapping.states"
    with pytest.raises(UserError) as caught:
        train(groot_experiment(model, "env.train.mapping.states=[policy/gripper_position]"), tmp_path)
    assert caught.value.key == "env.train.mapping.states"
