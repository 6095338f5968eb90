"""The command that installs an optional package is that of pyproject.toml."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

import pytest

from regrasp import extras

ROOT = Path(__file__).resolve().parents[1]


def test_every_extra_for_users_is_known() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras.EXTRAS.keys() == declared.keys() - {"dev"}
    assert all(declared[extra][0].startswith(package) for extra, (package, _) in extras.EXTRAS.items())


def test_the_command_names_the_versions_that_the_installation_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["torch>=2", 'peft<1,>=0.18; extra == "lora"', "mink>=1; extra == 'trocar'", 'x; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: declared)
    assert extras.install_command("lora") == 'pip install "peft<1,>=0.18"'
    assert extras.install_command("trocar") == 'pip install "mink>=1"'
    assert extras.install_command("wandb") == 'pip install "wandb"'
