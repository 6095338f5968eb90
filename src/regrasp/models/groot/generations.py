"""Checkpoints that look like GR00T N1.5 and are not: other generations, and LeRobot's own layout."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regrasp.errors import UserError

_NAMED = re.compile(r"gr00t[-_]?n1(?:[-_.d]?([67])|$)", re.IGNORECASE)
_BACKBONES = {"cosmos-reason2": "7", "eagle-block2a": "6"}
_PROCESSOR_FILE = "processor_config.json"


def check_generation(content: Mapping[str, Any], file: Path) -> None:
    """Refuse what is known not to be GR00T N1.5.

    Args:
        content: Of the folder's config.json.
        file: That file; those beside it are looked at too.

    Raises:
        UserError: Naming the generation that it is.
    """
    if content.get("type") == "groot" and "model_type" not in content:
        raise UserError(
            "A GR00T policy in LeRobot's layout, which lacks the sizes of the network",
            file=file,
            key="type",
            value="groot",
            mend="put config.json and experiment_cfg/metadata.json of its GR00T N1.5 base model in their place",
        )
    generation = _by_name(content) or _by_keys(content, file.parent)
    if generation is not None:
        raise UserError(
            f"GR00T {generation} is not supported",
            file=file,
            key="model_type",
            value=content.get("model_type"),
            expected="gr00t_n1_5",
            mend="use a GR00T N1.5 checkpoint",
        )


def _by_name(content: Mapping[str, Any]) -> str | None:
    architectures = content.get("architectures")
    names = [content.get("model_type"), *(architectures if isinstance(architectures, list) else [])]
    found = next((match for name in names if (match := _NAMED.match(str(name)))), None)
    return found and ("N1" if found[1] is None else f"N1.{found[1]}")


def _by_keys(content: Mapping[str, Any], folder: Path) -> str | None:
    """By what only later generations have: one flat config.json, a named backbone, files of their processor."""
    if "action_head_cfg" in content or "backbone_cfg" in content:
        return None
    backbone = str(content.get("model_name")).lower()
    processor = _NAMED.match(str(_processor_class(folder / _PROCESSOR_FILE)))
    digits = [digit for name, digit in _BACKBONES.items() if name in backbone]
    if processor and processor[1]:
        digits.append(processor[1])
    if digits:
        return f"N1.{digits[0]}"
    is_later = (folder / "embodiment_id.json").is_file() and (folder / "statistics.json").is_file()
    return "N1.6 or later" if is_later else None


def _processor_class(file: Path) -> Any:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        # Only a hint is looked for; a broken file is reported by whoever needs it.
        return None
    return content.get("processor_class") if isinstance(content, dict) else None
