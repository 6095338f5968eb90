"""Camera images that are stored in a dataset's tables, one encoded file per frame."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

_FORMATS = ("PNG", "JPEG")


def decode_image(entry: Any, size: tuple[int, int]) -> np.ndarray:
    """The image (H, W, 3) uint8 of a table's entry `{bytes, path}`.

    Args:
        entry: As pyarrow gives it.
        size: Expected (height, width).

    Raises:
        ValueError: It is no 8-bit RGB image of this size, or is not in the table.
    """
    content = entry.get("bytes") if isinstance(entry, dict) else entry
    if not isinstance(content, bytes):
        raise ValueError("no image is stored in the table")
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.mode != "RGB" or (image.height, image.width) != size:
                raise ValueError(f"an image of {image.height} x {image.width}, mode {image.mode}, not {size} RGB")
            return np.asarray(image)
    except UnidentifiedImageError as error:
        raise ValueError("it is neither PNG nor JPEG") from error
    except (OSError, SyntaxError) as error:
        raise ValueError(f"it cannot be decoded ({error})") from error
