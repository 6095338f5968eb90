"""Which class configures and loads which model."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from regrasp.config.owned import ByType
from regrasp.errors import UserError
from regrasp.models.config import CONFIG_FILE, ModelConfig
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.models.inputs import InputNames
from regrasp.models.mlp.settings import MlpModelConfig

if TYPE_CHECKING:
    from regrasp.models.contract import Policy

ENTRY_POINT_GROUP = "regrasp.models"
_models: list[type[ModelConfig]] = [GrootModelConfig, MlpModelConfig]


def register_model(model: type[ModelConfig]) -> None:
    """Make a model known: to experiments by its names as `model_type`, and to folders by that of their config.json.

    Raises:
        ValueError: A name is taken.
    """
    for name in model.names():
        if name in known_models():
            raise ValueError(f"model type {name!r} is already registered")
    _models.append(model)


def known_models() -> dict[str, type[ModelConfig]]:
    """Every name of a model with its class: built in, registered, or an installed package's entry point."""
    installed: list[type[ModelConfig]] = [entry.load() for entry in entry_points(group=ENTRY_POINT_GROUP)]
    return {name: model for model in (*installed, *_models) for name in model.names()}


def model_of(content: Mapping[str, Any], file: Path | None = None) -> type[ModelConfig]:
    """The model that a folder's config.json names.

    Args:
        content: Of config.json, or of the block `actor.model`.
        file: The config.json; None for the block.

    Raises:
        UserError: The model is of an unknown or unsupported kind.
    """
    name, models = content.get("model_type"), known_models()
    if isinstance(name, str) and name in models:
        return models[name]
    for model in dict.fromkeys(models.values()):
        model.refuse(content, file)
    raise UserError(
        "A model folder that does not say what it holds" if name is None else "A model of an unknown kind",
        file=file,
        key="model_type" if file else "actor.model.model_type",
        value=name,
        expected=", ".join(models),
        fix="give a complete model folder"
        if name is None
        else f"correct it, or install the package that provides it, as an entry point of the group {ENTRY_POINT_GROUP}",
    )


AnyModelConfig = Annotated[ModelConfig, ByType("model_type", known_models, model_of)]
"""The type of `actor.model`."""


def load_policy(path: str | Path, inputs: InputNames | None = None) -> Policy:
    """Load a policy from a model folder, by the `model_type` of its config.json, for inference.

    Args:
        path: The model folder.
        inputs: How the experiment calls the model's inputs; None: as the folder does.

    Raises:
        UserError: The folder is missing or damaged, or its model is of an unknown or unsupported kind.
    """
    folder = Path(path).expanduser()
    return model_in(folder).open(folder, inputs)


def check_folder(model: ModelConfig, path: str | Path) -> Path:
    """Check that a folder holds the model that an experiment asks for, and return it.

    Raises:
        UserError: The folder is missing or damaged, or holds another model.
    """
    folder = Path(path).expanduser()
    found = model_in(folder)
    if not isinstance(model, found):
        raise UserError(
            "The model folder holds another model than the experiment asks for",
            key="actor.model.model_type",
            value=model.model_type,
            expected=f"{found.names()[0]}, which {folder / CONFIG_FILE} is of",
            fix="correct actor.model.model_type, or give another --model_path",
        )
    return folder


def model_in(folder: Path, key: str | None = None) -> type[ModelConfig]:
    """The model of a folder, which `key` names.

    Raises:
        UserError: The folder is missing, or its model is of an unknown or unsupported kind, or it belongs to a
            checkpoint whose manifest it does not fit.
    """
    if not folder.is_dir():
        advice = "give a folder with config.json and weights"
        raise UserError("No such model folder", file=folder, key=key, fix=advice)
    from regrasp.checkpoint.verify import require_sound_model
    from regrasp.models.weights import read_json

    require_sound_model(folder)
    return model_of(read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)
