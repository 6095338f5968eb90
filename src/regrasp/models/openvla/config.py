"""Configuration of OpenVLA, in the layout of its published config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from regrasp.config.parse import parse
from regrasp.config.types import NetworkSize, NonNegativeInt, PositiveFloat, PositiveInt
from regrasp.errors import UserError

MODEL_TYPE = "openvla"
TOWER_SIZES = "tower_sizes"
"""Key of config.json with the sizes of towers that timm has no name for; a published file names timm's."""
_READ = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
"""A published file also has keys that do not change the network."""
NumLayers = Annotated[PositiveInt, Field(ge=2, le=1000)]


@dataclass(frozen=True, config=_READ)
class TowerConfig:
    """Sizes of a vision tower."""

    width: NetworkSize
    layers: NumLayers
    heads: NetworkSize
    mlp: NetworkSize
    patch_size: NetworkSize = 14

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise _wrong_size(f"{TOWER_SIZES}.width", self.width, f"a multiple of heads, {self.heads}")


PUBLISHED_TOWERS = {
    "vit_large_patch14_reg4_dinov2.lvd142m": TowerConfig(1024, 24, 16, 4096),
    "vit_so400m_patch14_siglip_224": TowerConfig(1152, 27, 16, 4304),
}
"""Sizes of the towers by timm's names, in the order in which they are fused."""


@dataclass(frozen=True, config=_READ)
class LanguageConfig:
    """Sizes of Llama; the defaults are those of the 7 B model, as transformers has them."""

    model_type: Literal["llama"] = "llama"
    vocab_size: NetworkSize = 32000
    hidden_size: NetworkSize = 4096
    intermediate_size: NetworkSize = 11008
    num_hidden_layers: Annotated[PositiveInt, Field(le=1000)] = 32
    num_attention_heads: NetworkSize = 32
    num_key_value_heads: NetworkSize | None = None
    """Of keys and values; None: as many as query heads."""
    rms_norm_eps: PositiveFloat = 1e-6
    rope_theta: PositiveFloat = 1e4
    pad_token_id: NonNegativeInt | None = None
    """Embedded at padded positions, which nothing looks at; None: that of config.json itself."""

    def __post_init__(self) -> None:
        for name, divisor in (("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_key_value_heads")):
            value, by = getattr(self, name), getattr(self, divisor)
            if by is not None and value % by:
                raise _wrong_size(f"text_config.{name}", value, f"a multiple of {divisor}, {by}")


@dataclass(frozen=True, config=_READ)
class _ConfigFile:
    """What config.json says of the network."""

    text_config: LanguageConfig = LanguageConfig(vocab_size=32064)
    timm_model_ids: tuple[str, ...] = tuple(PUBLISHED_TOWERS)
    tower_sizes: tuple[TowerConfig, ...] = ()
    image_sizes: tuple[NetworkSize, ...] = (224, 224)
    use_fused_vision_backbone: bool | None = True
    arch_specifier: str = "no-align+fused-gelu-mlp"
    image_resize_strategy: str = "resize-naive"
    pad_to_multiple_of: NonNegativeInt = 64
    pad_token_id: NonNegativeInt = 32000
    n_action_bins: Annotated[PositiveInt, Field(ge=2, le=2**16)] = 256


@plain_dataclass(frozen=True)
class OpenVlaConfig:
    """Sizes of the network, and config.json as it was read, which is written back."""

    towers: tuple[TowerConfig, TowerConfig]
    """DINOv2 with registers, and SigLIP."""
    image_size: int
    language: LanguageConfig
    pad_token: int
    num_bins: int
    vocabulary: int
    """Ids of the tokenizer that are not padding: actions are the last `num_bins` of them."""
    resize_strategy: str
    content: Mapping[str, Any]

    @property
    def tokens_per_image(self) -> int:
        """Patches."""
        return (self.image_size // self.towers[0].patch_size) ** 2

    @property
    def vision_width(self) -> int:
        """Of the fused features."""
        return sum(tower.width for tower in self.towers)

    @property
    def key_value_heads(self) -> int:
        """Of the language model."""
        return self.language.num_key_value_heads or self.language.num_attention_heads

    @property
    def action_ids(self) -> tuple[int, int]:
        """First id of an action token, and the one after the last."""
        return self.vocabulary - self.num_bins, self.vocabulary

    @classmethod
    def read(cls, content: Mapping[str, Any], file: Path) -> OpenVlaConfig:
        """Read config.json.

        Raises:
            UserError: A value is of a wrong kind, or asks for a variant that is not supported.
        """
        found = parse(_ConfigFile, content, file=file, fix="restore the file")
        for key, value, expected in (
            ("use_fused_vision_backbone", found.use_fused_vision_backbone, True),
            ("arch_specifier", found.arch_specifier, _ConfigFile.arch_specifier),
        ):
            if value != expected:
                raise _unsupported(file, key, value, str(expected).lower())
        towers = found.tower_sizes or tuple(PUBLISHED_TOWERS[name] for name in _known_towers(found, file))
        if len(towers) != 2:
            raise _unsupported(file, TOWER_SIZES, f"{len(towers)} towers", "two: DINOv2 and SigLIP")
        sizes = {*found.image_sizes}
        patches = {tower.patch_size for tower in towers}
        if len(sizes) != 1 or len(patches) != 1 or min(sizes) % min(patches):
            raise _unsupported(
                file, "image_sizes", list(found.image_sizes), f"one size, a multiple of the patches' {min(patches)}"
            )
        language = found.text_config
        vocabulary = language.vocab_size - found.pad_to_multiple_of
        pad = found.pad_token_id if language.pad_token_id is None else language.pad_token_id
        if vocabulary <= found.n_action_bins or not 0 <= pad < language.vocab_size:
            raise _unsupported(
                file,
                "text_config.vocab_size",
                language.vocab_size,
                f"room for n_action_bins ({found.n_action_bins}), pad_to_multiple_of ({found.pad_to_multiple_of}) and"
                f" pad_token_id ({pad})",
            )
        return cls(
            towers=(towers[0], towers[1]),
            image_size=min(sizes),
            language=language,
            pad_token=pad,
            num_bins=found.n_action_bins,
            vocabulary=vocabulary,
            resize_strategy=found.image_resize_strategy,
            content=dict(content),
        )


def _known_towers(found: _ConfigFile, file: Path) -> tuple[str, ...]:
    if found.timm_model_ids != tuple(PUBLISHED_TOWERS):
        expected = f"{list(PUBLISHED_TOWERS)}, or {TOWER_SIZES} with sizes of your own"
        raise _unsupported(file, "timm_model_ids", list(found.timm_model_ids), expected)
    return found.timm_model_ids


def _unsupported(file: Path, key: str, value: Any, expected: str) -> UserError:
    return UserError(
        "An OpenVLA variant that is not supported",
        file=file,
        key=key,
        value=value,
        expected=expected,
        fix="use OpenVLA 7B (dinosiglip-vit-so-224px), or a fine-tune of it",
    )


def _wrong_size(key: str, value: Any, expected: str) -> UserError:
    return UserError("A size that no network can have", key=key, value=value, expected=expected)
