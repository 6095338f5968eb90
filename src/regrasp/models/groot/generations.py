"""Checkpoints that look like GR00T N1.5 and are not: other generations, and LeRobot's own layout."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from regrasp.errors import UserError

_NAMED = re.compile(r"gr00t[-_]?n1(?:[-_.d]?([67])|$)", re.IGNORECASE)
_BACKBONES = {"cosmos-reason2": "7", "eagle-block2a": "6"}
_PROCESSOR_FILE = "processor_config.json"


def check_generation(content: Mapping[str, Any], file: Path | None) -> None:
    """Refuse what is known not to be GR00T N1.5.

    Args:
        content: Of the folder's config.json.
        file: That file; those beside it are looked at too. None where `content` is the block `actor.model`.

    Raises:
        UserError: Naming the generation that it is.
    """
    if file is not None and content.get("type") == "groot" and "model_type" not in content:
        raise UserError(
            "A GR00T policy in LeRobot's layout, which lacks the sizes of the network",
            file=file,
            key="type",
            value="groot",
            fix="put config.json and experiment_cfg/metadata.json of its GR00T N1.5 base model in their place",
        )
    found = _by_name(content) or (None if file is None else _by_keys(content, file))
    if found is not None:
        raise UserError(
            f"GR00T {found.generation} is not supported",
            file=found.file or file,
            key=f"actor.model.{found.key}" if file is None else found.key,
            value=found.value,
            expected="a GR00T N1.5: model_type gr00t_n1_5, with action_head_cfg and backbone_cfg",
            fix="use a GR00T N1.5 checkpoint",
        )


class _Found(NamedTuple):
    """A generation, and what shows it."""

    generation: str
    key: str | None
    value: Any
    file: Path | None = None
    """Where that stands, where it is not config.json."""


def _by_name(content: Mapping[str, Any]) -> _Found | None:
    architectures = content.get("architectures")
    names = [("model_type", content.get("model_type"))]
    names += [("architectures", name) for name in (architectures if isinstance(architectures, list) else [])]
    for key, name in names:
        if match := _NAMED.match(str(name)):
            return _Found("N1" if match[1] is None else f"N1.{match[1]}", key, name)
    return None


def _by_keys(content: Mapping[str, Any], file: Path) -> _Found | None:
    """By what only later generations have: one flat config.json, a named backbone, files of their processor."""
    if "action_head_cfg" in content or "backbone_cfg" in content:
        return None
    backbone = content.get("model_name")
    for name, digit in _BACKBONES.items():
        if name in str(backbone).lower():
            return _Found(f"N1.{digit}", "model_name", backbone)
    processor_file, embodiments = (file.with_name(name) for name in (_PROCESSOR_FILE, "embodiment_id.json"))
    processor = _processor_class(processor_file)
    if (match := _NAMED.match(str(processor))) and match[1]:
        return _Found(f"N1.{match[1]}", "processor_class", processor, processor_file)
    if embodiments.is_file() and file.with_name("statistics.json").is_file():
        return _Found("N1.6 or later", None, embodiments.name, embodiments)
    return None


def _processor_class(file: Path) -> Any:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        # Only a hint is looked for; a broken file is reported by whoever needs it.
        return None
    return content.get("processor_class") if isinstance(content, dict) else None
