"""Instructions as token ids: where tokenizers come from, and sequences of one fixed length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from huggingface_hub import constants, try_to_load_from_cache
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from regrasp.errors import UserError
from regrasp.models.groot.processing.prompt import EAGLE_TOKENS, IMAGE_CONTEXT, PromptFormat, eagle_prompt, plain_prompt
from regrasp.models.weights import read_json

PAD_TOKEN = "<pad>"
IMAGE_TOKEN = "<image>"
EAGLE_ASSETS = "lerobot/eagle2hg-processor-groot-n1p5"
"""Hub repository of the published tokenizer, which the published model folder lacks."""

_SUBFOLDERS = ("", "eagle2hg-processor-groot-n1p5", "eagle2_hg_model", "tokenizer", "processor")
_FILES = "tokenizer_config.json, and tokenizer.json or vocab.json with merges.txt"


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


def load_tokenizer(folder: Path, tokenizer_path: Path | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a model: its folder's own, else `tokenizer_path`, else the published one from a local cache.

    A folder holds `tokenizer_config.json` with either `tokenizer.json`, or `vocab.json` and `merges.txt` (the published
    assets). Its processor's chat template, if any, becomes the tokenizer's. Nothing is downloaded and no code of the
    folder is run.

    Args:
        folder: The model folder.
        tokenizer_path: Another folder with tokenizer files, `actor.model.tokenizer_path`.

    Raises:
        UserError: No tokenizer is found, or one of its files is damaged.
    """
    found = _tokenizer_folder(folder)
    if found is None and tokenizer_path is not None:
        found = _tokenizer_folder(tokenizer_path)
        if found is None:
            raise UserError(
                "No tokenizer in this folder",
                key="actor.model.tokenizer_path",
                value=str(tokenizer_path),
                expected=_FILES,
            )
    found = found or _cached_assets()
    if found is None:
        raise UserError(
            "A model folder without a tokenizer, and none in the local Hugging Face cache",
            file=folder / "tokenizer.json",
            expected=_FILES,
            fix=f"hf download {EAGLE_ASSETS}, or give actor.model.tokenizer_path",
        )
    return _read_tokenizer(found)


def _tokenizer_folder(root: Path) -> Path | None:
    for folder in (root / name for name in _SUBFOLDERS):
        vocabularies = (("tokenizer.json",), ("vocab.json", "merges.txt"))
        complete = any(all((folder / name).is_file() for name in names) for names in vocabularies)
        if complete and (folder / "tokenizer_config.json").is_file():
            return folder
    return None


def _cached_assets() -> Path | None:
    """Where `hf download` or LeRobot has put the published tokenizer."""
    config = try_to_load_from_cache(EAGLE_ASSETS, "tokenizer_config.json", cache_dir=constants.HF_HUB_CACHE)
    hub = _tokenizer_folder(Path(config).parent) if isinstance(config, str) else None
    return hub or _tokenizer_folder(Path(constants.HF_HOME, "lerobot", EAGLE_ASSETS))


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "added_tokens.json"):
        if (folder / name).exists():
            read_json(folder / name)
    kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").exists() else Qwen2Tokenizer
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises nothing narrower
        raise UserError(
            f"Tokenizer files that do not fit together: {error}", file=folder, fix="download them again"
        ) from error
    template = folder / "chat_template.json"
    if template.exists() and not (folder / "chat_template.jinja").exists():
        tokenizer.chat_template = read_json(template).get("chat_template")
    return tokenizer


