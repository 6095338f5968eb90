"""Which class loads which model folder."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from regrasp.errors import UserError
from regrasp.models.contract import Policy
from regrasp.models.settings import RlHeadSettings
from regrasp.models.weights import read_json

ModelLoader = Callable[[Path, RlHeadSettings | None], Policy]
"""`(folder, settings) -> policy`; settings None is the folder as it is, for inference."""

ENTRY_POINT_GROUP = "regrasp.models"
_BUILT_IN = {
    "gr00t_n1_5": "regrasp.models.groot.checkpoint:load_groot",
    "regrasp_mlp": "regrasp.models.mlp.policy:load_mlp",
}
_LATER_GROOT = re.compile(r"gr00t[-_]?n1[-_.d]?([67])", re.IGNORECASE)

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


def load_policy(path: str | Path, settings: RlHeadSettings | None = None) -> Policy:
    """Load a policy from a model folder, by the `model_type` of its config.json.

    Raises:
        UserError: The folder is missing or damaged, or its model is of an unknown or unsupported kind.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError("No such model folder", file=folder, mend="give a folder with config.json and weights")
    file = folder / "config.json"
    name = read_json(file).get("model_type")
    loader = _find(name) if isinstance(name, str) else None
    if loader is None:
        raise _unknown(name, file)
    return loader(folder, settings)


def _find(name: str) -> ModelLoader | None:
    if name in _BUILT_IN:
        module, function = _BUILT_IN[name].split(":")
        return getattr(importlib.import_module(module), function)
    if name in _registered:
        return _registered[name]
    return next((entry.load() for entry in entry_points(group=ENTRY_POINT_GROUP, name=name)), None)


def _unknown(name: object, file: Path) -> UserError:
    known = ", ".join(known_models())
    later = _LATER_GROOT.search(str(name))
    if later:
        return UserError(
            f"GR00T N1.{later[1]} is not supported",
            file=file,
            key="model_type",
            value=name,
            expected=known,
            mend="use a GR00T N1.5 checkpoint",
        )
    return UserError(
        "A model of an unknown kind",
        file=file,
        key="model_type",
        value=name,
        expected=known,
        mend=f"install the package that provides it, as an entry point of the group {ENTRY_POINT_GROUP}",
    )
