"""Block `pretrain`: a backbone that a model starts from, where none is published. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from regrasp.config.owned import ByType
from regrasp.config.types import BLOCK, Name, PositiveFloat, PositiveInt, Seed
from regrasp.errors import TrainingHaltedError, UserError
from regrasp.models.architecture import TinyArchitecture
from regrasp.models.groot.architecture import ArchitectureConfig
from regrasp.models.openvla.architecture import OpenVlaArchitectureConfig

if TYPE_CHECKING:
    from regrasp.models.grounding import Lessons


GROUNDING_FILE = "grounding.json"
"""What a backbone reached, in its folder."""
_ARCHITECTURES: dict[str, type[TinyArchitecture]] = {"gr00t": ArchitectureConfig, "openvla": OpenVlaArchitectureConfig}


def _architecture_of(values: Mapping[str, Any]) -> type[TinyArchitecture]:
    """The block of a tiny model.

    Raises:
        UserError: There is none of this name.
    """
    name = values.get("model")
    if name in _ARCHITECTURES:
        return _ARCHITECTURES[name]
    expected = ", ".join(_ARCHITECTURES)
    raise UserError("No tiny model of this kind", key="pretrain.architecture.model", value=name, expected=expected)


AnyArchitecture = Annotated[
    TinyArchitecture, ByType("model", lambda: _ARCHITECTURES, _architecture_of, default="gr00t")
]
"""The type of `pretrain.architecture`."""


@dataclass(frozen=True, config=BLOCK)
class PretrainConfig:
    """Grounding of a tiny vision-language backbone on rendered scenes."""

    tasks: Annotated[tuple[Name, ...], Field(strict=False, min_length=1)]
    """Tasks whose scenes are rendered."""
    num_scenes: PositiveInt = 24_000
    """Random scenes."""
    batch_size: PositiveInt = 256
    """Scenes of one optimizer step."""
    steps: PositiveInt = 550
    """Optimizer steps."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    seed: Seed = 0
    """Seed of scenes, weights and batches; not the run's, so that runs of other seeds share the backbone."""
    max_median_error_cm: PositiveFloat = 0.7
    """The stage fails when the named object is located worse than this on held-out scenes."""
    architecture: AnyArchitecture = ArchitectureConfig()
    """Sizes of the model."""

    def check_error(self, error: float) -> None:
        """Check how far from the objects a backbone looks for them.

        Args:
            error: The median, in centimetres.

        Raises:
            TrainingHaltedError: It is above the limit.
        """
        if error > self.max_median_error_cm:
            raise TrainingHaltedError(
                f"The backbone finds the named object with a median error of {error:.2f} cm, above the limit of"
                f" {self.max_median_error_cm} cm (pretrain.max_median_error_cm). Raise pretrain.steps or"
                f" pretrain.num_scenes; or accept it, with pretrain.max_median_error_cm={math.ceil(error * 10) / 10:g}."
            )

    def num_tokens(self, sentences: Sequence[str], texts: Sequence[str]) -> list[int]:
        """Tokens of each text, where the tokenizer is trained on `sentences`."""
        return self.architecture.num_tokens(sentences, texts)

    def train(self, lessons: Lessons, output: Path) -> float:
        """Train a backbone and write the policy folder `output`, whose action head is untrained.

        Args:
            lessons: What it is trained on.
            output: The folder.

        Returns:
            Median distance between predicted and true position over held-out scenes, in centimetres.

        Raises:
            TrainingHaltedError: The error is above `max_median_error_cm`; nothing is written.
        """
        return self.architecture.train(self, lessons, output)
