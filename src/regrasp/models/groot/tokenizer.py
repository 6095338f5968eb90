"""Instructions as token ids: a small tokenizer trained offline, and sequences of one fixed length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from regrasp.errors import UserError
from regrasp.models.weights import read_json

PAD_TOKEN = "<pad>"
IMAGE_TOKEN = "<image>"


def train_tokenizer(sentences: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, which reads any text; `<pad>` is token 0 and `<image>` token 1.

    Raises:
        UserError: `vocab_size` has no room for the 256 bytes and the two special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 2:
        raise UserError("A vocabulary too small for bytes", value=vocab_size, expected=f"at least {len(alphabet) + 2}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD_TOKEN, IMAGE_TOKEN],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD_TOKEN, padding_side="left")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer saved in a model folder.

    Raises:
        UserError: `tokenizer.json` or `tokenizer_config.json` is missing or damaged.
    """
    for name in ("tokenizer.json", "tokenizer_config.json"):
        read_json(folder / name)
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


class TextEncoder:
    """Instruction to the token ids of the whole sequence, words and image placeholders, padded on the left.

    Every sequence has the same length, because the action head attends to padding too: another length would be
    another policy.

    Args:
        tokenizer: Turns words into ids.
        text_length: Positions for words.
        num_image_tokens: Placeholders, over all views.
        image_token: Id of the placeholder.
        pad_token: Id of the padding.
        text_first: Words before the placeholders, or after them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        text_length: int,
        num_image_tokens: int,
        image_token: int,
        pad_token: int,
        text_first: bool,
    ) -> None:
        self.tokenizer = tokenizer
        self.text_length = text_length
        self.sequence_length = text_length + num_image_tokens
        self._images = [image_token] * num_image_tokens
        self._pad_token = pad_token
        self._text_first = text_first
        self._rows: dict[str, Tensor] = {}

    def encode(self, instructions: Sequence[str]) -> Tensor:
        """Ids (B, L) int64 of B instructions, L = text_length + num_image_tokens.

        Raises:
            UserError: An instruction has more tokens than `text_length`.
        """
        for instruction in set(instructions) - self._rows.keys():
            self._rows[instruction] = self._encode_one(instruction)
        return torch.stack([self._rows[instruction] for instruction in instructions])

    def _encode_one(self, instruction: str) -> Tensor:
        words = self.tokenizer.encode(instruction, add_special_tokens=False, split_special_tokens=True)
        if len(words) > self.text_length:
            raise UserError(
                f"An instruction of {len(words)} tokens, with room for {self.text_length}",
                key="task_description",
                value=instruction,
                expected=f"at most {self.text_length} tokens",
                mend="shorten the instruction, or use a model with a larger text_length",
            )
        content = words + self._images if self._text_first else self._images + words
        return torch.tensor([self._pad_token] * (self.sequence_length - len(content)) + content)
