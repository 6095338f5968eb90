"""The configuration reference in the repository is the one that the schema generates."""

from __future__ import annotations

from pathlib import Path

from generate_config_reference import reference_markdown

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == reference_markdown(), "run scripts/generate_config_reference.py"
