"""Block `pretrain.architecture`: the sizes of a tiny GR00T. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass

from regrasp.config.problems import not_a_multiple
from regrasp.config.types import BLOCK, NEW_EMBODIMENT, NonNegativeInt, PositiveInt
from regrasp.errors import UserError
from regrasp.models.architecture import TinyArchitecture
from regrasp.models.config import ModelConfig
from regrasp.models.inputs import EMBODIMENT_IDS, InputNames

if TYPE_CHECKING:
    from regrasp.models.grounding import Lessons
    from regrasp.models.pretraining import PretrainConfig

_KEY = "pretrain.architecture"


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class ArchitectureConfig(TinyArchitecture):
    """Sizes of a tiny GR00T that is trained from scratch."""

    model: Literal["gr00t"] = "gr00t"
    """Of which model."""
    vision_width: PositiveInt = 96
    """Width of the vision transformer."""
    vision_layers: PositiveInt = 2
    """Layers of the vision transformer."""
    vision_heads: PositiveInt = 3
    """Attention heads of the vision transformer."""
    vision_mlp: PositiveInt = 192
    """Hidden width of the vision transformer's feed-forward layers."""
    language_width: PositiveInt = 96
    """Width of the language model."""
    language_layers: PositiveInt = 2
    """Layers of the language model."""
    language_heads: PositiveInt = 3
    """Query heads of the language model."""
    language_kv_heads: PositiveInt = 1
    """Key and value heads of the language model."""
    language_head_dim: PositiveInt = 32
    """Width of a language attention head."""
    language_mlp: PositiveInt = 192
    """Hidden width of the language model's feed-forward layers."""
    text_first: bool = True
    """Put the instruction before the image tokens."""
    head_width: PositiveInt = 96
    """Width of the action head."""
    head_layers: PositiveInt = 4
    """Layers of the action head's diffusion transformer."""
    head_heads: PositiveInt = 3
    """Attention heads of the diffusion transformer."""
    vl_self_attention_layers: NonNegativeInt = 1
    """Self-attention layers of the action head over the backbone's features."""
    num_future_tokens: NonNegativeInt = 1
    """Learned tokens between state and actions."""
    action_horizon: PositiveInt = 4
    """Actions that the head predicts per decision."""
    max_state_dim: PositiveInt = 4
    """Width to which states are padded."""
    max_action_dim: PositiveInt = 4
    """Width to which actions are padded."""
    num_embodiments: PositiveInt = 2
    """Slots of embodiment-specific projectors."""

    def problems(self, model: ModelConfig, inputs: Mapping[str, InputNames]) -> Iterator[UserError]:
        """Sizes that no network can have, or that have no room for an experiment.

        Args:
            model: What RL asks of the model.
            inputs: The experiment's names, by the key of their mapping.
        """
        for name, divisor in (
            ("image_size", "patch_size"),
            ("vision_width", "vision_heads"),
            ("head_width", "head_heads"),
            ("language_width", "head_heads"),
            ("language_heads", "language_kv_heads"),
        ):
            divisor_key = f"{_KEY}.{divisor}"
            yield from not_a_multiple(f"{_KEY}.{name}", getattr(self, name), divisor_key, getattr(self, divisor))
        for key, names in inputs.items():
            slot = names.embodiment_tag_id
            if slot is None:
                tag = names.embodiment_tag or NEW_EMBODIMENT
                slot = 0 if tag == NEW_EMBODIMENT else EMBODIMENT_IDS.get(tag, 0)  # the new one is put into slot 0
            if slot >= self.num_embodiments:
                yield UserError(
                    "No such embodiment slot",
                    key=f"{key}.embodiment_tag_id",
                    value=slot,
                    expected=f"below {_KEY}.num_embodiments ({self.num_embodiments})",
                    fix=f"set {key}.embodiment_tag_id=0",
                )
        for name, needed in (("action_horizon", "num_action_chunks"), ("max_action_dim", "action_dim")):
            if getattr(self, name) < getattr(model, needed):
                yield UserError(
                    "Too small",
                    key=f"{_KEY}.{name}",
                    value=getattr(self, name),
                    expected=f"at least actor.model.{needed} ({getattr(model, needed)})",
                    fix=f"set {_KEY}.{name}={getattr(model, needed)}",
                )

    def num_tokens(self, sentences: Sequence[str], texts: Sequence[str]) -> list[int]:
        """Tokens of each text, where the tokenizer is trained on `sentences`."""
        from regrasp.models.groot.processing.tokenizer import train_tokenizer

        tokenizer = train_tokenizer(sentences, self.vocab_size)
        return [len(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)) for text in texts]

    def train(self, config: PretrainConfig, lessons: Lessons, output: Path) -> float:
        """Train a GR00T whose action head stays untrained."""
        from regrasp.models.groot.pretraining import pretrain

        return pretrain(config, self, lessons, output)
