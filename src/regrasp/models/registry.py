"""Which class configures and loads which model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from regrasp.checkpoint.layout import MANIFEST, step_of
from regrasp.config.owned import ByType
from regrasp.errors import UserError
from regrasp.extras import entry_points
from regrasp.hub import fetch
from regrasp.models.config import CONFIG_FILE, ModelConfig
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.models.inputs import InputNames
from regrasp.models.mlp.settings import MlpModelConfig
from regrasp.models.openvla.settings import OpenVlaModelConfig, OpenVlaOftModelConfig

if TYPE_CHECKING:
    from regrasp.models.contract import Policy

ENTRY_POINT_GROUP = "regrasp.models"
_models: list[type[ModelConfig]] = [GrootModelConfig, MlpModelConfig, OpenVlaModelConfig, OpenVlaOftModelConfig]


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
        path: The model folder, or `org/name[@revision]` of the Hugging Face hub, which is downloaded unless the local
            cache has it.
        inputs: How the experiment calls the model's inputs; None: as the folder does.

    Raises:
        UserError: The folder is missing or damaged, its model is of an unknown or unsupported kind, or the hub does not
            give it.
    """
    folder = fetch(str(path), "model", key="path") or Path(path).expanduser()
    return model_in(folder).open(folder, inputs)


def check_folder(
    model: ModelConfig,
    path: str | Path,
    advise: Callable[[type[ModelConfig]], str] | None = None,
    key: str | None = None,
) -> Path:
    """Check that a folder holds the model that an experiment asks for, and return it.

    Args:
        model: What the experiment asks for.
        path: The folder.
        advise: What to do about a folder that holds the model that it is given; None: a word for all.
        key: What names the folder, for errors.

    Raises:
        UserError: The folder is missing or damaged, or holds another model.
    """
    folder = Path(path).expanduser()
    found = model_in(folder, key)
    if not isinstance(model, found):
        raise UserError(
            "The model folder holds another model than the experiment asks for",
            key="actor.model.model_type",
            value=model.model_type,
            expected=f"{found.names()[0]}, which {folder / CONFIG_FILE} is of",
            fix=advise(found) if advise else "correct actor.model.model_type, or give another --model_path",
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
    if not (folder / CONFIG_FILE).exists():
        raise _no_model_folder(folder, key)
    return model_of(read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)


def _no_model_folder(folder: Path, key: str | None) -> UserError:
    """What to say of a folder without config.json; one that has a model folder inside is often meant."""
    inside, fix = _model_inside(folder), f"give a complete model folder, or restore its {CONFIG_FILE}"
    problem, expected = f"This is no model folder: it has no {CONFIG_FILE}", f"a folder with {CONFIG_FILE} and weights"
    if inside is not None:
        fix = f"give the folder inside it: {inside}"
    elif (folder / "adapter_config.json").is_file():
        problem = f"This folder holds adapters of a model, and no model: it has no {CONFIG_FILE}"
        fix = "give the base model, and this folder as actor.model.lora_path (openvla, openvla_oft), or merge them"
    elif (folder / MANIFEST).is_file():
        fix = "this checkpoint was saved without its folder model/: give the base model, and this as --rl_model_path"
    if key is None:
        return UserError(problem, file=folder, expected=expected, fix=fix)
    return UserError(problem, key=key, value=str(folder), expected=expected, fix=fix)


def _model_inside(folder: Path) -> Path | None:
    """The model folder in a folder of a checkpoint, of checkpoints, of a run or of stages; of the newest checkpoint."""
    for pattern in ("*", "global_step_*/*", "*/global_step_*/*", "*/*/global_step_*/*"):
        folders = (file.parent for file in folder.glob(f"{pattern}/{CONFIG_FILE}"))
        if found := [path for path in folders if any(path.glob("*.safetensors"))]:
            return max(found, key=lambda path: (step_of(path.parent) or 0, path))
    return None
