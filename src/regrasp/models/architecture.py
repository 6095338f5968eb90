"""What every block `pretrain.architecture` has: a tiny model that is trained from scratch. Imports nothing heavy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from regrasp.config.types import BLOCK, Name, PositiveInt
from regrasp.errors import UserError
from regrasp.models.config import ModelConfig
from regrasp.models.inputs import InputNames

if TYPE_CHECKING:
    from regrasp.models.grounding import Lessons
    from regrasp.models.pretraining import PretrainConfig


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class TinyArchitecture(ABC):
    """Sizes of a tiny model."""

    model: Name
    """Of which model."""
    image_size: PositiveInt = 84
    """Height and width of a camera image, pixels."""
    patch_size: PositiveInt = 14
    """Height and width of a vision patch, pixels."""
    vocab_size: PositiveInt = 512
    """Tokens of the tokenizer."""
    text_length: PositiveInt = 10
    """Fixed length of an instruction, tokens."""

    @abstractmethod
    def problems(self, model: ModelConfig, inputs: Mapping[str, InputNames]) -> Iterator[UserError]:
        """Sizes that no network can have, or that have no room for an experiment.

        Args:
            model: What RL asks of the model.
            inputs: The experiment's names, by the key of their mapping.
        """

    @abstractmethod
    def num_tokens(self, sentences: Sequence[str], texts: Sequence[str]) -> list[int]:
        """Tokens that each instruction takes, where the tokenizer is trained on `sentences`."""

    @abstractmethod
    def train(self, config: PretrainConfig, lessons: Lessons, output: Path) -> float:
        """See `PretrainConfig.train`."""
