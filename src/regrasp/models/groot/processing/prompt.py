"""What surrounds an instruction in the sequence of tokens: image placeholders and, as published, chat turns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from regrasp.errors import UserError

PromptFormat = Literal["plain_text_first", "plain_images_first", "eagle", "eagle_quoted"]
"""`plain_*`: words and placeholders, nothing else. `eagle`: the published chat prompt, as Isaac-GR00T trains and RLinf
rolls out. `eagle_quoted`: the same with the instruction as a Python list, "['...']", as LeRobot trains."""

IMAGE_START, IMAGE_CONTEXT, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
EAGLE_TOKENS = (TURN_START, TURN_END, IMAGE_START, IMAGE_CONTEXT, IMAGE_END)
# A private-use character: it stands for the instruction while the prompt around it is built.
_INSTRUCTION = "\ue000"
_MEND_TEMPLATE = "remove the chat template of the tokenizer's folder, and the published one is used"


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after the instruction, and ordinary text that touches it and is tokenized with it."""

    before: tuple[int, ...]
    lead: str
    tail: str
    after: tuple[int, ...]


def plain_prompt(image_token: int, num_images: int, *, text_first: bool) -> Prompt:
    """Placeholders after the words, or before them."""
    images = (image_token,) * num_images
    return Prompt((), "", "", images) if text_first else Prompt(images, "", "", ())


def eagle_prompt(tokenizer: PreTrainedTokenizerFast, num_views: int, tokens_per_view: int) -> Prompt:
    """The published prompt: one user turn of all images, then the instruction, and the start of the answer.

    The tokenizer's own chat template is used if it places images as `<image-N>`; else Eagle 2.5's, whose system turn is
    "You are a helpful assistant." Each `<image-N>` becomes `<image N><img>`, placeholders and `</img>`, as in
    Isaac-GR00T's gr00t/model/backbone/eagle2_hg_model/processing_eagle2_5_vl.py.

    Raises:
        UserError: The tokenizer's chat template is broken, or does not show the instruction once.
    """
    text = _render(tokenizer, num_views)
    tokens = IMAGE_START + IMAGE_CONTEXT * tokens_per_view + IMAGE_END
    text = re.sub(r"<image-(\d+)>", lambda match: f"<image {match[1]}>{tokens}", text)
    before, *after = text.split(_INSTRUCTION)
    if len(after) != 1:
        raise UserError(
            "A chat template that does not show the instruction once", key="chat_template", fix=_MEND_TEMPLATE
        )
    start, end = _inner_boundaries(tokenizer, before, after[0])
    return Prompt(
        before=tuple(tokenizer.encode(before[:start], add_special_tokens=False)),
        lead=before[start:],
        tail=after[0][:end],
        after=tuple(tokenizer.encode(after[0][end:], add_special_tokens=False)),
    )


def _render(tokenizer: PreTrainedTokenizerFast, num_views: int) -> str:
    template = tokenizer.chat_template
    if not isinstance(template, str) or "<image-" not in template:
        images = "".join(f"<image-{view}>" for view in range(1, num_views + 1))
        return (
            f"{TURN_START}system\nYou are a helpful assistant.{TURN_END}\n"
            f"{TURN_START}user\n{images}{_INSTRUCTION}{TURN_END}\n{TURN_START}assistant\n"
        )
    content = [*[{"type": "image"}] * num_views, {"type": "text", "text": _INSTRUCTION}]
    turns = [{"role": "user", "content": content}]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise UserError(
            f"A chat template that cannot be rendered: {error}", key="chat_template", fix=_MEND_TEMPLATE
        ) from None


def _inner_boundaries(tokenizer: PreTrainedTokenizerFast, before: str, after: str) -> tuple[int, int]:
    """End of the last special token of `before`, and start of the first one of `after`: no token spans them."""
    special = sorted((t.content for t in tokenizer.added_tokens_decoder.values() if t.special), key=len, reverse=True)
    pattern = re.compile("|".join(re.escape(token) for token in special))
    start = max((match.end() for match in pattern.finditer(before)), default=0)
    first = pattern.search(after)
    return start, first.start() if first else len(after)
