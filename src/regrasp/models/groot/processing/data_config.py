"""The published data configurations of GR00T, `data_configs.yaml`: what a model sees, in which order and scaling.

Imports nothing heavy: the configuration is checked with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml

from regrasp.config.parse import parse
from regrasp.config.types import NormalizationMode
from regrasp.envs.data_config import DataConfig
from regrasp.errors import UserError

_PUBLISHED_FILE = Path(__file__).with_name("data_configs.yaml")
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


@cache
def published() -> Mapping[str, DataConfig]:
    """NVIDIA's for GR00T N1.5, and Isaac Lab's for the G1 with Dex3 hands, by short name and by class name."""
    found: dict[str, DataConfig] = {}
    for name, block in yaml.safe_load(_PUBLISHED_FILE.read_text(encoding="utf-8")).items():
        class_name = block.pop("class")
        found[name] = found[class_name] = parse(DataConfig, block, file=_PUBLISHED_FILE, key=name)
    return found


def data_config(value: str | DataConfig | Mapping[str, Any], *, file: Any, key: str) -> DataConfig:
    """Read a data configuration: a published name, `module:Class` of a published class, or one written out.

    Args:
        value: The name or the block.
        file: Where it stands, for errors.
        key: Its key there.

    Raises:
        UserError: The name is unknown, or the mapping is not a data configuration.
    """
    if isinstance(value, DataConfig):
        return value
    if isinstance(value, Mapping):
        return parse(DataConfig, value, file=file, key=key)
    name = value.rpartition(":")[2]
    if name not in published():
        raise _unknown(value, file, key)
    return published()[name]


def default_data_config(tag: str) -> DataConfig | None:
    """The published data configuration of a pretrained embodiment, None for another embodiment."""
    name = {"gr1": "fourier_gr1_arms_waist", "oxe_droid": "oxe_droid", "agibot_genie1": "agibot_genie1"}.get(tag)
    return None if name is None else published()[name]


def _unknown(value: str, file: Any, key: str) -> UserError:
    """A class of the user's, or a name that is no published one's."""
    is_class = ":" in value
    code = "A data configuration class is code, which is not run; only the published ones are built in"
    close = [] if is_class else get_close_matches(value, list(published()), n=1)
    describe = (
        f"in its place, write into the mapping the keys and modes. Modes are {', '.join(get_args(NormalizationMode))};"
        f" a target rotation is added as rotation: rotation_6d. For example\n{EXAMPLE}"
    )
    short_names = (name for name in published() if not name.endswith("DataConfig"))
    return UserError(
        code if is_class else "No such data configuration",
        file=file,
        key=key,
        value=value,
        expected=f"a class or a short name of {', '.join(short_names)}",
        fix=f"write {close[0]}" if close else describe,
    )
