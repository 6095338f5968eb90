"""No file of the package loads pickled objects."""

import ast
from pathlib import Path

import pytest

import regrasp

SOURCES = sorted(Path(regrasp.__file__).parent.rglob("*.py"))
PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
SAFE = {"torch": ("weights_only", True), "numpy": ("allow_pickle", False)}


def violations(source: str) -> list[str]:
    """Unsafe imports and loads of one file, as `line: what`."""
    tree = ast.parse(source)
    aliases = {"torch": "torch", "numpy": "numpy"}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                found += [f"{node.lineno}: import {name.name}"] if name.name.split(".")[0] in PICKLERS else []
                aliases |= {name.asname: name.name} if name.asname and name.name in SAFE else {}
        elif isinstance(node, ast.ImportFrom) and node.module:
            root = node.module.split(".")[0]
            loads = node.module in SAFE and any(name.name == "load" for name in node.names)
            found += [f"{node.lineno}: from {node.module} import"] if root in PICKLERS or loads else []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
            owner = node.func.value
            module = aliases.get(owner.id) if isinstance(owner, ast.Name) else None
            if module and not passes(node, *SAFE[module]):
                found.append(f"{node.lineno}: {module}.load without {SAFE[module][0]}={SAFE[module][1]}")
    return found


def passes(call: ast.Call, name: str, value: bool) -> bool:
    return any(
        option.arg == name and isinstance(option.value, ast.Constant) and option.value.value is value
        for option in call.keywords
    )


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.name)
def test_package_loads_no_pickle(file: Path) -> None:
    assert violations(file.read_text()) == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import torch\ntorch.load('a')", 1),
        ("import torch as t\nt.load('a', weights_only=False)", 1),
        ("import torch\ntorch.load('a', weights_only=flag)", 1),
        ("import torch\ntorch.load('a', weights_only=True)", 0),
        ("import numpy as np\nnp.load('a')", 1),
        ("import numpy as np\nnp.load('a', allow_pickle=True)", 1),
        ("import numpy as np\nnp.load('a', allow_pickle=False)", 0),
        ("from torch import load", 1),
        ("import pickle", 1),
        ("from pickle import loads", 1),
        ("import json\njson.load(f)", 0),
    ],
)
def test_the_check_itself(source: str, count: int) -> None:
    assert len(violations(source)) == count
