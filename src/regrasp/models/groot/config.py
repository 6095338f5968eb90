"""Configuration of the GR00T N1.5 architecture, in the layout of its published config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from regrasp.config.parse import parse
from regrasp.config.types import NetworkSize, NonNegativeInt, PositiveInt
from regrasp.errors import UserError

MODEL_TYPE = "gr00t_n1_5"
QWEN3_LAYERS = 28
"""Layers of the language model before GR00T N1.5 cuts it at `select_layer`."""
_EAGLE_FIXED = {
    "select_layer": -1,
    "use_pixel_shuffle": False,
    "mlp_connector_layers": 1,
    "vision_config.hidden_act": "gelu_pytorch_tanh",
    "text_config.hidden_act": "silu",
    "text_config.attention_bias": False,
    "text_config.rope_scaling": None,
    "text_config.use_sliding_window": False,
}
"""What the code assumes of an Eagle configuration; keys that are absent are taken to be so."""

_EAGLE_DECIDES = {
    "action_head_cfg.backbone_embedding_dim",
    "diffusion_model_cfg.cross_attention_dim",
    "vl_self_attention_cfg width",
}
_GIVE_EAGLE = (
    "the sizes of its vision-language model are taken to be the published ones; if they are others, put that model's"
    " config.json beside this file, as eagle2_hg_model/config.json"
)
NumLayers = Annotated[PositiveInt, Field(le=1000)]
_MAX_IMAGE_TOKENS = 2**16
_BLOCK = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
"""A published file also has keys that do not change the network: training flags, dtypes, versions."""


def _check_multiple(block: str, config: Any, name: str, divisor: str) -> None:
    value, by = getattr(config, name), getattr(config, divisor)
    if value % by:
        raise _wrong_size(f"{block}.{name}", value, f"a multiple of {divisor}, {by}")


def _wrong_size(key: str, value: Any, expected: str) -> UserError:
    return UserError("A size that no network can have", key=key, value=value, expected=expected)


def _unsupported(key: str, value: Any, expected: Any) -> UserError:
    return UserError("A GR00T variant that is not supported", key=key, value=value, expected=str(expected))


@dataclass(frozen=True, config=_BLOCK)
class VisionConfig:
    """SigLIP sizes; the defaults are so400m's, as GR00T N1.5 uses it."""

    hidden_size: NetworkSize = 1152
    num_hidden_layers: NumLayers = 27
    num_attention_heads: NetworkSize = 16
    intermediate_size: NetworkSize = 4304
    patch_size: NetworkSize = 14
    image_size: NetworkSize = 224

    def __post_init__(self) -> None:
        _check_multiple("vision_config", self, "hidden_size", "num_attention_heads")
        _check_multiple("vision_config", self, "image_size", "patch_size")
        if self.num_tokens > _MAX_IMAGE_TOKENS:
            expected = f"at most {_MAX_IMAGE_TOKENS} patches of {self.patch_size} x {self.patch_size} pixels"
            raise _wrong_size("vision_config.image_size", self.image_size, expected)

    @property
    def num_tokens(self) -> int:
        """Tokens per image."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, config=_BLOCK)
class LanguageConfig:
    """Qwen3 sizes; the defaults are those of the 1.7 B model, cut to the 12 layers GR00T N1.5 keeps."""

    hidden_size: NetworkSize = 2048
    num_hidden_layers: NumLayers = 12
    num_attention_heads: NetworkSize = 16
    num_key_value_heads: NetworkSize = 8
    head_dim: NetworkSize = 128
    intermediate_size: NetworkSize = 6144
    vocab_size: NetworkSize = 151680
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    max_position_embeddings: NetworkSize = 40960

    def __post_init__(self) -> None:
        _check_multiple("text_config", self, "num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True, config=_BLOCK)
class EagleConfig:
    """The vision-language model, which the published config.json names by path only."""

    vision_config: VisionConfig = VisionConfig()
    text_config: LanguageConfig = LanguageConfig()
    image_token_index: NonNegativeInt = 151669
    pad_token_index: NonNegativeInt = 151643

    @classmethod
    def from_published(cls, content: Mapping[str, Any], *, file: Any = None) -> Self:
        """Read `eagle2_hg_model/config.json`, of the vision-language model with all its language layers.

        Raises:
            UserError: A value is of a wrong type, or asks for an unsupported variant.
        """
        vision, text = (content.get(f"{name}_config") for name in ("vision", "text"))
        values = {
            "vision_config": vision,
            "text_config": {"num_hidden_layers": QWEN3_LAYERS, **text} if isinstance(text, Mapping) else text,
            "image_token_index": content.get("image_token_index"),
            "pad_token_index": text.get("pad_token_id") if isinstance(text, Mapping) else None,
        }
        config = parse(cls, {key: value for key, value in values.items() if value is not None}, file=file)
        for key, expected in {**_EAGLE_FIXED, "force_image_size": config.vision_config.image_size}.items():
            *block, name = key.split(".")
            place = content.get(block[0], {}) if block else content
            if (value := place.get(name, expected)) != expected:
                raise _unsupported(key, value, expected).in_file(file)
        return config

    def cut(self, num_layers: int) -> Self:
        """The model with the lower `num_layers` language layers only."""
        return replace(self, text_config=replace(self.text_config, num_hidden_layers=num_layers))


@dataclass(frozen=True, config=_BLOCK)
class BackboneConfig:
    """`backbone_cfg` of the published config.json."""

    select_layer: NumLayers = 12
    project_to_dim: Literal[None] = None
    reproject_vision: Literal[False] = False


@dataclass(frozen=True, config=_BLOCK)
class TransformerConfig:
    """`vl_self_attention_cfg`: attention sizes common to both transformers of the head."""

    attention_head_dim: NetworkSize
    num_attention_heads: NetworkSize
    num_layers: Annotated[NonNegativeInt, Field(le=1000)]
    dropout: float = 0.2
    final_dropout: bool = True
    positional_embeddings: Literal[None] = None

    @property
    def width(self) -> int:
        """Token width."""
        return self.attention_head_dim * self.num_attention_heads


@dataclass(frozen=True, config=_BLOCK)
class DiffusionConfig(TransformerConfig):
    """`diffusion_model_cfg`: the diffusion transformer."""

    cross_attention_dim: NetworkSize = 2048
    output_dim: NetworkSize = 1024
    interleave_self_attention: Literal[True] = True
    norm_type: Literal["ada_norm"] = "ada_norm"


@dataclass(frozen=True, config=_BLOCK)
class ActionHeadConfig:
    """`action_head_cfg` of the published config.json."""

    action_dim: NetworkSize = 32
    action_horizon: NetworkSize = 16
    add_pos_embed: Literal[True] = True
    backbone_embedding_dim: NetworkSize = 2048
    hidden_size: NetworkSize = 1024
    input_embedding_dim: NetworkSize = 1536
    max_action_dim: NetworkSize = 32
    max_state_dim: NetworkSize = 64
    max_num_embodiments: NetworkSize = 32
    max_seq_len: NetworkSize = 1024
    noise_beta_alpha: float = 1.5
    noise_beta_beta: float = 1.0
    noise_s: float = 0.999
    num_inference_timesteps: NumLayers = 4
    num_target_vision_tokens: NonNegativeInt = 32
    num_timestep_buckets: NetworkSize = 1000
    use_vlln: Literal[True] = True
    diffusion_model_cfg: DiffusionConfig = DiffusionConfig(48, 32, num_layers=16)
    vl_self_attention_cfg: TransformerConfig = TransformerConfig(64, 32, num_layers=4)


@dataclass(frozen=True, config=_BLOCK)
class GrootConfig:
    """Everything that fixes the network; the defaults are the published GR00T N1.5 3B.

    Raises:
        UserError: A value asks for a variant of the architecture that the published model does not use.
    """

    model_type: Literal["gr00t_n1_5"] = MODEL_TYPE
    action_dim: NetworkSize = 32
    action_horizon: NetworkSize = 16
    hidden_size: NetworkSize = 2048
    backbone_cfg: BackboneConfig = BackboneConfig()
    action_head_cfg: ActionHeadConfig = ActionHeadConfig()
    eagle_cfg: EagleConfig = EagleConfig()

    def __post_init__(self) -> None:
        head, language = self.action_head_cfg, self.eagle_cfg.text_config
        diffusion, self_attention = head.diffusion_model_cfg, head.vl_self_attention_cfg
        if head.max_seq_len < head.action_horizon:
            raise _wrong_size("action_head_cfg.max_seq_len", head.max_seq_len, f"at least {head.action_horizon}")
        fixed = (
            ("backbone_cfg.select_layer", self.backbone_cfg.select_layer, language.num_hidden_layers),
            ("action_head_cfg.action_horizon", head.action_horizon, self.action_horizon),
            ("action_head_cfg.backbone_embedding_dim", head.backbone_embedding_dim, language.hidden_size),
            ("action_head_cfg.input_embedding_dim", head.input_embedding_dim, diffusion.width),
            ("action_head_cfg.hidden_size", head.hidden_size, diffusion.output_dim),
            ("action_head_cfg.noise_beta_alpha", head.noise_beta_alpha, 1.5),
            ("action_head_cfg.noise_beta_beta", head.noise_beta_beta, 1.0),
            ("diffusion_model_cfg.cross_attention_dim", diffusion.cross_attention_dim, language.hidden_size),
            ("vl_self_attention_cfg width", self_attention.width, language.hidden_size),
        )
        for key, value, expected in fixed:
            if value != expected:
                raise _unsupported(key, value, expected)

    def with_denoising_steps(self, num_steps: int) -> Self:
        """This configuration, for a policy that takes `num_steps` from noise to action."""
        return replace(self, action_head_cfg=replace(self.action_head_cfg, num_inference_timesteps=num_steps))

    @classmethod
    def tiny(cls, architecture: Any) -> Self:
        """A small configuration of the same architecture.

        Args:
            architecture: Any object with the attributes of the `pretrain.architecture` block.
        """
        a = architecture
        diffusion = DiffusionConfig(
            attention_head_dim=a.head_width // a.head_heads,
            num_attention_heads=a.head_heads,
            num_layers=a.head_layers,
            dropout=0.0,
            cross_attention_dim=a.language_width,
            output_dim=a.head_width,
        )
        self_attention = TransformerConfig(
            attention_head_dim=a.language_width // a.head_heads,
            num_attention_heads=a.head_heads,
            num_layers=a.vl_self_attention_layers,
            dropout=0.0,
        )
        head = ActionHeadConfig(
            action_dim=a.max_action_dim,
            action_horizon=a.action_horizon,
            backbone_embedding_dim=a.language_width,
            hidden_size=a.head_width,
            input_embedding_dim=a.head_width,
            max_action_dim=a.max_action_dim,
            max_state_dim=a.max_state_dim,
            max_num_embodiments=a.num_embodiments,
            max_seq_len=a.action_horizon,
            num_target_vision_tokens=a.num_future_tokens,
            diffusion_model_cfg=diffusion,
            vl_self_attention_cfg=self_attention,
        )
        vision = VisionConfig(
            hidden_size=a.vision_width,
            num_hidden_layers=a.vision_layers,
            num_attention_heads=a.vision_heads,
            intermediate_size=a.vision_mlp,
            patch_size=a.patch_size,
            image_size=a.image_size,
        )
        language = LanguageConfig(
            hidden_size=a.language_width,
            num_hidden_layers=a.language_layers,
            num_attention_heads=a.language_heads,
            num_key_value_heads=a.language_kv_heads,
            head_dim=a.language_head_dim,
            intermediate_size=a.language_mlp,
            vocab_size=a.vocab_size,
            max_position_embeddings=4096,
        )
        return cls(
            action_dim=a.max_action_dim,
            action_horizon=a.action_horizon,
            hidden_size=a.language_width,
            backbone_cfg=BackboneConfig(select_layer=a.language_layers),
            action_head_cfg=head,
            eagle_cfg=EagleConfig(vision, language, image_token_index=1, pad_token_index=0),
        )

    @property
    def image_size(self) -> int:
        """Height and width of the camera images the backbone sees."""
        return self.eagle_cfg.vision_config.image_size

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the published layout plus `eagle_cfg`."""
        return {"architectures": ["GR00T_N1_5"], **asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, file: Any = None, eagle: EagleConfig | None = None) -> Self:
        """Read config.json.

        Keys that do not change the network (training flags, dtypes, versions) are left alone.

        Args:
            content: The file's content.
            file: Named in errors.
            eagle: Sizes of the whole vision-language model, where `content` has no `eagle_cfg`; a published one has
                none. It is cut at `backbone_cfg.select_layer`. None: the published sizes.

        Raises:
            UserError: A needed key is missing, of a wrong type, or asks for an unsupported variant.
        """
        for block in ("action_head_cfg", "backbone_cfg"):
            if block not in content:
                raise UserError("A model configuration lacks a block", file=file, key=block, expected="{...}")
        assumes_eagle = eagle is None and "eagle_cfg" not in content
        if "eagle_cfg" not in content:
            whole = eagle or EagleConfig().cut(QWEN3_LAYERS)
            backbone = parse(BackboneConfig, content["backbone_cfg"], file=file, key="backbone_cfg")
            cut, num_layers = backbone.select_layer, whole.text_config.num_hidden_layers
            if not 1 <= cut <= num_layers:
                raise _unsupported("backbone_cfg.select_layer", cut, f"1 to {num_layers}").in_file(file)
            content = {**content, "eagle_cfg": asdict(whole.cut(cut))}
        try:
            return parse(cls, content, file=file)
        except UserError as error:
            if assumes_eagle and error.key in _EAGLE_DECIDES:
                raise UserError(**{**error.fields(), "fix": _GIVE_EAGLE}) from None
            raise
