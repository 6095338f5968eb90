from __future__ import annotations

import dataclasses
import textwrap

import pytest
import yaml

from regrasp.envs.data_config import KeyConfig
from regrasp.errors import UserError
from regrasp.models.groot.processing.data_config import EXAMPLE, data_config, default_data_config, published
from regrasp.models.groot.processing.selection import key_ranges

PUBLISHED = {
    "fourier_gr1_arms_waist": ("FourierGr1ArmsWaistDataConfig", 1, 5, 5),
    "fourier_gr1_arms_only": ("FourierGr1ArmsOnlyDataConfig", 1, 4, 4),
    "fourier_gr1_full_upper_body": ("FourierGr1FullUpperBodyDataConfig", 1, 6, 6),
    "bimanual_panda_gripper": ("BimanualPandaGripperDataConfig", 3, 6, 6),
    "bimanual_panda_hand": ("BimanualPandaHandDataConfig", 3, 6, 6),
    "single_panda_gripper": ("SinglePandaGripperDataConfig", 3, 5, 5),
    "so100": ("So100DataConfig", 1, 2, 2),
    "so100_dualcam": ("So100DualCamDataConfig", 2, 2, 2),
    "unitree_g1": ("UnitreeG1DataConfig", 1, 4, 4),
    "unitree_g1_full_body": ("UnitreeG1FullBodyDataConfig", 1, 7, 4),
    "oxe_droid": ("OxeDroidDataConfig", 3, 3, 3),
    "agibot_genie1": ("AgibotGenie1DataConfig", 3, 6, 7),
    "isaaclab_g1_dex3": ("IsaacLabDataConfig", 3, 4, 4),
}
"""Class and number of cameras, state keys and action keys."""
INLINE = {
    "video": ["video.room"],
    "state": ["state.arm", {"key": "hand", "mode": "q99"}],
    "action": [{"key": "action.wrist", "mode": "none", "rotation": "axis_angle"}],
}


def read(value):
    return data_config(value, file="f.yaml", key="mapping.data_config")


def test_the_published_ones_are_there_under_both_names():
    assert set(published()) == set(PUBLISHED) | {entry[0] for entry in PUBLISHED.values()}
    for name, (class_name, *counts) in PUBLISHED.items():
        config = read(name)
        assert config == read(class_name) == read(f"some.module:{class_name}")
        assert [len(config.video), len(config.state), len(config.action)] == counts
        assert config.crop_scale == 0.95


def test_pretrained_embodiments_have_a_default():
    modes = {tag: [item.mode for item in config.state] for tag, config in defaults().items()}
    assert modes == {
        "gr1": ["sin_cos"] * 5,
        "oxe_droid": ["min_max", "none", "min_max"],
        "agibot_genie1": ["min_max"] * 6,
    }
    assert default_data_config("new_embodiment") is None


def defaults():
    found = {tag: default_data_config(tag) for tag in ("gr1", "oxe_droid", "agibot_genie1")}
    return {tag: config for tag, config in found.items() if config is not None}


def test_the_trocar_configuration():
    config = read("gr00t_config:IsaacLabDataConfig")
    assert config.video == ("left_wrist_view", "right_wrist_view", "room_view")
    parts = ("left_arm", "right_arm", "left_hand", "right_hand")
    assert config.state == tuple(KeyConfig(key, "sin_cos") for key in parts)
    assert config.action == tuple(KeyConfig(key, "min_max") for key in parts)
    assert config.language == "annotation.human.task_description"


def test_an_inline_block_drops_prefixes_and_fills_in_defaults():
    config = read(INLINE)
    assert config.video == ("room",)
    assert config.state == (KeyConfig("arm", "min_max"), KeyConfig("hand", "q99"))
    assert config.action == (KeyConfig("wrist", "none", "axis_angle"),)
    assert (config.language, config.crop_scale) == ("annotation.human.task_description", 0.95)


@pytest.mark.parametrize("name", PUBLISHED)
def test_data_reads_back_the_same(name):
    config = published()[name]
    assert read(config) == read(dataclasses.asdict(config)) == config


def test_a_class_of_the_user_is_refused_with_the_yaml_to_write():
    with pytest.raises(UserError) as error:
        read("my_config:MyRobotDataConfig")
    assert error.value.value == "my_config:MyRobotDataConfig"
    assert error.value.fix is not None
    block = yaml.safe_load(textwrap.dedent(error.value.fix.partition("\n")[2]))
    assert read(block["data_config"]) == published()["so100_dualcam"]
    assert EXAMPLE in error.value.fix


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError) as error:
        read("so100_dual_cam")
    assert error.value.fix == "write so100_dualcam"
    assert error.value.expected is not None
    assert all(name in error.value.expected for name in PUBLISHED)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"video": []}, "video"),
        ({"state": "state.arm"}, "state"),
        ({"state": ["arm", "state.arm"]}, "state"),
        ({"state": [3]}, "state[0]"),
        ({"state": [{"key": "arm", "normalization": "q99"}]}, "state[0].normalization"),
        ({"state": [{"key": "arm", "mode": "minmax"}]}, "state[0].mode"),
        ({"state": [{"key": "arm", "rotation": "euler"}]}, "state[0].rotation"),
        ({"action": [{"key": "arm", "mode": "sin_cos"}]}, "action"),
        ({"crop_scale": 0}, "crop_scale"),
        ({"crop": 1}, "crop"),
    ],
)
def test_a_wrong_block_names_the_key(change, key):
    with pytest.raises(UserError) as error:
        read(INLINE | change)
    assert error.value.key == f"mapping.data_config.{key}"
    assert error.value.file == "f.yaml"


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ([{"key": "delta", "width": 6}, {"key": "close", "width": 1}], {"delta": (0, 6), "close": (6, 7)}),
        ([{"key": "delta", "width": 6}, "close"], {"delta": (0, 6), "close": (6, 7)}),
        (["arm", "close"], {"arm": (0, 3), "close": (3, 7)}),
        (["whole"], {"whole": (0, 7)}),
        (["delta", "close"], None),
        ([{"key": "delta", "width": 7}, "close"], None),
        ([{"key": "delta", "width": 5}, {"key": "close", "width": 1}], None),
    ],
)
def test_parts_of_the_action_are_as_wide_as_they_say(action, expected):
    config = data_config({"video": ["front"], "state": ["arm", "hand"], "action": action}, file=None, key="")
    states = {"arm": (0, 3), "hand": (3, 9)}
    if expected is None:
        with pytest.raises(UserError, match="width"):
            key_ranges(config, states, 9, 7)
    else:
        assert key_ranges(config, states, 9, 7)[1] == expected
