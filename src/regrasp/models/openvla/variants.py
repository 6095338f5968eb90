"""Folders that look like an OpenVLA and cannot be one here. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regrasp.errors import UserError

_FIX = "use OpenVLA 7B, or a fine-tune of it in Hugging Face layout"
_EXTRA_FILES = {
    "proprio_projector--": "takes the robot's state as a further input (proprio)",
    "noisy_action_projector--": "denoises its actions (diffusion head)",
    "vision_backbone--": "conditions its vision towers on the words (FiLM)",
}


def check_variant(content: Mapping[str, Any], file: Path | None) -> None:
    """Refuse a model of the OpenVLA family that is no OpenVLA.

    Args:
        content: Of the folder's config.json.
        file: That file; None where `content` is the block `actor.model`.

    Raises:
        UserError: Naming what it is.
    """
    if file is None:
        return
    architectures = content.get("architectures")
    named = architectures if isinstance(architectures, list) else []
    if content.get("model_type") == "prismatic" or "PrismaticForConditionalGeneration" in named:
        raise UserError(
            "A Prismatic vision-language model, from which OpenVLA is trained: it has no actions",
            file=file,
            key="model_type",
            value=content.get("model_type"),
            fix=_FIX,
        )
    if (file.parent / "checkpoints").is_dir() and "vla" in content and "model_type" not in content:
        raise UserError(
            "An OpenVLA in the layout of its training program",
            file=file,
            fix="convert it with OpenVLA's vla-scripts/extern/convert_openvla_weights_to_hf.py",
        )


def check_inputs_of(folder: Path) -> None:
    """Refuse a fine-tune that needs more than images and words.

    Raises:
        UserError: Naming the file that says so.
    """
    for beginning, meaning in _EXTRA_FILES.items():
        if found := sorted(folder.glob(f"{beginning}*")):
            raise UserError(
                f"This fine-tune {meaning}, which is not supported",
                file=found[0],
                fix="use a fine-tune that looks at images and words only; for RL, one with discrete action tokens",
            )
