"""Which class loads which model folder."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from regrasp.errors import UserError
from regrasp.models.contract import Policy
from regrasp.models.groot.generations import check_generation
from regrasp.models.inputs import InputNames
from regrasp.models.settings import RlHeadSettings
from regrasp.models.weights import read_json

ModelLoader = Callable[[Path, RlHeadSettings | None, InputNames | None], Policy]
"""`(folder, settings, inputs) -> policy`; settings None is the folder as it is, for inference, and inputs None leaves
embodiment, cameras and state as the folder has them."""

ENTRY_POINT_GROUP = "regrasp.models"
_BUILT_IN = {
    "gr00t_n1_5": "regrasp.models.groot.checkpoint:load_groot",
    "regrasp_mlp": "regrasp.models.mlp.policy:load_mlp",
}
_PREVIEWS = {"gr00t_n1_5": "regrasp.models.groot.checkpoint:preview_groot"}
"""What stands in for a loader where the weights themselves are not needed."""

_registered: dict[str, ModelLoader] = {}


def register_model(name: str, loader: ModelLoader) -> None:
    """Load folders whose config.json has this `model_type` with `loader`.

    Raises:
        ValueError: The name is taken.
    """
    if name in _BUILT_IN or name in _registered:
        raise ValueError(f"model type {name!r} is already registered")
    _registered[name] = loader


def known_models() -> tuple[str, ...]:
    """Every `model_type` that can be loaded: built in, registered, or an installed package's entry point."""
    installed = (entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))
    return tuple(sorted({*_BUILT_IN, *_registered, *installed}))


def load_policy(path: str | Path, settings: RlHeadSettings | None = None, inputs: InputNames | None = None) -> Policy:
    """Load a policy from a model folder, by the `model_type` of its config.json.

    Args:
        path: The model folder.
        settings: What RL adds; None: the folder as it is, for inference.
        inputs: How the experiment calls the model's inputs; None: as the folder does.

    Raises:
        UserError: The folder is missing or damaged, or its model is of an unknown or unsupported kind.
    """
    folder = Path(path).expanduser()
    return _loader_of(folder)[1](folder, settings, inputs)


def preview_policy(path: str | Path, settings: RlHeadSettings, inputs: InputNames) -> Policy | None:
    """Check a model folder, and give the policy that `load_policy` would, without the time and memory of its weights.

    Returns:
        The policy, on the meta device where its model type can do that; None for a model type that is not built in,
        of which only its loader knows.

    Raises:
        UserError: As `load_policy`.
    """
    folder = Path(path).expanduser()
    name, loader = _loader_of(folder)
    if name in _PREVIEWS:
        return _imported(_PREVIEWS[name])(folder, settings, inputs)
    return loader(folder, settings, inputs) if name in _BUILT_IN else None


def _loader_of(folder: Path) -> tuple[str, ModelLoader]:
    """The folder's model type and what loads it.

    Raises:
        UserError: The folder is missing, or its model is of an unknown or unsupported kind.
    """
    if not folder.is_dir():
        raise UserError("No such model folder", file=folder, mend="give a folder with config.json and weights")
    file = folder / "config.json"
    content = read_json(file)
    name = content.get("model_type")
    loader = _find(name) if isinstance(name, str) else None
    if not isinstance(name, str) or loader is None:
        check_generation(content, file)
        raise _unknown(name, file)
    return name, loader


def _find(name: str) -> ModelLoader | None:
    if name in _BUILT_IN:
        return _imported(_BUILT_IN[name])
    if name in _registered:
        return _registered[name]
    return next((entry.load() for entry in entry_points(group=ENTRY_POINT_GROUP, name=name)), None)


def _imported(place: str) -> ModelLoader:
    module, function = place.split(":")
    return getattr(importlib.import_module(module), function)


def _unknown(name: object, file: Path) -> UserError:
    if name is None:
        return UserError(
            "A model folder that does not say what it holds",
            file=file,
            key="model_type",
            value=None,
            expected=", ".join(known_models()),
            mend="give a complete model folder",
        )
    return UserError(
        "A model of an unknown kind",
        file=file,
        key="model_type",
        value=name,
        expected=", ".join(known_models()),
        mend=f"install the package that provides it, as an entry point of the group {ENTRY_POINT_GROUP}",
    )
