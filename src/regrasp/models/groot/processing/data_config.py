"""Data configurations of GR00T as data: which cameras, states and actions a model sees, in which order and scaling.

The published ones are here under their short names and their class names. Imports nothing heavy: the configuration
is checked with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BeforeValidator, Field, field_validator
from pydantic.dataclasses import dataclass

from regrasp.config.parse import parse, refusal
from regrasp.config.types import BLOCK, NormalizationMode, Rotation, bare_key
from regrasp.errors import UserError

PROCESSOR_FILE = "processor_config.json"
EAGLE_WORDS = 82
"""Positions beside the image tokens in a published checkpoint's sequence: with three cameras 850 in all, as the
reference pads."""
EXAMPLE = """\
  data_config:
    video: [front, wrist]
    state:
      - {key: single_arm, mode: min_max}
      - {key: gripper, mode: min_max}
    action:
      - {key: single_arm, mode: min_max}
      - {key: gripper, mode: min_max}
    language: annotation.human.task_description
    crop_scale: 0.95"""
"""A complete block as it is written below `mapping`."""
HUMAN_TASK = "annotation.human.task_description"
_HUMAN_ACTION_TASK = "annotation.human.action.task_description"
_COARSE_ACTION = "annotation.human.coarse_action"


_BareKey = Annotated[str, AfterValidator(bare_key)]


@dataclass(frozen=True, config=BLOCK)
class KeyConfig:
    """One part of the state or of the action."""

    key: _BareKey
    """Name in the metadata, without `state.` or `action.`."""
    mode: NormalizationMode = "min_max"
    rotation: Rotation | None = None
    """Representation that the model sees; None: the data's own."""


def _by_name(item: Any) -> Any:
    """A key by its name alone is one of the default mode."""
    return {"key": item} if isinstance(item, str) else item


_Keys = Annotated[tuple[Annotated[KeyConfig, BeforeValidator(_by_name)], ...], Field(min_length=1)]


