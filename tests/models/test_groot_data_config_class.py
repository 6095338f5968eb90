"""Data configuration classes, as users of Isaac-GR00T write them, read as data without running them."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from official_layout import SMALL, embodiment, write_official
from official_layout import write as write_json

from regrasp.cli.main import main
from regrasp.config.search import SHIPPED
from regrasp.errors import UserError
from regrasp.experiment.inputs import input_names
from regrasp.experiment.load import load_config
from regrasp.models.groot.processing.data_config import BUILT_IN, data_config
from regrasp.models.groot.processing.data_config_class import UnreadableError, read_class
from regrasp.models.groot.processing.metadata import METADATA_FILE
from regrasp.models.registry import load_policy

IMPORTS = """
import sys

from gr00t.data.dataset import ModalityConfig
from gr00t.data.transform.base import ComposedModalityTransform
from gr00t.data.transform.concat import ConcatTransform
from gr00t.data.transform.state_action import StateActionSinCosTransform, StateActionToTensor, StateActionTransform
from gr00t.data.transform.video import VideoColorJitter, VideoCrop, VideoResize, VideoToNumpy, VideoToTensor
from gr00t.experiment.data_config import BaseDataConfig, So100DataConfig, OxeDroidDataConfig
from gr00t.model.transforms import GR00TTransform

sys.exit("this module was run")
"""
VIDEO = """
            VideoToTensor(apply_to=self.video_keys),
            VideoCrop(apply_to=self.video_keys, scale=0.95),
            VideoResize(apply_to=self.video_keys, height=224, width=224, interpolation="linear"),
            VideoColorJitter(apply_to=self.video_keys, brightness=0.3, contrast=0.4, saturation=0.5, hue=0.08),
            VideoToNumpy(apply_to=self.video_keys),
"""
REST = """
            ConcatTransform(
                video_concat_order=self.video_keys,
                state_concat_order=self.state_keys,
                action_concat_order=self.action_keys,
            ),
            GR00TTransform(
                state_horizon=len(self.observation_indices),
                action_horizon=len(self.action_indices),
                max_state_dim=64,
                max_action_dim=32,
            ),
        ]
        return ComposedModalityTransform(transforms=transforms)
