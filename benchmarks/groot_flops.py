"""Arithmetic of GR00T N1.5, counted by hand."""

from __future__ import annotations

from dataclasses import dataclass

from regrasp.models.groot.config import GrootConfig


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one observation, forward."""

    backbone: float
    context: float
    """The head's layers on the backbone's features."""
    keys_values: float
    """Projections of the context for the cross-attention blocks."""
    step: float
    """One denoising step, keys and values given."""

    def rollout(self, num_steps: int) -> float:
        """Acting, with keys and values computed once."""
        return self.backbone + self.context + self.keys_values + num_steps * self.step

    @property
    def update_cached(self) -> float:
        """Forward and backward of the head from features: a backward pass costs twice its forward pass."""
        return 3 * (self.context + self.keys_values + self.step)

    @property
    def update_rerun(self) -> float:
        """The same, after a forward pass of the backbone."""
        return self.backbone + self.update_cached

    @property
    def update_frozen_context(self) -> float:
        """Forward and backward from the context: its projections need no gradient of their input."""
        return 2 * self.keys_values + 3 * self.step


def count_flops(groot: GrootConfig, num_views: int, num_tokens: int) -> Flops:
    """Count multiplications and additions of all matrix products, one operation each.

    A product of a token with an m x n matrix is 2 m n. Attention of a query over S keys is 2 S w for the scores and 2 S
    w for the weighted sum, w being the width of all heads; causal attention is half of that. Norms, activations,
    embeddings and time encodings are not counted: they are bound by memory.

    Args:
        groot: Sizes.
        num_views: Cameras.
        num_tokens: S, words, padding and image tokens.
    """
    vision, text, head = groot.eagle_cfg.vision_config, groot.eagle_cfg.text_config, groot.action_head_cfg
    d = text.hidden_size

    patch = 2 * 3 * vision.patch_size**2 * vision.hidden_size
    w, mlp = vision.hidden_size, vision.intermediate_size
    vision_layer = 2 * (4 * w * w + 2 * w * mlp) + 4 * vision.num_tokens * w
    connector = 2 * w * d
    per_image_token = patch + vision.num_hidden_layers * vision_layer + connector
    queries, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    projections = 2 * d * (2 * queries + 2 * keys) + 2 * 3 * d * text.intermediate_size
    language_layer = projections + 4 * num_tokens * queries / 2
    language = num_tokens * text.num_hidden_layers * language_layer

    context_layer = 2 * (4 + 8) * d * d + 4 * num_tokens * d
    context = num_tokens * head.vl_self_attention_cfg.num_layers * context_layer

    diffusion = head.diffusion_model_cfg
    w, num_blocks = diffusion.width, diffusion.num_layers
    num_cross = (num_blocks + 1) // 2
    keys_values = num_tokens * num_cross * 2 * 2 * d * w
    num_queries = 1 + head.num_target_vision_tokens + head.action_horizon
    cross = num_queries * (2 * (2 + 8) * w * w + 4 * num_tokens * w)
    own = num_queries * (2 * (4 + 8) * w * w + 4 * num_queries * w)
    modulation = (num_blocks + 1) * 2 * w * 2 * w + 2 * (256 * w + w * w)
    a, hidden = head.max_action_dim, head.hidden_size
    actions = head.action_horizon * 2 * (a * w + 3 * w * w + w * diffusion.output_dim + hidden * (hidden + a))
    step = num_cross * cross + (num_blocks - num_cross) * own + modulation + actions
    return Flops(num_views * vision.num_tokens * per_image_token + language, context, keys_values, step)
