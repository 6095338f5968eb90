"""How an experiment calls a policy's inputs. Imports nothing heavy: the configuration schema uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrasp.config.types import NEW_EMBODIMENT
from regrasp.errors import UserError

EMBODIMENT_IDS = {NEW_EMBODIMENT: 31, "gr1": 24, "oxe_droid": 17, "agibot_genie1": 26}
"""Slots of the published GR00T N1.5 by embodiment tag."""


@dataclass(frozen=True)
class InputNames:
    """The embodiment, and what a model sees of it.

    None always leaves the question to the model folder.
    """

    embodiment_tag: str | None = None
    embodiment_tag_id: int | None = None
    """Slot of the per-embodiment projectors; None: the model folder's own, else the published slot of the tag."""
    data_config: str | Mapping[str, Any] | None = None
    """Keys and their normalisation, as `data_config` of the GR00T models reads them."""
    tokenizer_path: Path | None = None
    """Where the tokenizer is, if the model folder has none."""


def embodiment_id(tag: str, given: int | None, *, key: str, trained: tuple[str, int] | None = None) -> int:
    """The slot given, else the one that a model was trained in for this tag, else the published one.

    Args:
        tag: The embodiment.
        given: What the experiment says.
        key: The setting that says it, for errors.
        trained: Embodiment and slot of a model that knows its own.

    Raises:
        UserError: No slot is known.
    """
    if given is not None:
        return given
    if trained is not None and trained[0] == tag:
        return trained[1]
    if tag not in EMBODIMENT_IDS:
        published = ", ".join(f"{name} {slot}" for name, slot in EMBODIMENT_IDS.items())
        raise UserError(
            f"No slot of the projectors is known for the embodiment {tag!r}",
            key=key,
            value=None,
            expected=f"an integer; the published slots are {published}",
            mend="set embodiment_tag_id to the slot that the checkpoint was trained with",
        )
    return EMBODIMENT_IDS[tag]
