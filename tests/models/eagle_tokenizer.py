"""A small byte-level BPE with the published tokenizer's special tokens, written as files in each published layout."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>", "<img>", "</img>")
SENTENCES = (
    "install the trocar from the box",
    "pick up the red cube",
    "You are a helpful assistant.",
    "user system image",
)
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% set seen = namespace(images=0) %}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{% set seen.images = seen.images + 1 %}"
    "<image-{{ seen.images }}>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_symbols() -> list[str]:
    """The character that stands for each byte: printable Latin-1 itself, the others from U+0100 on, in order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def vocabulary_of_bytes() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Every byte is the token of its own number; no merges, so ids can be written down by hand."""
    return {symbol: byte for byte, symbol in enumerate(byte_symbols())}, []


def trained_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Merges learned from a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=byte_symbols(), show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def special_ids(vocabulary: dict[str, int]) -> dict[str, int]:
    """The special tokens follow the vocabulary."""
    return {token: len(vocabulary) + index for index, token in enumerate(SPECIAL)}


def write_eagle_tokenizer(
    folder: Path, layout: str = "vocab", *, trained: bool = False, template: str | None = None
) -> dict[str, int]:
    """Write tokenizer files and return the ids of the special tokens.

    Args:
        folder: Made if it does not exist.
        layout: `vocab` (vocab.json, merges.txt, added tokens in tokenizer_config.json, as published), `added` (the same
            with the ids in added_tokens.json only) or `json` (tokenizer.json).
        trained: With merges.
        template: Written as chat_template.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = trained_vocabulary() if trained else vocabulary_of_bytes()
    special = special_ids(vocabulary)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "auto_map": {"AutoProcessor": "processing_eagle2_5_vl.Eagle2_5_VLProcessor"},
        "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "additional_special_tokens": [token for token in SPECIAL if token not in ("<|endoftext|>", "<|im_end|>")],
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    }
    if layout == "json":
        content = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": index, "content": token, **flags} for token, index in special.items()],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
                ],
            },
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": vocabulary,
                "merges": merges,
            },
        }
        (folder / "tokenizer.json").write_text(json.dumps(content))
    else:
        (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / "added_tokens.json").write_text(json.dumps(special))
        if layout == "vocab":
            config["added_tokens_decoder"] = {
                str(index): {"content": token, **flags} for token, index in special.items()
            }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    return special
