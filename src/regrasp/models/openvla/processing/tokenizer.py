"""Where OpenVLA's tokenizer comes from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from regrasp.errors import UserError
from regrasp.models.openvla.processing.prompt import prompt_of
from regrasp.models.weights import read_json

TOKENIZER_FILE = "tokenizer.json"
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
"""Ids 0, 1 and 2, as in Llama's vocabulary."""


def load_tokenizer(folder: Path, tokenizer_path: Path | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a model's folder, else that of `tokenizer_path`; no code of the folder is run.

    Raises:
        UserError: There is none, or its files are damaged.
    """
    found = next((place for place in (folder, tokenizer_path) if place and (place / TOKENIZER_FILE).is_file()), None)
    if found is None:
        raise UserError(
            "A model folder without a tokenizer",
            file=folder / TOKENIZER_FILE,
            expected=f"{TOKENIZER_FILE}, as OpenVLA is published with it",
            fix="copy it there, or give actor.model.tokenizer_path",
        )
    read_json(found / TOKENIZER_FILE)
    try:
        return PreTrainedTokenizerFast.from_pretrained(found, local_files_only=True)
    except Exception as error:  # tokenizers raises nothing narrower
        raise UserError(
            f"Tokenizer files that do not fit together: {error}", file=found, fix="download them again"
        ) from error


def train_tokenizer(sentences: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, which reads any text, on the prompts of instructions; for a small model.

    Raises:
        UserError: `vocab_size` has no room for the 256 bytes and the special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise UserError("A vocabulary too small for bytes", value=vocab_size, expected=f"at least {least}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(prompt_of, sentences), trainer)
    unknown, beginning, end = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unknown, bos_token=beginning, eos_token=end, padding_side="right"
    )
