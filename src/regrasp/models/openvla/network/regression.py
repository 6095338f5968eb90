"""OFT's regression head (openvla-oft, `prismatic/models/action_heads.py`), and a Gaussian around what it gives."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regrasp.models.initialization import init_linear

_BLOCKS = 2


class ResidualBlock(nn.Module):
    """Norm, layer and ReLU beside a straight way."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to the same."""
        return x + self.ffn(x)


class ResidualMlp(nn.Module):
    """From the features of an action's tokens, side by side, to the action."""

    def __init__(self, width_in: int, width: int, width_out: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width_in)
        self.fc1 = nn.Linear(width_in, width)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(_BLOCKS))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., A D) to (..., A)."""
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class GaussianHead(nn.Module):
    """The regression head's action as the mean of independent Gaussians, whose deviation no observation changes.

    The published head is trained with an L1 loss and gives one action: it has no density. The deviation is what makes
    it one that RL can weigh, and it is learned.

    Args:
        width: D, of the language model.
        num_actions: T, of a chunk.
        action_dim: A.
        initial_std: In policy units, whose range is [-1, 1].
    """

    def __init__(self, width: int, num_actions: int, action_dim: int, initial_std: float) -> None:
        super().__init__()
        self.num_actions = num_actions
        self.initial_std = initial_std
        self.model = ResidualMlp(action_dim * width, width, action_dim)
        self.log_std = nn.Parameter(torch.full((num_actions, action_dim), math.log(initial_std)))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Means (B, T, A) and deviations (T, A), float32, of the features (B, T A, D) of the action tokens."""
        tokens = features.unflatten(1, (self.num_actions, -1)).flatten(2)
        return self.model(tokens.to(self.model.fc1.weight.dtype)).float(), self.log_std.float().exp()

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw a new head."""
        for module in self.model.modules():
            if isinstance(module, nn.Linear):
                init_linear(module, generator)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        self.reset_deviation()

    def reset_deviation(self) -> None:
        """Begin with the initial deviation."""
        nn.init.constant_(self.log_std, math.log(self.initial_std))
