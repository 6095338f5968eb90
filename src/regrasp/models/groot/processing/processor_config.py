"""How a GR00T checkpoint's inputs are prepared, where its metadata does not say: `processor_config.json`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from regrasp.config.parse import parse
from regrasp.config.types import BLOCK, NetworkSize, NonNegativeInt
from regrasp.envs.data_config import DataConfig
from regrasp.envs.quaternions import QuaternionOrder
from regrasp.errors import UserError
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.processing.data_config import (
    EAGLE_WORDS,
    EXAMPLE,
    PROCESSOR_FILE,
    data_config,
    default_data_config,
)
from regrasp.models.groot.processing.metadata import Metadata
from regrasp.models.groot.processing.prompt import PromptFormat
from regrasp.models.inputs import InputNames, embodiment_id
from regrasp.models.weights import read_json


@dataclass(frozen=True, config=BLOCK)
class ProcessorConfig:
    """What the published metadata.json cannot say."""

    embodiment_tag: str
    embodiment_id: NonNegativeInt
    """Slot of the head's per-embodiment projectors."""
    data_config: DataConfig
    prompt: PromptFormat
    sequence_length: NetworkSize
    """Tokens of the whole sequence, words and images, padded on the left."""
    quaternions: QuaternionOrder | None = None
    """In which order the state that it was trained on has them; None where it is not known."""

    def to_json(self) -> dict[str, Any]:
        """`processor_config.json`."""
        return TypeAdapter(ProcessorConfig).dump_python(self, mode="json", exclude_none=True)


def read_config(folder: Path) -> ProcessorConfig | None:
    """`processor_config.json` of a folder; None for a published folder, which has none.

    Raises:
        UserError: A key is missing or unknown, or a value is of the wrong kind.
    """
    file = folder / PROCESSOR_FILE
    return parse(ProcessorConfig, read_json(file), file=file) if file.is_file() else None


def published_config(groot: GrootConfig, metadata: Metadata, inputs: InputNames) -> ProcessorConfig:
    """How a published checkpoint was trained, as far as folder and experiment say.

    Raises:
        UserError: The embodiment has no known slot or no known data configuration.
    """
    tag = metadata.tag
    data = given_data_config(inputs) or default_data_config(tag)
    if data is None:
        raise UserError(
            f"With which keys and normalisation the embodiment {tag!r} was trained is not in the checkpoint",
            file=metadata.file,
            key="mapping.data_config",
            value=None,
            expected="a data configuration",
            fix="set mapping.data_config_class to a published one, such as so100, or write for example\n" + EXAMPLE,
        )
    return ProcessorConfig(
        embodiment_tag=tag,
        embodiment_id=embodiment_id(tag, inputs.embodiment_tag_id, key="mapping.embodiment_tag_id"),
        data_config=data,
        prompt="eagle",
        sequence_length=EAGLE_WORDS + len(data.video) * groot.eagle_cfg.vision_config.num_tokens,
    )


def given_data_config(inputs: InputNames) -> DataConfig | None:
    """The experiment's data configuration, None where it leaves that to the model folder.

    Raises:
        UserError: There is no such data configuration.
    """
    if inputs.data_config is None:
        return None
    return data_config(inputs.data_config, file=None, key="mapping.data_config")


def check_same(trained: DataConfig, inputs: InputNames, file: Path) -> None:
    """Check that a data configuration in the experiment, if there is one, is the one the model was trained with.

    Raises:
        UserError: It is not.
    """
    given = given_data_config(inputs)
    if given is not None and given != trained:
        found, expected = asdict(given), asdict(trained)
        other = [name for name in found if found[name] != expected[name]]
        raise UserError(
            "Another data configuration than the model was trained with",
            key="mapping.data_config",
            file=file,
            value={name: found[name] for name in other},
            expected=str({name: expected[name] for name in other}),
            fix="if the model is of this task, leave data_config and data_config_class out, the model folder has its"
            " own; a model of another task needs that task's experiment (--config_name)",
        )
