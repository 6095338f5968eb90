"""Reading a variable or large number of tokens by a few learned queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regrasp.models.initialization import fan_in_normal


class AttentionPooling(nn.Module):
    """Learned queries attend to tokens: unlike their mean, what they read keeps where things are.

    Args:
        token_width: D, of a token.
        queries: Q.
        query_width: W, of a query and of what it reads.
    """

    def __init__(self, token_width: int, queries: int = 4, query_width: int = 32) -> None:
        super().__init__()
        self.width = queries * query_width
        self.queries = nn.Parameter(torch.empty(queries, query_width))
        self.keys = nn.Linear(token_width, query_width, bias=False)
        self.values = nn.Linear(token_width, query_width)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw fresh weights; the first attention is nearly even."""
        with torch.no_grad():
            self.queries.normal_(0.0, 0.1, generator=generator)
        for linear in (self.keys, self.values):
            fan_in_normal(linear.weight, linear.in_features, generator)
        nn.init.zeros_(self.values.bias)

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, Q * W) from tokens (B, S, D).

        Queries are brought to the tokens' width, and tokens are read before their values are computed: each token is
        multiplied by Q vectors, instead of by two matrices.
        """
        tokens = tokens.to(self.queries.dtype)
        queries = self.queries @ self.keys.weight * self.queries.shape[-1] ** -0.5  # (Q, D)
        attention = (tokens @ queries.T).softmax(1)  # (B, S, Q)
        return self.values(attention.transpose(1, 2) @ tokens).flatten(1)
