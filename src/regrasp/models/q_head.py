"""Networks of learning from stored experience: an ensemble of critics, and what reads a policy's features for them."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn
from torch.func import functional_call

from regrasp.models.attention_pooling import AttentionPooling
from regrasp.models.config import QHeadConfig
from regrasp.models.initialization import fan_in_normal

_MAX_INDICES = 32
"""Decisions of an episode that a critic tells apart; of longer episodes, several share a number."""


class Reader(nn.Module, ABC):
    """Reads B rows of features and of traces as (B, width)."""

    width: int

    @abstractmethod
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw fresh weights."""

    @abstractmethod
    def forward(self, features: TensorDict, trace: TensorDict) -> Tensor:
        """(B, width)."""


class EnsembleMlp(nn.Module):
    """E networks of the same widths with LayerNorm and GELU after every hidden layer, computed together.

    Args:
        widths: Of the input, the hidden layers and the output.
        count: E.
    """

    def __init__(self, widths: tuple[int, ...], count: int) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.weights = nn.ParameterList(torch.empty(count, width_in, width_out) for width_in, width_out in pairs)
        self.biases = nn.ParameterList(torch.zeros(count, 1, width_out) for _, width_out in pairs)
        self.gains = nn.ParameterList(torch.ones(count, 1, width) for width in widths[1:-1])
        self.shifts = nn.ParameterList(torch.zeros(count, 1, width) for width in widths[1:-1])

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw fresh weights: fan-in scaled, those of the last layer a tenth of that."""
        for weight in self.weights:
            fan_in_normal(weight, weight.shape[1], generator, 0.1 if weight is self.weights[-1] else 1.0)
        for shift in (*self.biases, *self.shifts):
            nn.init.zeros_(shift)
        for gain in self.gains:
            nn.init.ones_(gain)

    def forward(self, x: Tensor) -> Tensor:
        """From (B, W) to (E, B, output)."""
        hidden = x.to(self.weights[0].dtype).expand(len(self.weights[0]), *x.shape)
        for weight, bias, gain, shift in zip(self.weights, self.biases, self.gains, self.shifts, strict=False):
            hidden = torch.baddbmm(bias, hidden, weight)
            hidden = F.gelu(torch.addcmul(shift, F.layer_norm(hidden, hidden.shape[-1:]), gain))
        return torch.baddbmm(self.biases[-1], hidden, self.weights[-1])


class QHead(nn.Module):
    """An ensemble of critics of what a policy did on what it saw.

    Args:
        reader: Of the features.
        action_width: D, of the action as `Policy.propose` gives it.
        sizes: Of the networks, and whether the number of a decision within its episode is an input.
    """

    def __init__(self, reader: Reader, action_width: int, sizes: QHeadConfig) -> None:
        super().__init__()
        self.count = sizes.num_q_heads
        self.reader = reader
        self._num_decisions = sizes.num_decisions
        self._indices = min(sizes.num_decisions or 0, _MAX_INDICES)
        self.critics = EnsembleMlp((reader.width + action_width + self._indices, *sizes.hidden, 1), self.count)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw fresh weights."""
        self.reader.reset_parameters(generator)
        self.critics.reset_parameters(generator)

    def read(self, features: TensorDict, trace: TensorDict, decision: Tensor) -> Tensor:
        """What the critics see besides the action, (B, W).

        Args:
            features: Of B rows.
            trace: Of the decisions.
            decision: (B,) int64, the number of each decision within its episode.
        """
        seen = self.reader(features, trace)
        if self._num_decisions is None:
            return seen
        index = (decision * self._indices // self._num_decisions).clamp(max=self._indices - 1)
        return torch.cat([seen, F.one_hot(index, self._indices).to(seen.dtype)], dim=-1)

    def judge(self, seen: Tensor, actions: Tensor) -> Tensor:
        """(E, B) float32, from what `read` gave and actions (B, D)."""
        return self.critics(torch.cat([seen, actions.to(seen.dtype)], dim=-1)).squeeze(-1).float()

    def forward(self, features: TensorDict, trace: TensorDict, decision: Tensor, actions: Tensor) -> Tensor:
        """`judge` of `read`."""
        return self.judge(self.read(features, trace, decision), actions)

    def frozen(self, features: TensorDict, trace: TensorDict, decision: Tensor, actions: Tensor) -> Tensor:
        """As a call, with gradients of the actions alone."""
        weights = {name: weight.detach() for name, weight in self.named_parameters()}
        return functional_call(self, weights, (features, trace, decision, actions))


class StateReader(Reader):
    """The state as it is.

    Args:
        width: Of the state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def reset_parameters(self, generator: torch.Generator) -> None:
        """There are none."""

    def forward(self, features: TensorDict, trace: TensorDict) -> Tensor:
        """(B, width)."""
        del trace
        return features["state"]


class AttentionReader(AttentionPooling, Reader):
    """Reads the tokens of a context by attention, and the rest as it is.

    Args:
        context_width: D, of a token.
        state_width: Of the state.
        parts: Names and widths of parts of the trace that are read too.
    """

    def __init__(self, context_width: int, state_width: int, parts: tuple[tuple[str, int], ...] = ()) -> None:
        super().__init__(context_width)
        self.width += state_width + sum(width for _, width in parts)
        self._parts = tuple(name for name, _ in parts)

    def forward(self, features: TensorDict, trace: TensorDict) -> Tensor:
        """(B, width) from `context` (B, S, D), `state` (B, W) and the parts of the trace, each (B, width)."""
        read = self.pool(features["context"])
        own = [features["state"], *(trace[name].flatten(1) for name in self._parts)]
        return torch.cat([read, *(part.to(read.dtype) for part in own)], dim=-1)
