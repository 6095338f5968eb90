"""The docs site: its navigation is complete, links and anchors lead somewhere, and modules of the API are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import docs_pages
from docs_pages import API, PAGES, ROOT, linked_files

SOURCES = [*(ROOT / "docs").glob("*.md"), *(ROOT / source for source in PAGES.values())]


def links(file: Path) -> Iterator[tuple[Path, str]]:
    """The file and the anchor of each link of a page to another file or to itself."""
    text = re.sub(r"^```.*?^```", "", file.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        yield (file.parent / path).resolve() if path else file, anchor


def anchors(file: Path) -> set[str]:
    """The anchors that a page's headings have, as GitHub and Python-Markdown both make them."""
    text = re.sub(r"^```.*?^```", "", file.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = [re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.+)$", text, re.M)]
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.name)
def test_links_lead_somewhere(file: Path) -> None:
    for target, anchor in links(file):
        assert target.exists(), target
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{target.name}#{anchor}"


def test_the_navigation_has_every_page() -> None:
    entries = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    found = {page for entry in entries for value in entry.values() for page in _pages(value)}
    assert found == {file.name for file in (ROOT / "docs").glob("*.md")} | PAGES.keys()


def _pages(value: str | list[dict[str, str]]) -> list[str]:
    return [value] if isinstance(value, str) else [page for entry in value for page in entry.values()]


@pytest.mark.parametrize("name", API)
def test_modules_of_the_api_say_what_they_are(name: str) -> None:
    assert docs_pages.has_docstring(name)


def test_links_out_of_docs_are_led_to_copies() -> None:
    assert "benchmarks/results/scaling_2.json" in set(linked_files())
    moved = docs_pages._moved("../README.md", ROOT / "docs" / "algorithms.md", "algorithms.md")
    assert moved == "index.md"
    assert docs_pages._moved("docs/models.md", ROOT / "README.md", "index.md") == "models.md"
    assert docs_pages._moved("../LICENSE", ROOT / "docs" / "a.md", "a.md") == "files/LICENSE"
