"""The vision-language backbone of GR00T N1.5: SigLIP, a linear connector and the lower layers of Qwen3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Qwen3Config, Qwen3Model, SiglipVisionConfig, SiglipVisionModel
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from transformers.utils.import_utils import is_flash_attn_2_available

from regrasp.errors import UserError
from regrasp.models.groot.config import EagleConfig, LanguageConfig, VisionConfig
from regrasp.models.groot.settings import AttentionKernel
from regrasp.models.initialization import fan_in_normal, init_linear
from regrasp.models.rotary import reset_frequencies
from regrasp.models.rows import rows_at

PADDING_WORD = 0
"""The word embedded at padded positions: RLinf pads with id 0, whatever the tokenizer's own padding token is."""
RESIDUAL_GAIN = 0.5
_RESIDUAL_OUTPUTS = ("o_proj", "out_proj", "down_proj", "fc2")


def siglip(config: VisionConfig, attention: AttentionKernel = "sdpa") -> SiglipVisionModel:
    """The vision tower, without its pooling head."""
    sizes = asdict(config) | {"vision_use_head": False}
    return SiglipVisionModel(SiglipVisionConfig.from_dict(sizes, attn_implementation=attention))


def qwen3(config: LanguageConfig, attention: AttentionKernel = "sdpa") -> Qwen3Model:
    """The language model, without its output layer; its layers are `LanguageLayer`."""
    sizes = asdict(config)
    rope = {"rope_type": "default", "rope_theta": sizes.pop("rope_theta")}
    sizes |= {"rope_parameters": rope, "use_cache": False}
    model = Qwen3Model(Qwen3Config.from_dict(sizes, attn_implementation=attention))
    for layer in model.layers:
        layer.__class__ = LanguageLayer
    return model


class LanguageLayer(Qwen3DecoderLayer):
    """A layer that also takes along the feature of a padded position, which attends to nothing."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, padding: Tensor | None, **arguments: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Features (B, S, D), and that of a padded position (D,) where it is not known ahead, to the same.

        Args:
            x: Features.
            padding: Feature of a padded position.
            **arguments: Of the library's layer.
        """
        return super().forward(x, **arguments), None if padding is None else self.without_attention(padding)

    def without_attention(self, x: Tensor) -> Tensor:
        """The layer's feed-forward part, (..., D) to the same."""
        return x + self.mlp(self.post_attention_layernorm(x))


class VisionTower(nn.Module):
    """Holds SigLIP under the published key `vision_model.vision_model`."""

    def __init__(self, config: VisionConfig, attention: AttentionKernel) -> None:
        super().__init__()
        self.vision_model = siglip(config, attention)

    def forward(self, pixels: Tensor) -> Tensor:
        """Patch features (N, P, D_v) after the last layer norm, of images (N, 3, H, W) in [-1, 1]."""
        return self.vision_model(pixels).last_hidden_state


