"""What the structure promises: no branch on the name of a model, a simulator or an algorithm outside of its own folder.

The direction of imports is held by import-linter's contract in pyproject.toml.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import regrasp
from regrasp.algorithms.registry import known_algorithms
from regrasp.envs.registry import EnvTypes
from regrasp.models.registry import known_models

ROOT = Path(regrasp.__file__).parent
HOMES = ("models/groot/", "models/mlp/", "models/openvla/", "envs/mujoco/", "envs/isaaclab/", "envs/gymnasium/")
"""Folders of one model or one simulator; an algorithm's home is its file."""
NAMES = {*known_models(), *EnvTypes(), *known_algorithms()}
PLACES = {
    "models/registry.py": "the table of models",
    "cli/doctor.py": "says whether the embedded simulator can render",
    "stages/convert.py": "reads the recordings of Isaac Lab",
    "stages/pretrain.py": "renders scenes of the embedded simulator",
    "models/pretraining.py": "the table of tiny models",
    "models/inputs.py": "GR00T's names of the inputs, as every experiment may give them",
}
"""Modules that import what belongs to one model or simulator, and why."""


def modules_outside() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(ROOT.rglob("*.py")):
        place = file.relative_to(ROOT).as_posix()
        if not place.startswith(HOMES):
            yield place, ast.parse(file.read_text())


def compared(tree: ast.Module) -> Iterator[tuple[int, object]]:
    """Constants that something is compared with, or that a case matches, with their lines."""
    for node in ast.walk(tree):
        sides: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            sides = [node.value]
        for side in sides:
            for part in ast.walk(side):
                if isinstance(part, ast.Constant):
                    yield part.lineno, part.value


def test_there_are_names_to_look_for() -> None:
    assert {"gr00t", "mlp", "mujoco", "isaaclab", "gymnasium", "gae", "grpo"} <= NAMES


def test_a_branch_on_a_name_would_be_found() -> None:
    code = "if kind == 'gr00t' or kind in ('mlp',):\n    pass\nmatch kind:\n    case 'grpo':\n        pass\n"
    assert {value for _, value in compared(ast.parse(code))} & NAMES == {"gr00t", "mlp", "grpo"}


def test_no_branch_on_the_name_of_a_model_simulator_or_algorithm() -> None:
    found = [
        f"{place}:{line} {value}"
        for place, tree in modules_outside()
        for line, value in compared(tree)
        if value in NAMES
    ]
    assert found == []


def test_only_these_modules_import_from_a_models_or_a_simulators_folder() -> None:
    homes = tuple(f"regrasp.{home.replace('/', '.')}".rstrip(".") for home in HOMES)
    importing = {
        place
        for place, tree in modules_outside()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(homes)
    }
    assert importing <= PLACES.keys()


@pytest.mark.parametrize("folder", ["src", "tests"])
def test_files_stay_under_500_lines(folder: str) -> None:
    root = ROOT.parents[1] / folder
    long = {file.name: count for file in root.rglob("*.py") if (count := len(file.read_text().splitlines())) > 500}
    assert long == {}
