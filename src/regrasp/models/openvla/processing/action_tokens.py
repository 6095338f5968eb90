"""Actions as the last ids of the vocabulary (OpenVLA, `prismatic/vla/action_tokenizer.py`)."""

from __future__ import annotations

import torch
from torch import Tensor


class ActionTokens:
    """256 bins of [-1, 1] and their token ids.

    A value lies in bin d = 1, 2, ... between the d-th and the next of `num_bins` equally spaced points, and its id is
    `vocabulary - d`. There is one bin less than points: ids `vocabulary - num_bins` and the one after it are both
    decoded to the last bin's centre, so that two tokens may mean one action.

    Args:
        vocabulary: Ids that are not padding.
        num_bins: Points, and tokens.
    """

    def __init__(self, vocabulary: int, num_bins: int = 256) -> None:
        self.vocabulary = vocabulary
        self.num_bins = num_bins
        self._points = torch.linspace(-1, 1, num_bins, dtype=torch.float64)
        self._centers = ((self._points[1:] + self._points[:-1]) / 2).float()

    def encode(self, values: Tensor) -> Tensor:
        """Ids, int64, of values in policy units; what lies outside [-1, 1] is clipped."""
        points = self._points.to(values.device)
        bins = torch.bucketize(values.double().clamp(-1, 1), points, right=True)
        return self.vocabulary - bins

    def decode(self, ids: Tensor) -> Tensor:
        """Bin centres, float32, of action ids."""
        if self._centers.device != ids.device:
            self._centers = self._centers.to(ids.device)
        return self._centers[(self.vocabulary - ids - 1).clamp(0, self.num_bins - 2)]
