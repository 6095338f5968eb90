"""What is drawn on video frames: the instruction above, the state of the episode below."""

from __future__ import annotations

import logging
import re
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_log = logging.getLogger(__name__)

Frame = NDArray[np.uint8]
"""(H, W, 3) uint8, RGB."""

_STRIP = (12, 14, 18, 176)
_INK = (255, 255, 255, 255)
_SUCCESS = (34, 160, 84, 255)
_FAILURE = (206, 58, 54, 255)
_MAX_LINES = 3


def annotate(
    frame: Frame, *, instruction: str, step: int, reward: float, outcome: str | None = None, extra: str | None = None
) -> Frame:
    """Draw the instruction on a strip at the top, and step, reward and outcome on one at the bottom.

    Text size follows the frame's size; long instructions are wrapped, then cut with an ellipsis.

    Args:
        frame: (H, W, 3) uint8; not changed.
        instruction: What the robot was told.
        step: Environment step that led to this frame.
        reward: Reward of that step.
        outcome: `success` (green) or how else the episode ended (red); None while it goes on.
        extra: Further remarks, separated by two spaces, on lines of their own above the bottom line.

    Returns:
        (H, W, 3) uint8, a new array.
    """
    _check_frame(frame)
    image = Image.fromarray(frame).convert("RGBA")
    layer = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(layer)
    size = max(9, round(min(image.size) * 0.056))
    font = _font(size, _DEJAVU)
    told, file = _readable(instruction)
    wide = _font(size, file)
    _draw_lines(draw, _wrap(tuple(told.split()), " ", wide, image.width), wide, image.size, top=True)
    state = f"step {step}  reward {reward:.2f}"
    below = _wrap(tuple(extra.split("  ")), "  ", font, image.width) if extra else []
    _draw_lines(draw, [*below, state], font, image.size, top=False)
    if outcome is not None:
        _draw_outcome(draw, outcome, font, image.size)
    return np.asarray(Image.alpha_composite(image, layer).convert("RGB"))


def _check_frame(frame: Frame) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"a frame is (H, W, 3) uint8, found {frame.shape} {frame.dtype}")


_DEJAVU = str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
"""Matplotlib ships it: the same letters on every machine, Greek and Cyrillic included, no Chinese."""


@lru_cache(maxsize=16)
def _font(size: int, file: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


@cache
def _readable(text: str) -> tuple[str, str]:
    """What is drawn of a text, and the file of a font that has all of it."""
    needed = {character for character in text if not character.isspace()}
    file = next((file for file in (_DEJAVU, *sorted(findSystemFonts())) if needed <= _characters(file)), None)
    if file is not None:
        return text, file
    _warn_of_lacking_font()
    known = _characters(_DEJAVU)
    shown = "".join(character if character in known or character.isspace() else "\0" for character in text)
    if not shown.strip("\0 "):
        return "[text without a font]", _DEJAVU
    return re.sub("\0+", "[?]", shown), _DEJAVU


@cache
def _warn_of_lacking_font() -> None:
    _log.warning(
        "Videos show [?] where no installed font has the characters of an instruction. Install one that has them (for"
        " Chinese: fonts-noto-cjk). Results keep every instruction as it is."
    )


@cache
def _characters(file: str) -> frozenset[str]:
    """What a font has; nothing of a file that cannot be read."""
    try:
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


def _margin(font: ImageFont.FreeTypeFont) -> int:
    return max(2, round(font.size * 0.4))


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return sum(font.getmetrics())


@lru_cache(maxsize=64)
def _wrap(parts: tuple[str, ...], gap: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of parts, which are broken only between two of them, or where one alone is too long for a line."""
    room = width - 2 * _margin(font)
    lines = [""]
    for piece in (piece for part in parts for piece in _pieces(part, font, room)):
        longer = f"{lines[-1]}{gap}{piece}".strip()
        if not lines[-1] or font.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(piece)
    if len(lines) > _MAX_LINES:
        lines = [*lines[: _MAX_LINES - 1], gap.join(lines[_MAX_LINES - 1 :])]
    return [_cut(line, font, width) for line in lines]


def _pieces(text: str, font: ImageFont.FreeTypeFont, room: float) -> list[str]:
    """A text without gaps, such as a Chinese sentence, in pieces that fit into the room."""
    pieces = [""]
    for character in text:
        if pieces[-1] and font.getlength(pieces[-1] + character) > room:
            pieces.append("")
        pieces[-1] += character
    return pieces


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    room = width - 2 * _margin(font)
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}…") > room:
        text = text[:-1].rstrip()
    return f"{text}…"


def _draw_lines(
    draw: ImageDraw.ImageDraw, lines: list[str], font: ImageFont.FreeTypeFont, size: tuple[int, int], top: bool
) -> None:
    width, height = size
    margin, line_height = _margin(font), _line_height(font)
    strip_height = len(lines) * line_height + margin
    y = 0 if top else height - strip_height
    draw.rectangle((0, y, width, y + strip_height - 1), fill=_STRIP)
    for index, line in enumerate(lines):
        draw.text((margin, y + margin // 2 + index * line_height), line, font=font, fill=_INK)


def _draw_outcome(draw: ImageDraw.ImageDraw, outcome: str, font: ImageFont.FreeTypeFont, size: tuple[int, int]) -> None:
    width, height = size
    margin = _margin(font)
    box_width = font.getlength(outcome) + 2 * margin
    box = (width - box_width, height - _line_height(font) - margin, width, height)
    draw.rectangle(box, fill=_SUCCESS if outcome == "success" else _FAILURE)
    draw.text((box[0] + margin, box[1] + margin // 2), outcome, font=font, fill=_INK)
