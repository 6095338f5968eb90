"""Packages that others wrote: the code of the documentation's tutorials, installed where Python finds it."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
MOST_LINES = 110
"""Of a tutorial's module."""


def code_blocks(page: str, mark: str, kind: str) -> list[str]:
    """The code blocks of a kind, in order, after `<!-- mark -->` in a page of the documentation."""
    text = (DOCS / page).read_text(encoding="utf-8").partition(f"<!-- {mark} -->")[2]
    assert text, f"{page} has no <!-- {mark} -->"
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def install(site: Path, modules: dict[str, str], project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install modules and their `pyproject.toml`, as `pip install --editable .` would, for the length of a test.

    Args:
        site: The folder that Python is to look in.
        modules: Their texts, by name.
        project: Text of the pyproject.toml.
        monkeypatch: Undoes it.
    """
    settings = tomllib.loads(project)
    name, version = settings["project"]["name"], settings["project"]["version"]
    assert sorted(settings["tool"]["setuptools"]["py-modules"]) == sorted(modules)
    information = site / f"{name.replace('-', '_')}-{version}.dist-info"
    information.mkdir(parents=True)
    for module, text in modules.items():
        assert len(text.splitlines()) < MOST_LINES, module
        (site / f"{module}.py").write_text(text, encoding="utf-8")
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines: list[str] = []
    for group, entries in settings["project"]["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {place}" for key, place in entries.items())]
    (information / "entry_points.txt").write_text("\n".join(lines))
    make_importable(site, modules, monkeypatch)


def make_importable(site: Path, modules: Iterable[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Python look in a folder, and forget these modules of it afterwards."""
    monkeypatch.syspath_prepend(str(site))
    for module in modules:
        monkeypatch.setitem(sys.modules, module, sys)
        del sys.modules[module]
