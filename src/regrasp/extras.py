"""Optional packages: which extra asks for them, and how to install them."""

from __future__ import annotations

import importlib.metadata

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
