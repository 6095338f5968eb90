"""The flow-matching action head of GR00T N1.5: context, state and noisy actions to a velocity."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from regrasp.models.groot.config import ActionHeadConfig
from regrasp.models.groot.network.transformer import (
    AdaptiveNorm,
    Attention,
    ContextCache,
    ContextTransformer,
    DiffusionTransformer,
    FeedForward,
    compute_dtype,
    sinusoids,
)
from regrasp.models.initialization import fan_in_normal, init_linear

QUERY_KEY_GAIN = 1.3
RESIDUAL_GAIN = 0.5
OUTPUT_GAIN = 0.1
ADAPTIVE_STD = 0.02
EMBEDDING_STD = 0.5
_SLOT_NAMES = {"W": "slot_weight", "b": "slot_bias"}


class CategoryLinear(nn.Module):
    """One linear layer per embodiment: W is [E, in, out], b is [E, out].

    After `train_only`, one embodiment's weights are the parameters and the others are constants. `state_dict` keeps
    the names and shapes of W and b, with the trained weights in their slot.
    """

    W: Tensor
    b: Tensor
    slot_weight: Tensor
    slot_bias: Tensor

    def __init__(self, num_categories: int, features_in: int, features_out: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(num_categories, features_in, features_out))
        self.b = nn.Parameter(torch.empty(num_categories, features_out))
        self.slot: int | None = None
        self.register_load_state_dict_pre_hook(_take_out_slot)

    def train_only(self, slot: int) -> None:
        """Make parameters of one embodiment's weights, and constants of W and b; done once and for good."""
        assert self.slot in (None, slot), f"slot {self.slot} is already set apart"
        if self.slot is None:
            for name, own in _SLOT_NAMES.items():
                whole = getattr(self, name).detach()
                delattr(self, name)
                self.register_buffer(name, whole)
                self.register_parameter(own, nn.Parameter(whole[slot].clone()))
            self.slot = slot

    def reset_parameters(self, generator: torch.Generator, gain: float = 1.0) -> None:
        """Fan-in scaled weights for every embodiment, zero biases."""
        fan_in_normal(self.W, self.W.shape[1], generator, gain)
        nn.init.zeros_(self.b)

    def forward(self, x: Tensor, category: int) -> Tensor:
        """(..., in) to (..., out), all rows being of one embodiment."""
        W, b = (self.slot_weight, self.slot_bias) if category == self.slot else (self.W[category], self.b[category])
        return F.linear(x, W.T, b)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        """Put the trained weights in their slot."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.slot is None:
            return
        for name, own in _SLOT_NAMES.items():
            whole, trained = destination[prefix + name], destination.pop(prefix + own)
            trained = (trained.full_tensor() if isinstance(trained, DTensor) else trained).to(whole.device)
            destination[prefix + name] = torch.cat([whole[: self.slot], trained[None], whole[self.slot + 1 :]])


def _take_out_slot(layer: CategoryLinear, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before it is loaded, take the trained weights out of their slot."""
    for name, own in _SLOT_NAMES.items() if layer.slot is not None else ():
        if prefix + name in state:
            state[prefix + own] = state[prefix + name][layer.slot]


class CategoryMlp(nn.Module):
    """Two category layers with ReLU between them."""

    def __init__(self, num_categories: int, features_in: int, hidden: int, features_out: int) -> None:
        super().__init__()
        self.layer1 = CategoryLinear(num_categories, features_in, hidden)
        self.layer2 = CategoryLinear(num_categories, hidden, features_out)

    def forward(self, x: Tensor, category: int) -> Tensor:
        """(..., in) to (..., out)."""
        return self.layer2(F.relu(self.layer1(x, category)), category)


class ActionEncoder(nn.Module):
    """Noisy actions and their time to tokens."""

    def __init__(self, num_categories: int, action_dim: int, width: int) -> None:
        super().__init__()
        self.W1 = CategoryLinear(num_categories, action_dim, width)
        self.W2 = CategoryLinear(num_categories, 2 * width, width)
        self.W3 = CategoryLinear(num_categories, width, width)

    def forward(self, actions: Tensor, bucket: Tensor, category: int) -> Tensor:
        """(B, H, A) and (B,) int64 to (B, H, width)."""
        tokens = self.W1(actions, category)
        half = tokens.shape[-1] // 2
        time = torch.cat(sinusoids(bucket, torch.arange(half, device=bucket.device) / half), dim=-1)
        time = time.to(tokens.dtype).unsqueeze(1).expand_as(tokens)
        return self.W3(F.silu(self.W2(torch.cat([tokens, time], dim=-1), category)), category)


