"""Other packages: what they add to Regrasp, which extra asks for one, and how to install it."""

from __future__ import annotations

import functools
import importlib.metadata
import sys

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
