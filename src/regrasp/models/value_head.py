"""The critic that RL adds to a VLA policy."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from regrasp.models.attention_pooling import AttentionPooling
from regrasp.models.config import RlHeadConfig, TokenPooling
from regrasp.models.initialization import init_linear


def silu_mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers of the given widths with SiLU between them; the last one is linear."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def init_mlp(mlp: nn.Sequential, generator: torch.Generator) -> None:
    """Fan-in scaled hidden layers and a zero last layer, so that every output starts at its bias, 0."""
    linears = [layer for layer in mlp if isinstance(layer, nn.Linear)]
    for linear in linears:
        init_linear(linear, generator, gain=0.0 if linear is linears[-1] else 1.0)


class ValueHead(nn.Module):
    """State value V(s) from the vision-language context and the encoded robot state.

    The last layer starts at zero, so initial values are 0. Pooling counts all S tokens of the context, padding among
    them, as RLinf does: the action head attends to padding too, and S is fixed. With padding on the left, the
    first token is one of padding, which has attended to the others in the head's context layers only.

    Args:
        context_width: D, width of a context token.
        state_width: W, width of the encoded state.
        hidden: Widths of the hidden layers.
        settings: `use_vlm_value`, `value_vlm_mode`, `detach_critic_input`.
    """

    def __init__(self, context_width: int, state_width: int, hidden: tuple[int, ...], settings: RlHeadConfig) -> None:
        super().__init__()
        self.pooling: TokenPooling = settings.value_vlm_mode
        self.uses_state = not settings.use_vlm_value
        self.detach_input = settings.detach_critic_input
        self.reader = AttentionPooling(context_width) if self.pooling == "attention" else None
        read = context_width if self.reader is None else self.reader.width
        width = read + (state_width if self.uses_state else 0)
        self.mlp = silu_mlp((width, *hidden, 1))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw fresh weights."""
        if self.reader is not None:
            self.reader.reset_parameters(generator)
        init_mlp(self.mlp, generator)

    def forward(self, context: Tensor, state_feature: Tensor) -> Tensor:
        """Values (B,) float32 from context (B, S, D) and state feature (B, W)."""
        if self.detach_input:
            context, state_feature = context.detach(), state_feature.detach()
        pooled = _pool(context, self.pooling) if self.reader is None else self.reader.pool(context)
        features = torch.cat([pooled, state_feature], dim=-1) if self.uses_state else pooled
        return self.mlp(features).squeeze(-1).float()


def _pool(tokens: Tensor, pooling: TokenPooling) -> Tensor:
    if pooling == "mean_token":
        return tokens.mean(dim=1)
    return tokens[:, 0 if pooling == "first_token" else -1]
