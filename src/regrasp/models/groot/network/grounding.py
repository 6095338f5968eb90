"""A readout that asks the backbone where named objects are; used while pretraining it, then thrown away."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from regrasp.models.initialization import init_linear, seeded


class GroundingReadout(nn.Module):
    """Positions by soft attention: every token gives a score and an xy for each of S object slots.

    Args:
        width: D, width of a context token.
        num_slots: S.
        generator: Draws the initial weights.
    """

    def __init__(self, width: int, num_slots: int, generator: torch.Generator) -> None:
        super().__init__()
        self.num_slots = num_slots
        with seeded(0):
            self.readout = nn.Linear(width, 3 * num_slots)
        init_linear(self.readout, generator)

    def forward(self, features: TensorDict) -> tuple[Tensor, Tensor]:
        """Positions (B, S, 2), in the units of the training target, and scores (B, S, N) of the tokens.

        Args:
            features: `context` is (B, N, D).
        """
        score, xy = self.readout(features["context"]).unflatten(-1, (self.num_slots, 3)).split([1, 2], dim=-1)
        return (score.softmax(dim=1) * xy).sum(dim=1), score.squeeze(-1).transpose(1, 2)
