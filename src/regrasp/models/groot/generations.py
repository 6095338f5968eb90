"""Checkpoints that look like GR00T N1.5 and are not: other generations, and LeRobot's own layout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from regrasp.errors import UserError

_NAMED = re.compile(r"gr00t[-_]?n1(?:[-_.d]?([67])|$)", re.IGNORECASE)
_BACKBONES = {"cosmos-reason2": "7", "eagle-block2a": "6"}


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
    for generation, key, value, place in _signs(content, file):
        raise UserError(
            f"GR00T {generation} is not supported",
            file=place,
            key=f"actor.model.{key}" if file is None else key,
            value=value,
            expected="a GR00T N1.5: model_type gr00t_n1_5, with action_head_cfg and backbone_cfg",
            fix="use a GR00T N1.5 checkpoint",
        )


def _signs(content: Mapping[str, Any], file: Path | None) -> Iterator[tuple[str, str | None, Any, Path | None]]:
    """Other generations, with the key, value and file that show each: names, or what only later ones have."""
    architectures = content.get("architectures")
    names = [("model_type", content.get("model_type"))]
    names += [("architectures", name) for name in (architectures if isinstance(architectures, list) else [])]
    for key, name in names:
        if match := _NAMED.match(str(name)):
            yield "N1" if match[1] is None else f"N1.{match[1]}", key, name, file
    if file is None or "action_head_cfg" in content or "backbone_cfg" in content:
        return
    backbone = content.get("model_name")
    for name, digit in _BACKBONES.items():
        if name in str(backbone).lower():
            yield f"N1.{digit}", "model_name", backbone, file
    processor_file, embodiments = (file.with_name(name) for name in ("processor_config.json", "embodiment_id.json"))
    with suppress(OSError, ValueError):  # a broken file is reported by whoever needs it
        processor = from_json(processor_file.read_bytes())
        name = processor.get("processor_class") if isinstance(processor, dict) else None
        if (match := _NAMED.match(str(name))) and match[1]:
            yield f"N1.{match[1]}", "processor_class", name, processor_file
    if embodiments.is_file() and file.with_name("statistics.json").is_file():
        yield "N1.6 or later", None, embodiments.name, embodiments
