"""From vision features to the width of the language model."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Projector(nn.Module):
    """Three layers with GELU between them, the first four times as wide as the features (`fused-gelu-mlp`)."""

    def __init__(self, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_width, 4 * vision_width)
        self.fc2 = nn.Linear(4 * vision_width, language_width)
        self.fc3 = nn.Linear(language_width, language_width)

    def forward(self, features: Tensor) -> Tensor:
        """(..., W1 + W2) to (..., D)."""
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))
