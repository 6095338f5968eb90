"""HTML pages from the templates beside this file, each one file that loads nothing from elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from regrasp.folders import atomic_file, writing
from regrasp.logging.text import duration


def render(template: str, **values: Any) -> str:
    """Fill a template in; texts are escaped. A page without `nonce` has no script."""
    return _templates().get_template(template).render({"nonce": None, **values})


def write_page(page: str, path: Path) -> None:
    """Write a page, as a whole.

    Raises:
        UserError: The disk is full or refuses.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as draft:
        draft.write_text(page, encoding="utf-8")


@functools.cache
def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {"percent": percent, "duration": duration}
    templates.filters.update(filters)
    return templates


def percent(rate: float) -> str:
    """`98.7 %` of 0.987."""
    return f"{100 * rate:.1f} %"
