"""Optional packages: which extra asks for them, and how to install them."""

from __future__ import annotations

import importlib.metadata

PACKAGES = {"wandb": "wandb", "swanlab": "swanlab", "lora": "peft", "trocar": "mink", "isaaclab": "h5py"}
"""What an extra adds."""


def requirements(extra: str) -> list[str]:
    """What an extra of this installation requires, such as `wandb>=0.20`."""
    declared = (text.partition(";") for text in importlib.metadata.requires("regrasp") or ())
    markers = (f'extra == "{extra}"', f"extra == '{extra}'")
    return [name.strip() for name, _, marker in declared if marker.strip() in markers]


def install_command(extra: str) -> str:
    """The command that installs what an extra adds, wherever Regrasp itself was installed from."""
    return "pip install " + " ".join(f'"{requirement}"' for requirement in requirements(extra) or [PACKAGES[extra]])
