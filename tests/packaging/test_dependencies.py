"""What the code imports is declared, and what is declared is pinned."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
SIMULATORS = {"isaaclab"}
"""What only the Python of a simulator has."""
GPU = {"triton"}
"""What torch itself requires in its builds for GPUs; the code asks whether it is there."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#"))
    return {canonical(name): version for name, version in (line.split("==") for line in lines)}


def requirements(*extras: str) -> list[Requirement]:
    """The package's own and those of its extras, some of which name other extras of the package."""
    return [Requirement(line) for line in PROJECT["dependencies"]] + [r for extra in extras for r in of_extra(extra)]


def of_extra(name: str) -> list[Requirement]:
    found = [Requirement(line) for line in PROJECT["optional-dependencies"][name]]
    others = [r for requirement in found if requirement.name == "regrasp" for r in map(of_extra, requirement.extras)]
    return [requirement for requirement in found if requirement.name != "regrasp"] + [r for rs in others for r in rs]


def imported_modules() -> set[str]:
    modules: set[str] = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules.add(node.module.split(".")[0])
    return modules - set(sys.stdlib_module_names) - {"regrasp", "_typeshed"} - SIMULATORS - GPU


def test_every_import_is_declared():
    declared = {canonical(requirement.name) for requirement in requirements(*PROJECT["optional-dependencies"])}
    providers = importlib.metadata.packages_distributions()
    undeclared = {
        module
        for module in imported_modules()
        if not declared & {canonical(name) for name in providers.get(module, [])}
    }
    assert not undeclared


@pytest.mark.parametrize("requirement", sorted(requirements("dev"), key=str), ids=str)
def test_every_requirement_is_pinned_within_its_range(requirement: Requirement):
    assert requirement.specifier.contains(pins()[canonical(requirement.name)])


def test_pins_leave_the_build_of_torch_open():
    versions = pins()
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in versions.values()), "a local version is a build"
    assert not any(name.startswith(("nvidia-", "cuda-", "triton")) for name in versions)
    assert not {"torchvision", "regrasp", "pip"} & versions.keys()


def test_pins_are_sorted_and_unique():
    names = [line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    assert names == sorted(set(names))
    assert names == [canonical(name) for name in names]
