"""Llama with three ways through it: causal over whole sequences, both ways over whole sequences, and token by token.

Sequences are padded on the right. A causal token then never sees padding, positions count from the first token, and no
mask is needed where whole sequences are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, rotate_half

from regrasp.models.openvla.config import LanguageConfig
from regrasp.models.rotary import reset_frequencies
from regrasp.models.rows import rows_at

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines (B or 1, S, head width)."""


Cache = list[tuple[Tensor, Tensor]]
"""Keys and values (B, heads, S, head width) of every layer, with room for what is to come."""


class LanguageLayer(LlamaDecoderLayer):
    """A layer of transformers' Llama, with the attention of this module."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Tensor,
        rotary: Rotary,
        mask: Tensor | None = None,
        past: tuple[Tensor, Tensor] | None = None,
        index: Tensor | None = None,
        at: Tensor | None = None,
        room: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, D) to the same, and the keys and values (B, heads, S + room, head width) that were looked at.

        Args:
            x: Of whole sequences, or of one position of each.
            rotary: Of their positions.
            mask: (B, 1, queries, keys) bool, True where a query may look; None: causal.
            past: For one position: keys and values of the sequence, to which it is added, in place.
            index: (B,), the position; None for whole sequences.
            at: (B, K), the only positions of whole sequences whose features are computed, (B, K, D).
            room: Of whole sequences, zeros that follow the keys and values.
        """
        attention, normed = self.self_attn, self.input_layernorm(x)
        asking, turned = normed, rotary
        if at is not None:
            x, asking = rows_at(x, at), rows_at(normed, at)
            turned = rotary[0][0, at], rotary[1][0, at]
        projections = ((attention.q_proj, asking), (attention.k_proj, normed), (attention.v_proj, normed))
        q, k, v = (layer(seen).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for layer, seen in projections)
        q, k = _rotated(q, turned), _rotated(k, rotary)
        if past is not None and index is not None:
            rows, heads = (torch.arange(size, device=k.device) for size in k.shape[:2])
            where = (rows[:, None], heads, index[:, None])
            for whole, new in zip(past, (k, v), strict=True):
                whole.index_put_(where, new.squeeze(2).to(whole.dtype))
            k, v = past
        keys, values = k, v
        if room:
            keys, values = F.pad(k, (0, 0, 0, room)), F.pad(v, (0, 0, 0, room))
            k, v = keys[:, :, :-room], values[:, :, :-room]
        grouped = attention.num_key_value_groups > 1
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
        x = x + attention.o_proj(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.post_attention_layernorm(x)), keys, values


class LanguageModel(nn.Module):
    """Holds Llama under the published keys `language_model.model` and `language_model.lm_head`."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.model = LlamaModel(llama_config(config))
        for layer in self.model.layers:
            layer.__class__ = LanguageLayer
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def layers(self) -> list[LanguageLayer]:
        """The decoder layers, first to last."""
        return cast(list[LanguageLayer], list(self.model.layers))

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings (..., D) of token ids (...)."""
        return self.model.embed_tokens(ids)

    def whole(self, x: Tensor, visible: Tensor | None = None, *, at: Tensor | None = None) -> Tensor:
        """Features (B, S, D) before the last norm.

        Args:
            x: Embeddings (B, S, D).
            visible: (B, S) bool: every token sees these, before it and after it; None: causal.
            at: (B, K): the features (B, K, D) of these positions alone.
        """
        return self._through(x, visible, at)[0]

    def prefill(self, x: Tensor, more: int, *, at: Tensor) -> tuple[Tensor, Cache]:
        """Causal features (B, K, D) before the last norm of positions `at`, and a cache with room for `more`."""
        return self._through(x, None, at, more)

    def _through(
        self, x: Tensor, visible: Tensor | None, at: Tensor | None, room: int | None = None
    ) -> tuple[Tensor, Cache]:
        """Features, and with `room` a cache; the last layer computes no feature that nobody asks for."""
        rotary, cache = self._rotary(x), []
        mask = None if visible is None else visible[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            asked = at if number == last else None
            if asked is not None:
                causal = torch.arange(x.shape[1], device=x.device) <= asked[:, :, None]
                mask = (causal if visible is None else visible[:, None].expand_as(causal)).unsqueeze(1)
            x, keys, values = layer(x, rotary, mask, at=asked, room=room or 0)
            if room is not None:
                cache.append((keys, values))
        return x, cache

    def step(self, x: Tensor, index: Tensor, cache: Cache) -> Tensor:
        """Features (B, 1, D) before the last norm of one more position of every row.

        Args:
            x: Embeddings (B, 1, D).
            index: (B,) int64, the position; what the cache holds from there on is not looked at.
            cache: The position is added.
        """
        rotary = self.model.rotary_emb(x, index.unsqueeze(1))
        keys = torch.arange(cache[0][0].shape[2], device=x.device)
        mask = (keys <= index.unsqueeze(1))[:, None, None, :]
        for layer, past in zip(self.layers, cache, strict=True):
            x, _, _ = layer(x, rotary, mask, past, index)
        return x

    def _rotary(self, x: Tensor) -> Rotary:
        return self.model.rotary_emb(x, torch.arange(x.shape[1], device=x.device).unsqueeze(0))

    def logits(self, features: Tensor, first: int, stop: int) -> Tensor:
        """Logits (..., stop - first) float32 of the ids from `first` to `stop`, of normed features (..., D)."""
        return F.linear(features, self.lm_head.weight[first:stop]).float()

    def reset_buffers(self) -> None:
        """Recompute the rotary frequencies, where the weights are."""
        reset_frequencies(self.model.rotary_emb, self.model.norm.weight.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Keep the frequencies in float32: rounded to bfloat16, they are a radian off at position 850."""
        super()._apply(fn, recurse)
        self.reset_buffers()
        return self


def llama_config(config: LanguageConfig) -> LlamaConfig:
    """The same sizes for transformers."""
    sizes = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads or config.num_attention_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "pad_token_id": config.pad_token_id,
        "use_cache": False,
    }
    return LlamaConfig.from_dict(sizes, attn_implementation="sdpa")


def _rotated(x: Tensor, rotary: Rotary) -> Tensor:
    """Queries or keys (B, heads, S, head width) with their positions (transformers' `apply_rotary_pos_emb`)."""
    cos, sin = (part.unsqueeze(1) for part in rotary)
    return x * cos + rotate_half(x) * sin