class TextEncoder:
    """Instruction to the token ids of the whole sequence, words and image placeholders, padded on the left.

    Every sequence has the same length, because the action head attends to padding too: another length would be
    another policy. An instruction is only ever words: special tokens written in it are spelled out.

    Args:
        tokenizer: Turns words into ids.
        prompt: How words and placeholders are arranged, see `regrasp.models.groot.processing.prompt`.
        sequence_length: Length of the whole sequence, L.
        num_views: Cameras.
        tokens_per_view: Placeholders of each.
        image_token: Id of the placeholder.
        pad_token: Id of the padding.

    Raises:
        UserError: The tokenizer is not the network's, or the sequence has no room for words.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        prompt: PromptFormat,
        sequence_length: int,
        num_views: int,
        tokens_per_view: int,
        image_token: int,
        pad_token: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.sequence_length = sequence_length
        self._image_token = image_token
        self._pad_token = pad_token
        self._rows: dict[str, Tensor] = {}
        num_images = num_views * tokens_per_view
        if prompt in ("eagle", "eagle_quoted"):
            _check_eagle_ids(tokenizer, image_token, pad_token)
            self._around = eagle_prompt(tokenizer, num_views, tokens_per_view)
        else:
            self._around = plain_prompt(image_token, num_images, text_first=prompt == "plain_text_first")
        self._room = sequence_length - len(self._around.before) - len(self._around.after)
        self._check_prompt(num_images)

    def encode(self, instructions: Sequence[str]) -> Tensor:
        """Ids (B, L) int64 of B instructions, L = sequence_length.

        Raises:
            UserError: An instruction has more tokens than there is room for.
        """
        for instruction in set(instructions) - self._rows.keys():
            self._rows[instruction] = self._encode_one(instruction)
        return torch.stack([self._rows[instruction] for instruction in instructions])

    def _encode_one(self, instruction: str) -> Tensor:
        words = self._tokenize(str([instruction]) if self.prompt == "eagle_quoted" else instruction)
        if len(words) > self._room:
            raise self._too_long(instruction, len(words))
        if self._image_token in words or self._pad_token in words:
            raise UserError("An instruction with the model's own tokens", key="task_description", value=instruction)
        content = [*self._around.before, *words, *self._around.after]
        return torch.tensor([self._pad_token] * (self.sequence_length - len(content)) + content)

    def _too_long(self, instruction: str, num_tokens: int) -> UserError:
        around = self.sequence_length - self._room
        fix = (
            f"shorten the instruction, or set actor.model.rl_head_config.padding_value={around + num_tokens}, of which"
            f" images and prompt take {around}"
        )
        if self.prompt.startswith("plain"):
            fix += f"; `regrasp pretrain` makes room by pretrain.architecture.text_length={num_tokens}"
        return UserError(
            f"An instruction of {num_tokens} tokens, with room for {self._room}",
            key="env.<train|eval>.mapping.task_description",
            value=instruction,
            expected=f"at most {self._room} tokens",
            fix=fix,
        )

    def _tokenize(self, words: str) -> list[int]:
        text = self._around.lead + words + self._around.tail
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def _check_prompt(self, num_images: int) -> None:
        whole = [*self._around.before, *self._tokenize(""), *self._around.after]
        if whole.count(self._image_token) != num_images or self._pad_token in whole:
            raise UserError(
                "A chat template that does not show every camera once, or holds padding",
                key="chat_template",
                value=f"{whole.count(self._image_token)} image tokens",
                expected=f"{num_images} image tokens",
            )
        if len(whole) >= self.sequence_length:
            raise UserError(
                "The padded sequence has no room for words",
                key="actor.model.rl_head_config.padding_value",
                value=self.sequence_length,
                expected=f"more than {len(whole)}, the tokens of all images and of the prompt around the instruction",
                fix="raise padding_value, or leave it out to pad as the model folder says",
            )


def _check_eagle_ids(tokenizer: PreTrainedTokenizerFast, image_token: int, pad_token: int) -> None:
    vocabulary = tokenizer.get_vocab()
    expected = {IMAGE_CONTEXT: image_token, "padding": pad_token}
    found = {IMAGE_CONTEXT: vocabulary.get(IMAGE_CONTEXT), "padding": tokenizer.pad_token_id}
    unknown = [token for token in EAGLE_TOKENS if token not in vocabulary]
    if unknown or found != expected:
        raise UserError(
            "A tokenizer without the tokens of the published prompt, or with other ids than the network's",
            key="actor.model.tokenizer_path",
            value=found | dict.fromkeys(unknown),
            expected=f"{expected}, image_token_index and pad_token_index of the model's eagle_cfg",
            fix=f"give the tokenizer the checkpoint was trained with: the published one is {EAGLE_ASSETS}",
        )
