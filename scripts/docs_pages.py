"""Pages of the docs site that have no file in docs/: those of the repository's own, and the API from the docstrings.

A hook of MkDocs, see mkdocs.yml.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "benchmarks.md": "benchmarks/README.md",
}
"""Where on the site a file of the repository is."""
API = (
    *(
        "regrasp",
        "regrasp.models.contract",
        "regrasp.models.config",
        "regrasp.models.registry",
        "regrasp.models.inputs",
    ),
    *("regrasp.envs.contract", "regrasp.envs.env_type", "regrasp.envs.registry", "regrasp.envs.mapping_config"),
    *("regrasp.algorithms.base", "regrasp.algorithms.registry", "regrasp.algorithms.advantages"),
    *("regrasp.algorithms.losses", "regrasp.algorithms.flow", "regrasp.data.lerobot", "regrasp.experiment.load"),
    *("regrasp.rollout.episodes", "regrasp.rollout.evaluation", "regrasp.learner.learner", "regrasp.engine.base"),
    *("regrasp.checkpoint.read", "regrasp.checkpoint.write", "regrasp.hub", "regrasp.logging.metrics"),
    *(f"regrasp.stages.{name}" for name in ("collect", "convert", "sft", "train", "play", "export", "push", "compare")),
    *("regrasp.seeding", "regrasp.errors"),
)
"""Modules that others build on."""
_LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def on_config(config: Any) -> Any:
    """Add the API pages to the navigation."""
    assert config.nav is not None
    config.nav.append({"API": [{name: f"api/{name}.md"} for name in API]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages, and the files outside docs/ that pages link to."""
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

    for place, source in PAGES.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text(encoding="utf-8")))
    for name in API:
        files.append(File.generated(config, f"api/{name}.md", content=f"---\ntitle: {name}\n---\n\n::: {name}\n"))
    known = {*PAGES.values()}
    for name in sorted({*linked_files()}):
        if name not in known and not name.startswith("docs/"):
            files.append(File.generated(config, f"files/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Lead links between files of the repository to where these are on the site."""
    place = page.file.src_uri
    source = ROOT / PAGES[place] if place in PAGES else ROOT / "docs" / place
    fences = [match.span() for match in _FENCE.finditer(markdown)]

    def moved(match: re.Match[str]) -> str:
        if any(start <= match.start() < stop for start, stop in fences):
            return match[0]
        return _moved(match["path"], source, place) + (match["anchor"] or "")

    return _LINK.sub(moved, markdown)


def _moved(link: str, source: Path, place: str) -> str:
    """A link of a page as the site has it; to a file that the site does not have, the file's own copy."""
    target = Path(os.path.normpath(source.parent / link))
    if not target.exists():
        return link  # strict mode names it
    inside = target.relative_to(ROOT).as_posix()
    known = {path: page for page, path in PAGES.items()}
    wanted = known.get(inside) or (inside.removeprefix("docs/") if inside.startswith("docs/") else f"files/{inside}")
    return os.path.relpath(wanted, Path(place).parent)


def linked_files() -> Iterator[str]:
    """Files outside docs/ that pages link to, relative to the repository."""
    for page in [*(ROOT / "docs").glob("*.md"), *(ROOT / source for source in PAGES.values())]:
        for match in _LINK.finditer(_FENCE.sub("", page.read_text(encoding="utf-8"))):
            target = Path(os.path.normpath(page.parent / match["path"]))
            if target.is_file() and target.is_relative_to(ROOT):
                yield target.relative_to(ROOT).as_posix()


def has_docstring(name: str) -> bool:
    """Whether a module of `API` is there and says what it is."""
    path = ROOT / "src" / Path(*name.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file.is_file() and ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) is not None