class ContextNorm(nn.LayerNorm):
    """Layer norm in the dtype of its weights, whatever the features are stored in."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, S, D) to the same."""
        return super().forward(input.to(self.weight.dtype))


class ActionHead(nn.Module):
    """Velocity of the action chunk's flow; keys as published.

    Args:
        config: Sizes.
        use_dropout: Apply the configured dropout in training mode.
    """

    def __init__(self, config: ActionHeadConfig, *, use_dropout: bool) -> None:
        super().__init__()
        diffusion, self_attention = config.diffusion_model_cfg, config.vl_self_attention_cfg
        slots, width = config.max_num_embodiments, config.input_embedding_dim
        self.horizon = config.action_horizon
        self.state_encoder = CategoryMlp(slots, config.max_state_dim, config.hidden_size, width)
        self.action_encoder = ActionEncoder(slots, config.max_action_dim, width)
        self.action_decoder = CategoryMlp(slots, config.hidden_size, config.hidden_size, config.max_action_dim)
        self.future_tokens = nn.Embedding(config.num_target_vision_tokens, width)
        self.position_embedding = nn.Embedding(config.max_seq_len, width)
        self.vlln = ContextNorm(config.backbone_embedding_dim)
        self.vl_self_attention = ContextTransformer(self_attention, self_attention.dropout * use_dropout)
        self.model = DiffusionTransformer(diffusion, diffusion.dropout * use_dropout)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype the head computes in."""
        return compute_dtype(self.model.proj_out_2.weight)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Weights to train from scratch: fan-in scaled, sharper attention, smaller residual branches."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module, generator)
            elif isinstance(module, CategoryLinear):
                module.reset_parameters(generator)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=EMBEDDING_STD, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, Attention):
                init_linear(module.to_q, generator, QUERY_KEY_GAIN)
                init_linear(module.to_k, generator, QUERY_KEY_GAIN)
                _shrink(module.to_out[0], generator)
            elif isinstance(module, FeedForward):
                _shrink(module.net[2], generator)
            elif isinstance(module, AdaptiveNorm):
                nn.init.normal_(module.linear.weight, std=ADAPTIVE_STD, generator=generator)
        nn.init.normal_(self.model.proj_out_1.weight, std=ADAPTIVE_STD, generator=generator)
        self.action_decoder.layer2.reset_parameters(generator, OUTPUT_GAIN)

    def train_only(self, slot: int) -> None:
        """Set one embodiment's weights apart in every per-embodiment layer, see `CategoryLinear`."""
        for module in self.modules():
            if isinstance(module, CategoryLinear):
                module.train_only(slot)

    def process_context(self, features: Tensor) -> Tensor:
        """Backbone features (B, S, D) to the context (B, S, D) that the DiT attends to."""
        return self.vl_self_attention(features, self.vlln)

    def encode_state(self, state: Tensor, slot: int) -> Tensor:
        """State feature (B, width) of normalised, padded states (B, max_state_dim)."""
        return self.state_encoder(state.to(self.dtype), slot)

    def cache(self, context: Tensor, state_feature: Tensor) -> ContextCache:
        """What does not change over denoising steps."""
        future = _first(self.future_tokens, self.future_tokens.num_embeddings).expand(len(context), -1, -1)
        return ContextCache(torch.cat([state_feature.unsqueeze(1), future], dim=1), context)

    def velocity(
        self,
        x: Tensor,
        bucket: Tensor,
        cache: ContextCache,
        slot: int,
        modulations: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """Velocity (B, H, max_action_dim) float32 at noisy actions x of that shape.

        Args:
            x: Noisy actions.
            bucket: (B,) int64, discrete time in [0, num_timestep_buckets).
            cache: From `cache`, with B rows.
            slot: Embodiment slot, the same for all rows.
            modulations: Of the DiT at `bucket`, where they are known.
        """
        actions = self.action_encoder(x.to(self.dtype), bucket, slot) + _first(self.position_embedding, self.horizon)
        tokens = torch.cat([cache.prefix, actions], dim=1)
        outputs = self.model(tokens, bucket, cache, self.horizon, modulations)
        return self.action_decoder(outputs, slot).float()


def _shrink(module: nn.Module, generator: torch.Generator) -> None:
    assert isinstance(module, nn.Linear)
    init_linear(module, generator, RESIDUAL_GAIN)


def _first(embedding: nn.Embedding, count: int) -> Tensor:
    """The first embeddings (count, width)."""
    return embedding(torch.arange(count, device=embedding.weight.device))