"""
ARMS = f"""
class FourierGr1ArmsWaist(BaseDataConfig):
    video_keys = ["video.ego_view"]
    state_keys = ["state.left_arm", "state.right_arm", "state.left_hand", "state.right_hand", "state.waist"]
    action_keys = ["action.left_arm", "action.right_arm", "action.left_hand", "action.right_hand", "action.waist"]
    language_keys = ["annotation.human.coarse_action"]
    observation_indices = [0]
    action_indices = list(range(16))

    def modality_config(self):
        return {{"video": ModalityConfig(delta_indices=self.observation_indices, modality_keys=self.video_keys)}}

    def transform(self):
        transforms = [{VIDEO}
            StateActionToTensor(apply_to=self.state_keys),
            StateActionSinCosTransform(apply_to=self.state_keys),
            StateActionToTensor(apply_to=self.action_keys),
            StateActionTransform(
                apply_to=self.action_keys,
                normalization_modes={{key: "min_max" for key in self.action_keys}},
            ),{REST}
"""
DROID = f"""
class Droid(BaseDataConfig):
    video_keys = ["video.exterior_image_1", "video.exterior_image_2", "video.wrist_image"]
    state_keys = ["state.eef_position", "state.eef_rotation", "state.gripper_position"]
    action_keys = ["action.eef_position_delta", "action.eef_rotation_delta", "action.gripper_position"]
    language_keys = ["annotation.language.language_instruction"]

    def transform(self):
        transforms = [{VIDEO}
            StateActionTransform(
                apply_to=self.state_keys,
                normalization_modes={{"state.eef_position": "min_max", "state.gripper_position": "min_max"}},
                target_rotations={{"state.eef_rotation": "rotation_6d"}},
            ),
            StateActionTransform(
                apply_to=self.action_keys,
                normalization_modes={{"action.gripper_position": "binary"}},
                target_rotations={{"action.eef_rotation_delta": "axis_angle"}},
            ),{REST}
"""
OWN = f"""
CAMERAS = ["video.front", "video.wrist"]


class Arm(BaseDataConfig):
    video_keys = CAMERAS
    state_keys: list[str] = ["state.on", "state.gripper"]
    action_keys = ["action.on"] + ["action.gripper"]
    language_keys = ["annotation.human.task_description"]
    observation_indices = [0]

    def transform(self):
        modes = {{"state.on": "mean_std", **{{key: "q99" for key in ["state.gripper"]}}}}
        transforms = [
            VideoCrop(apply_to=self.video_keys, scale=0.9),
            StateActionTransform(apply_to=self.state_keys, normalization_modes=modes),
            StateActionTransform(
                apply_to=self.action_keys, normalization_modes={{k: "min_max" for k in self.action_keys}}
            ),{REST}


class OneCamera(Arm):
    video_keys = ["video.front"]
"""
EXTENDED = """
class DualCamera(So100DataConfig):
    video_keys = ["video.front", "video.wrist"]


class WithTorso(So100DataConfig):
    state_keys = ["state.single_arm", "state.torso", "state.gripper"]
    action_keys = ["action.single_arm"]


class UnknownScale(OxeDroidDataConfig):
    state_keys = ["state.torso"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_config.py").write_text(IMPORTS + ARMS + DROID + OWN + EXTENDED)
    return tmp_path


def shown(folder: Path, name: str) -> Any:
    """The block that the refusal of a class shows, as it would be pasted."""
    with pytest.raises(UserError) as error:
        data_config(f"my_config:{name}", file="f.yaml", key="mapping.data_config_class", folders=[folder])
    assert error.value.mend is not None
    assert "what that class says" in error.value.mend
    return yaml.safe_load(textwrap.dedent(error.value.mend.partition("\n")[2]))["data_config"]


@pytest.mark.parametrize(
    ("name", "published"), [("FourierGr1ArmsWaist", "fourier_gr1_arms_waist"), ("Droid", "oxe_droid")]
)
def test_published_classes_are_read_as_what_is_built_in(folder: Path, name: str, published: str) -> None:
    assert data_config(shown(folder, name), file=None, key="") == BUILT_IN[published]


def test_a_class_of_ones_own(folder: Path) -> None:
    assert shown(folder, "Arm") == {
        "video": ["front", "wrist"],
        "state": [{"key": "on", "mode": "mean_std"}, {"key": "gripper", "mode": "q99"}],
        "action": [{"key": "on", "mode": "min_max"}, {"key": "gripper", "mode": "min_max"}],
        "language": "annotation.human.task_description",
        "crop_scale": 0.9,
    }
    assert shown(folder, "OneCamera") == shown(folder, "Arm") | {"video": ["front"]}


def test_a_published_class_with_other_keys(folder: Path) -> None:
    assert data_config(shown(folder, "DualCamera"), file=None, key="") == BUILT_IN["so100_dualcam"]
    torso = shown(folder, "WithTorso")
    assert torso["state"] == [{"key": key, "mode": "min_max"} for key in ("single_arm", "torso", "gripper")]
    assert torso["action"] == [{"key": "single_arm", "mode": "min_max"}]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("", "has no class Arm"),
        ("class Arm:", "cannot be parsed"),
        ("class Arm:\n    video_keys = ['video.a']", "no method `transform`"),
        (OWN.replace("[0]", "[-1, 0]"), "several time steps"),
        (OWN.replace('["action.on"] + ["action.gripper"]', "load_keys()"), "`load_keys()`"),
        (OWN.replace('{k: "min_max" for k in self.action_keys}', "load_modes()"), "`load_modes()`"),
        (OWN.replace("for k in self.action_keys", "for k in self.action_keys if k"), "comprehension"),
        (OWN.replace('{k: "min_max" for k in self.action_keys}', '["min_max"]'), "not as Isaac-GR00T has it"),
        (OWN.replace('["state.on", "state.gripper"]', "[*3]"), "not as Isaac-GR00T has it"),
        (OWN.replace('"mean_std"', '"scale"'), "Unknown mode of a key (my_config:Arm.state[0].mode: scale)"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, source: str, why: str) -> None:
    (tmp_path / "my_config.py").write_text(source)
    with pytest.raises(UserError) as error:
        data_config("my_config:Arm", file=None, key="", folders=[tmp_path])
    assert why in str(error.value.mend)


def test_a_key_list_that_cannot_be_read_does_not_fall_back_to_the_inherited_one(tmp_path: Path) -> None:
    (tmp_path / "my_config.py").write_text(OWN.replace('    video_keys = ["video.front"]', "    video_keys = views()"))
    with pytest.raises(UnreadableError, match=r"`views\(\)`"):
        read_class("my_config:OneCamera", [tmp_path])


def test_scaling_that_is_not_said(folder: Path) -> None:
    with pytest.raises(UnreadableError, match=r"scales state\.torso"):
        read_class("my_config:UnknownScale", [folder], {name: config.to_json() for name, config in BUILT_IN.items()})


def test_a_module_is_looked_for_in_packages_and_in_order(tmp_path: Path) -> None:
    for name, crop in (("first", "0.9"), ("second", "0.8")):
        (tmp_path / name / "robots").mkdir(parents=True)
        source = OWN.replace("scale=0.9", f"scale={crop}")
        (tmp_path / name / "robots" / "arm.py").write_text(source)
    folders = [tmp_path / "none", tmp_path / "second", tmp_path / "first"]
    assert read_class("robots.arm:Arm", folders)["crop_scale"] == 0.8
    with pytest.raises(UnreadableError, match=r"robots/leg\.py"):
        read_class("robots.leg:Arm", folders)


def test_what_is_shown_can_be_pasted_into_the_experiment(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = (SHIPPED / "pick_cube_ppo_groot.yaml").read_text()
    old = "        - policy/gripper_opening\n"
    assert old in shipped
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(shipped.replace(old, old + "      data_config_class: my_config:OneCamera\n"))
    arguments = ["train", "--dry_run", "--config_name", str(experiment), "~pretrain"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    lines = error.splitlines()
    first = lines.index("  data_config:")
    block = [lines[first], *(line for line in lines[first + 1 : first + 10] if line.startswith("    "))]
    pasted = textwrap.indent(textwrap.dedent("\n".join(block)), "      ") + "\n"
    experiment.write_text(shipped.replace(old, old + pasted))
    assert main(arguments) == 0
    config = load_config(str(experiment), ["~pretrain"]).config

    widths = {kind: {"on": 3, "gripper": 1} for kind in ("state", "action")}
    write_official(tmp_path / "model")
    write_json(tmp_path / "model" / METADATA_FILE, {"new_embodiment": embodiment("new_embodiment", widths, ("front",))})
    inputs = input_names(config.env.train.mapping)
    policy = load_policy(tmp_path / "model", inputs=inputs)
    assert policy.spec.state_dim == policy.spec.action_dim == 4
    assert policy.spec.action_horizon == SMALL.horizon
    assert json.loads(json.dumps(inputs.data_config))["crop_scale"] == 0.9
