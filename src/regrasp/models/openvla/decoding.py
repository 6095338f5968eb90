"""How a folder's OpenVLA decides: what its published config.json does not say. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from regrasp.config.parse import parse
from regrasp.config.types import BLOCK, Name, NetworkSize, PositiveInt

DECODING_FILE = "decoding.json"
"""Beside config.json in what Regrasp writes; a published folder has none."""
PROMPT_LENGTH = 48
Method = Literal["autoregressive", "parallel"]
Head = Literal["tokens", "gaussian"]


@dataclass(frozen=True, config=BLOCK)
class Decoding:
    """What an experiment decides for a published folder, and what a folder of ours knows by itself."""

    method: Method = "autoregressive"
    """Token by token, or (OFT) all tokens of a chunk at once, each seeing the others' places."""
    head: Head = "tokens"
    """What gives the actions: the language model's action tokens, or OFT's regression head with a learned deviation."""
    num_action_chunks: PositiveInt = 1
    """Actions of a decision."""
    max_prompt_length: NetworkSize = PROMPT_LENGTH
    """Tokens to which prompts are padded."""
    center_crop: bool = False
    """Look at the middle 90 % of the image's area: for a model that was trained on random crops of that size."""
    stop_token: bool = True
    """With `parallel`, the end of the text stands after the actions, as openvla-oft has it; RLinf leaves it out."""
    unnorm_key: Name | None = None
    """Whose statistics the actions have; None: the only ones."""
    cameras: tuple[Name, ...] = ()
    """Names of the cameras, in the model's order; empty: one, whatever it is called."""


def read_decoding(folder: Path) -> Decoding | None:
    """What a folder says; None for a published one.

    Raises:
        UserError: The file is damaged.
    """
    file = folder / DECODING_FILE
    if not file.is_file():
        return None
    from regrasp.models.weights import read_json

    return parse(Decoding, read_json(file), file=file, fix="restore the file")