@dataclass(frozen=True, config=BLOCK)
class DataConfig:
    """What a model sees and gives, in the order in which it is laid end to end.

    A state is one time step; the action horizon is the network's.
    """

    video: Annotated[tuple[_BareKey, ...], Field(min_length=1)]
    """Cameras, without `video.`."""
    state: _Keys
    action: _Keys
    language: str = HUMAN_TASK
    """Annotation of the demonstrations that held the instruction."""
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Side of the centre crop, as a part of the image's."""

    @field_validator("video", "state", "action")
    @classmethod
    def _check_once(cls, items: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [item.key if isinstance(item, KeyConfig) else item for item in items]
        if len(set(names)) < len(names):
            raise refusal("A key is there twice", names, "each key once")
        return items

    @field_validator("action")
    @classmethod
    def _check_ways_back(cls, action: tuple[KeyConfig, ...]) -> tuple[KeyConfig, ...]:
        if any(item.mode == "sin_cos" for item in action):
            raise refusal("sin_cos has no way back to an action", "sin_cos", "another mode, such as min_max")
        return action

    def to_json(self) -> dict[str, Any]:
        """What `data_config` reads back."""
        return {
            "video": list(self.video),
            "state": [_plain(item) for item in self.state],
            "action": [_plain(item) for item in self.action],
            "language": self.language,
            "crop_scale": self.crop_scale,
        }


def data_config(value: str | Mapping[str, Any], *, file: Any, key: str) -> DataConfig:
    """Read a data configuration: a built-in name, `module:Class` of a built-in class, or an inline mapping.

    Args:
        value: The name or the mapping.
        file: Where it stands, for errors.
        key: Its key there.

    Raises:
        UserError: The name is unknown, or the mapping is not a data configuration.
    """
    if isinstance(value, Mapping):
        return parse(DataConfig, value, file=file, key=key)
    name = value.rpartition(":")[2]
    if name not in BUILT_IN:
        raise _refused_class(value, file, key) if ":" in value else _unknown(value, file, key)
    return BUILT_IN[name]


def default_data_config(tag: str) -> DataConfig | None:
    """The published data configuration of a pretrained embodiment, None for another embodiment."""
    name = {"gr1": "fourier_gr1_arms_waist", "oxe_droid": "oxe_droid", "agibot_genie1": "agibot_genie1"}.get(tag)
    return None if name is None else BUILT_IN[name]


def _plain(item: KeyConfig) -> dict[str, str]:
    rotation = {} if item.rotation is None else {"rotation": item.rotation}
    return {"key": item.key, "mode": item.mode, **rotation}


def _unknown(value: str, file: Any, key: str) -> UserError:
    close = get_close_matches(value, list(BUILT_IN), n=1)
    return UserError(
        "No such data configuration",
        file=file,
        key=key,
        value=value,
        expected=_short_names(),
        fix=f"write {close[0]}" if close else f"describe it in the mapping, for example\n{EXAMPLE}",
    )


def _refused_class(value: str, file: Any, key: str) -> UserError:
    return UserError(
        "A data configuration class is code, which is not run; only the published ones are built in",
        file=file,
        key=key,
        value=value,
        expected=f"a class or a short name of {_short_names()}",
        fix=f"in its place, write into the mapping the keys and modes of that class. Modes are"
        f" {', '.join(get_args(NormalizationMode))}; a target rotation is added as rotation: rotation_6d. For example\n"
        f"{EXAMPLE}",
    )


def _short_names() -> str:
    return ", ".join(name for name in BUILT_IN if not name.endswith("DataConfig"))


def _keys(names: str, mode: NormalizationMode = "min_max") -> tuple[KeyConfig, ...]:
    return tuple(KeyConfig(name, mode) for name in names.split())


_ARMS_AND_HANDS = "left_arm right_arm left_hand right_hand"
_GR1_ARMS = DataConfig(
    video=("ego_view",),
    state=_keys(_ARMS_AND_HANDS, "sin_cos"),
    action=_keys(_ARMS_AND_HANDS),
    language=_HUMAN_ACTION_TASK,
)
_SO100 = DataConfig(video=("webcam",), state=_keys("single_arm gripper"), action=_keys("single_arm gripper"))
_UNITREE_G1 = DataConfig(video=("rs_view",), state=_keys(_ARMS_AND_HANDS), action=_keys(_ARMS_AND_HANDS))
_BIMANUAL_PANDA_GRIPPER = DataConfig(
    video=("right_wrist_view", "left_wrist_view", "front_view"),
    state=(
        KeyConfig("right_arm_eef_pos"),
        KeyConfig("right_arm_eef_quat", "none", "rotation_6d"),
        KeyConfig("right_gripper_qpos"),
        KeyConfig("left_arm_eef_pos"),
        KeyConfig("left_arm_eef_quat", "none", "rotation_6d"),
        KeyConfig("left_gripper_qpos"),
    ),
    action=(
        *_keys("right_arm_eef_pos right_arm_eef_rot", "none"),
        KeyConfig("right_gripper_close", "binary"),
        *_keys("left_arm_eef_pos left_arm_eef_rot", "none"),
        KeyConfig("left_gripper_close", "binary"),
    ),
    language=_HUMAN_ACTION_TASK,
)
_BIMANUAL_PANDA_HAND = replace(
    _BIMANUAL_PANDA_GRIPPER,
    video=("right_wrist_view", "left_wrist_view", "ego_view"),
    state=(
        *_BIMANUAL_PANDA_GRIPPER.state[:2],
        KeyConfig("right_hand"),
        *_BIMANUAL_PANDA_GRIPPER.state[3:5],
        KeyConfig("left_hand"),
    ),
    action=(
        *_keys("right_arm_eef_pos right_arm_eef_rot", "none"),
        KeyConfig("right_hand"),
        *_keys("left_arm_eef_pos left_arm_eef_rot", "none"),
        KeyConfig("left_hand"),
    ),
)
_SINGLE_PANDA_GRIPPER = DataConfig(
    video=("left_view", "right_view", "wrist_view"),
    state=(
        KeyConfig("end_effector_position_relative"),
        KeyConfig("end_effector_rotation_relative", "min_max", "rotation_6d"),
        KeyConfig("gripper_qpos"),
        KeyConfig("base_position"),
        KeyConfig("base_rotation", "min_max", "rotation_6d"),
    ),
    action=(
        *_keys("end_effector_position end_effector_rotation"),
        KeyConfig("gripper_close", "binary"),
        KeyConfig("base_motion"),
        KeyConfig("control_mode", "binary"),
    ),
    language=_HUMAN_ACTION_TASK,
)
_OXE_DROID = DataConfig(
    video=("exterior_image_1", "exterior_image_2", "wrist_image"),
    state=(
        KeyConfig("eef_position"),
        KeyConfig("eef_rotation", "none", "rotation_6d"),
        KeyConfig("gripper_position"),
    ),
    action=(
        KeyConfig("eef_position_delta", "none"),
        KeyConfig("eef_rotation_delta", "none", "axis_angle"),
        KeyConfig("gripper_position", "binary"),
    ),
    language="annotation.language.language_instruction",
)
_AGIBOT_JOINTS = (
    "left_arm_joint_position right_arm_joint_position left_effector_position right_effector_position"
    " head_position waist_position"
)
_PUBLISHED = (
    (
        "fourier_gr1_arms_waist",
        "FourierGr1ArmsWaistDataConfig",
        replace(
            _GR1_ARMS,
            state=_keys(f"{_ARMS_AND_HANDS} waist", "sin_cos"),
            action=_keys(f"{_ARMS_AND_HANDS} waist"),
            language=_COARSE_ACTION,
        ),
    ),
    ("fourier_gr1_arms_only", "FourierGr1ArmsOnlyDataConfig", _GR1_ARMS),
    (
        "fourier_gr1_full_upper_body",
        "FourierGr1FullUpperBodyDataConfig",
        replace(
            _GR1_ARMS,
            video=("front_view",),
            state=_keys(f"{_ARMS_AND_HANDS} waist neck"),
            action=_keys(f"{_ARMS_AND_HANDS} waist neck"),
        ),
    ),
    ("bimanual_panda_gripper", "BimanualPandaGripperDataConfig", _BIMANUAL_PANDA_GRIPPER),
    ("bimanual_panda_hand", "BimanualPandaHandDataConfig", _BIMANUAL_PANDA_HAND),
    ("single_panda_gripper", "SinglePandaGripperDataConfig", _SINGLE_PANDA_GRIPPER),
    ("so100", "So100DataConfig", _SO100),
    ("so100_dualcam", "So100DualCamDataConfig", replace(_SO100, video=("front", "wrist"))),
    ("unitree_g1", "UnitreeG1DataConfig", _UNITREE_G1),
    (
        "unitree_g1_full_body",
        "UnitreeG1FullBodyDataConfig",
        replace(_UNITREE_G1, state=_keys(f"left_leg right_leg waist {_ARMS_AND_HANDS}")),
    ),
    ("oxe_droid", "OxeDroidDataConfig", _OXE_DROID),
    (
        "agibot_genie1",
        "AgibotGenie1DataConfig",
        DataConfig(
            video=("top_head", "hand_left", "hand_right"),
            state=_keys(_AGIBOT_JOINTS),
            action=_keys(f"{_AGIBOT_JOINTS} robot_velocity"),
            language="annotation.language.action_text",
        ),
    ),
    (
        "isaaclab_g1_dex3",
        "IsaacLabDataConfig",
        DataConfig(
            video=("left_wrist_view", "right_wrist_view", "room_view"),
            state=_keys(_ARMS_AND_HANDS, "sin_cos"),
            action=_keys(_ARMS_AND_HANDS),
        ),
    ),
)
BUILT_IN: Mapping[str, DataConfig] = {
    name: config for short, class_name, config in _PUBLISHED for name in (short, class_name)
}
"""The data configurations that NVIDIA published for GR00T N1.5, and Isaac Lab's for the G1 with Dex3 hands."""
