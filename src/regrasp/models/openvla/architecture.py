"""Block `pretrain.architecture` of a tiny OpenVLA. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic.dataclasses import dataclass

from regrasp.config.problems import not_a_multiple
from regrasp.config.types import BLOCK, PositiveInt
from regrasp.errors import UserError
from regrasp.models.architecture import TinyArchitecture
from regrasp.models.config import ModelConfig
from regrasp.models.inputs import InputNames
from regrasp.models.openvla.config import MODEL_TYPE, PUBLISHED_TOWERS, TOWER_SIZES

if TYPE_CHECKING:
    from regrasp.models.grounding import Lessons
    from regrasp.models.pretraining import PretrainConfig

_KEY = "pretrain.architecture"
_NUM_BINS = 256


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class OpenVlaArchitectureConfig(TinyArchitecture):
    """Sizes of a tiny OpenVLA that is trained from scratch; both towers are alike."""

    model: Literal["openvla"] = "openvla"
    """Of which model."""
    vision_width: PositiveInt = 48
    """Width of a vision tower."""
    vision_layers: PositiveInt = 3
    """Layers of a vision tower, of which the last one is not used."""
    vision_heads: PositiveInt = 2
    """Attention heads of a vision tower."""
    vision_mlp: PositiveInt = 96
    """Hidden width of a vision tower's feed-forward layers."""
    language_width: PositiveInt = 96
    """Width of the language model."""
    language_layers: PositiveInt = 2
    """Layers of the language model."""
    language_heads: PositiveInt = 3
    """Attention heads of the language model."""
    language_mlp: PositiveInt = 192
    """Hidden width of the language model's feed-forward layers."""
    vocab_size: PositiveInt = 384
    """Tokens of the tokenizer; 256 action tokens and 64 of padding follow them."""
    text_length: PositiveInt = 24
    """Length to which prompts are padded, tokens."""

    def problems(self, model: ModelConfig, inputs: Mapping[str, InputNames]) -> Iterator[UserError]:
        """Sizes that no network can have.

        Args:
            model: What RL asks of the model.
            inputs: The experiment's names, by the key of their mapping.
        """
        del model, inputs
        for name, divisor in (
            ("image_size", "patch_size"),
            ("vision_width", "vision_heads"),
            ("language_width", "language_heads"),
        ):
            divisor_key = f"{_KEY}.{divisor}"
            yield from not_a_multiple(f"{_KEY}.{name}", getattr(self, name), divisor_key, getattr(self, divisor))
        if self.vision_layers < 2:
            yield UserError("Too few", key=f"{_KEY}.vision_layers", value=self.vision_layers, expected="at least 2")

    def num_tokens(self, sentences: Sequence[str], texts: Sequence[str]) -> list[int]:
        """Tokens of each text's prompt, where the tokenizer is trained on `sentences`."""
        from regrasp.models.openvla.processing.prompt import PromptEncoder
        from regrasp.models.openvla.processing.tokenizer import train_tokenizer

        tokenizer = train_tokenizer(sentences, self.vocab_size)
        prompts = PromptEncoder(tokenizer, length=self.text_length, pad_token=self.vocab_size + _NUM_BINS)
        return [len(prompts.ids(text)) for text in texts]

    def train(self, config: PretrainConfig, lessons: Lessons, output: Path) -> float:
        """Train an OpenVLA that has never seen an action."""
        from regrasp.models.openvla.pretraining import pretrain

        return pretrain(config, self, lessons, output)

    def to_json(self) -> dict[str, Any]:
        """config.json in the published layout, without statistics."""
        vocabulary = self.vocab_size + _NUM_BINS
        tower = {
            "width": self.vision_width,
            "layers": self.vision_layers,
            "heads": self.vision_heads,
            "mlp": self.vision_mlp,
            "patch_size": self.patch_size,
        }
        return {
            "architectures": ["OpenVLAForActionPrediction"],
            "model_type": MODEL_TYPE,
            "arch_specifier": "no-align+fused-gelu-mlp",
            "image_resize_strategy": "resize-naive",
            "image_sizes": [self.image_size, self.image_size],
            "timm_model_ids": list(PUBLISHED_TOWERS),
            TOWER_SIZES: [tower, tower],
            "use_fused_vision_backbone": True,
            "n_action_bins": _NUM_BINS,
            "pad_to_multiple_of": 64,
            "pad_token_id": vocabulary,
            "text_config": {
                "model_type": "llama",
                "vocab_size": vocabulary + 64,
                "pad_token_id": vocabulary,
                "hidden_size": self.language_width,
                "intermediate_size": self.language_mlp,
                "num_hidden_layers": self.language_layers,
                "num_attention_heads": self.language_heads,
            },
        }
