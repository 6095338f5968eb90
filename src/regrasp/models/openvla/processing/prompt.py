"""Instruction to the token ids of OpenVLA's prompt, padded on the right to one length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from regrasp.errors import UserError

EMPTY_TOKEN = "\u2581"
"""Llama's token 29871, a single space: every prompt in training ended with it, and `predict_action` appends it."""
BEGINNING, END = 1, 2
"""Llama's ids of the beginning and of the end of a text."""


def prompt_of(instruction: str) -> str:
    """The published prompt of an instruction."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


class PromptEncoder:
    """Instructions to ids: the beginning of a text, the prompt, and the empty token where there is one.

    Args:
        tokenizer: Llama's, or that of a small model.
        length: L, of the padded prompt.
        pad_token: Id of the padding.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, length: int, pad_token: int) -> None:
        self.tokenizer = tokenizer
        self.length = length
        self._pad_token = pad_token
        self._empty_token = tokenizer.get_vocab().get(EMPTY_TOKEN)
        self._rows: dict[str, Tensor] = {}

    def ids(self, instruction: str) -> list[int]:
        """Ids of a prompt, without padding; special tokens written in an instruction are spelled out."""
        text = prompt_of(instruction)
        words = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        ids = [BEGINNING, *map(int, words)]
        if self._empty_token is not None and ids[-1] != self._empty_token:
            ids.append(self._empty_token)
        return ids

    def encode(self, instructions: Sequence[str]) -> Tensor:
        """Ids (B, L) int64 of B instructions.

        Raises:
            UserError: A prompt has more tokens than there is room for.
        """
        for instruction in set(instructions) - self._rows.keys():
            ids = self.ids(instruction)
            if len(ids) > self.length:
                raise UserError(
                    f"An instruction whose prompt has {len(ids)} tokens, with room for {self.length}",
                    key="env.<train|eval>.mapping.task_description",
                    value=instruction,
                    expected=f"at most {self.length} tokens",
                    fix=f"shorten it, or set actor.model.max_prompt_length={len(ids)}",
                )
            self._rows[instruction] = torch.tensor(ids + [self._pad_token] * (self.length - len(ids)))
        return torch.stack([self._rows[instruction] for instruction in instructions])
