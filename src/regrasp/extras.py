"""Other packages: what they add to Regrasp, which extra asks for one, and how to install it."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import sys
import traceback
from pathlib import Path
from typing import Any

from regrasp.errors import UserError

EXTRAS = {
    "wandb": ("wandb", "metrics on Weights & Biases"),
    "swanlab": ("swanlab", "metrics on SwanLab"),
    "lora": ("peft", "low-rank adapters on the language model"),
    "trocar": ("mink", "the scripted expert of the trocar task"),
    "ray": ("ray", "runs of several processes"),
    "gymnasium": ("gymnasium", "environments of Gymnasium"),
    "isaaclab": ("h5py", "reading Isaac Lab's recordings (regrasp convert)"),
}
"""The package that an extra adds, and what it is for."""


def requirements(extra: str) -> list[str]:
    """What an extra of this installation requires, such as `wandb>=0.20`; nothing of sources that are not installed."""
    try:
        declared = importlib.metadata.requires("regrasp") or ()
    except importlib.metadata.PackageNotFoundError:
        return []
    markers = (f'extra == "{extra}"', f"extra == '{extra}'")
    parts = (text.partition(";") for text in declared)
    return [name.strip() for name, _, marker in parts if marker.strip() in markers]


def install_command(extra: str) -> str:
    """The command that installs what an extra adds, wherever Regrasp itself was installed from."""
    return "pip install " + " ".join(f'"{requirement}"' for requirement in requirements(extra) or [EXTRAS[extra][0]])


def entry_points(*, group: str) -> importlib.metadata.EntryPoints:
    """What installed packages add to a group; the files of all packages are read once for every `sys.path`."""
    return _entry_points(group, tuple(sys.path))


@functools.cache
def _entry_points(group: str, _path: tuple[str, ...]) -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group=group)


def load_named(place: str, *, key: str, expected: str) -> Any:
    """What `module:name` names, also in the working folder.

    Args:
        place: The module, as Python imports it, and a name in it.
        key: Where it is given, for errors.
        expected: What it should be, for errors.

    Raises:
        UserError: The module is not there or fails when it is imported, or it has no such name.
    """
    module_name, _, name = place.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))

    def error(problem: str, fix: str) -> UserError:
        return UserError(problem, key=key, value=place, expected=expected, fix=fix)

    try:
        module = importlib.import_module(module_name)
    except Exception as failure:
        missing = failure.name if isinstance(failure, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            fix = "correct the name, install its package, or call from its folder"
            raise error(f"There is no module '{missing}'", fix) from None
        text = f"{module_name} cannot be imported: {type(failure).__name__}: {failure}{_line_of(failure)}"
        raise error(text, f"`{Path(sys.executable).name} -c 'import {module_name}'` shows where") from failure
    if not hasattr(module, name):
        found = [other for other, value in vars(module).items() if callable(value) and not other.startswith("_")]
        near = difflib.get_close_matches(name, found, 1)
        fix = f"did you mean {module_name}:{near[0]}?" if near else f"it has {', '.join(found) or 'none'}"
        raise error(f"{module_name} has no '{name}'", fix)
    return getattr(module, name)


def _line_of(failure: Exception) -> str:
    """Where the innermost file of an error's traceback is, in brackets; syntax errors say it themselves."""
    frames = traceback.extract_tb(failure.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename]
    if isinstance(failure, SyntaxError) or not own:
        return ""
    return f" ({own[-1].filename}, line {own[-1].lineno})"