class LanguageModel(nn.Module):
    """Holds Qwen3 under the published key `language_model.model`."""

    def __init__(self, config: LanguageConfig, attention: AttentionKernel) -> None:
        super().__init__()
        self.model = qwen3(config, attention)
        self._padding_feature: Tensor | None = None
        """Of weights that do not learn, once it was computed."""
        self.register_load_state_dict_pre_hook(lambda *_: self._forget())

    def forward(self, embeddings: Tensor, is_token: Tensor, padding: Tensor) -> Tensor:
        """Features (B, S, D) after the final norm; positions count from the first one, padded or not.

        The head attends to padded positions too, so their features reach the actions. They are those of attention
        kernels that leave padding out, with which the published weights were trained: a padded position attends to
        nothing. What SDPA gives a query without keys depends on the kernel, so it is not asked.

        Args:
            embeddings: (B, S, D).
            is_token: (B, S) bool, False where padded.
            padding: (D,), the embedding of a padded position.
        """
        # Behind the tokens, padding is what causal attention leaves out anyhow: kernels without a mask are the fastest.
        order = torch.argsort(is_token.logical_not().byte(), dim=1, stable=True)
        rotary = self.model.rotary_emb(embeddings, order)
        # What learns changes, and sharded layers gather their weights when they themselves are called.
        is_fixed = not any(weight.requires_grad or isinstance(weight, DTensor) for weight in self.parameters())
        known = self.kept_padding_feature(padding) if is_fixed else None
        x, padded = rows_at(embeddings, order), padding if known is None else None
        for layer in self.model.layers:
            x, padded = layer(x, padded, attention_mask=None, position_embeddings=rotary, use_cache=False)
        feature = known if padded is None else self.model.norm(padded)
        assert feature is not None
        features = rows_at(self.model.norm(x), torch.argsort(order, dim=1))
        return torch.where(is_token.unsqueeze(-1), features, feature)

    def _forget(self) -> None:
        self._padding_feature = None

    @torch.no_grad()
    def kept_padding_feature(self, padding: Tensor) -> Tensor:
        """The feature of a padded position (D,), of weights that do not learn.

        It is computed once, by no compiled code and without gradients, so that what acts and what learns have the same.
        """
        if self._padding_feature is not None:
            return self._padding_feature
        for layer in self.model.layers:
            assert isinstance(layer, LanguageLayer)
            padding = layer.without_attention(padding)
        feature = self._padding_feature = self.model.norm(padding)
        return feature

    def reset_buffers(self) -> None:
        """Recompute the rotary frequencies, where the weights are."""
        reset_frequencies(self.model.rotary_emb, self.model.norm.weight.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Keep the frequencies in float32: rounded to bfloat16, they are a radian off at position 850."""
        super()._apply(fn, recurse)
        self.reset_buffers()
        self._forget()
        return self


class EagleModel(nn.Module):
    """Images and words to one sequence of features."""

    def __init__(self, config: EagleConfig, attention: AttentionKernel) -> None:
        super().__init__()
        self.vision_model = VisionTower(config.vision_config, attention)
        self.mlp1 = nn.Sequential(nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size))
        self.language_model = LanguageModel(config.text_config, attention)
        self.image_token = config.image_token_index
        self.pad_token = config.pad_token_index

    def forward(self, images: Tensor, input_ids: Tensor) -> Tensor:
        """Features (B, S, D) of every position of the sequence.

        Args:
            images: (B, V, H, W, 3) uint8.
            input_ids: (B, S), with one image placeholder for each of the V views' tokens, in order.
        """
        words = self.language_model.model.embed_tokens(input_ids)
        views = self.mlp1(self.vision_model(_pixels(images, words.dtype)))
        embeddings = _fill_placeholders(
            words, input_ids == self.image_token, views.reshape(len(images), -1, words.shape[-1])
        )
        return self.language_model(embeddings, input_ids != self.pad_token, self._padding_embedding())

    def keep_padding_feature(self) -> None:
        """Compute the feature of padded positions ahead, for weights that do not change any more."""
        self.language_model.kept_padding_feature(self._padding_embedding())

    def _padding_embedding(self) -> Tensor:
        embedding = self.language_model.model.embed_tokens
        return embedding(torch.full((), PADDING_WORD, device=embedding.weight.device))


class Backbone(nn.Module):
    """The published module tree above `eagle_model`.

    Args:
        config: Sizes.
        attention: Kernel of both transformers, which does not change the features.

    Raises:
        UserError: flash-attention-2 is asked for and cannot run here.
    """

    def __init__(self, config: EagleConfig, attention: AttentionKernel = "sdpa") -> None:
        super().__init__()
        if attention == "flash_attention_2" and not is_flash_attn_2_available():
            raise UserError(
                "flash-attention-2 needs a GPU and the package flash-attn",
                key="actor.model.attn_implementation",
                value=attention,
                expected="sdpa, or flash-attn 2.3.3 or newer and a GPU",
                fix="set actor.model.attn_implementation=sdpa, which gives the same features",
            )
        self.eagle_model = EagleModel(config, attention)

    def forward(self, images: Tensor, input_ids: Tensor) -> Tensor:
        """See `EagleModel.forward`."""
        return self.eagle_model(images, input_ids)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Weights to train from scratch at small widths: fan-in scaled, smaller residual branches, distinct words.

        The libraries' own initialisation has a fixed standard deviation of 0.02, with which a narrow language model
        starts as nearly the identity and grounding takes several times as many samples.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                init_linear(module, generator, RESIDUAL_GAIN if name.endswith(_RESIDUAL_OUTPUTS) else 1.0)
            elif isinstance(module, nn.Conv2d):
                fan_in_normal(module.weight, module.weight[0].numel(), generator)
        nn.init.normal_(self.eagle_model.language_model.model.embed_tokens.weight, generator=generator)

    def reset_buffers(self) -> None:
        """Recompute the buffers that no checkpoint holds, after the module was built on the meta device."""
        embeddings = self.eagle_model.vision_model.vision_model.embeddings
        positions = torch.arange(embeddings.num_positions).expand(1, -1)
        embeddings.register_buffer("position_ids", positions, persistent=False)
        self.eagle_model.language_model.reset_buffers()


def _pixels(images: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, V, H, W, 3) uint8 to (B V, 3, H, W) in [-1, 1]."""
    return (images.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1).to(dtype)


def _fill_placeholders(words: Tensor, is_image: Tensor, views: Tensor) -> Tensor:
    """Put the i-th token of `views` (B, P, D) at the i-th image position of `words` (B, S, D)."""
    order = (is_image.cumsum(dim=1) - 1).clamp(min=0)
    return torch.where(is_image.unsqueeze(-1), rows_at(views, order), words)
