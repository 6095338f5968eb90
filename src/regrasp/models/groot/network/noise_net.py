"""The learned exploration noise of Flow-Noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regrasp.algorithms.flow import bounded_std
from regrasp.models.groot.network.transformer import sinusoids
from regrasp.models.value_head import init_mlp, silu_mlp

STD_RANGE = (0.08, 0.16)
_HIDDEN = 128
_FREQUENCIES = 16


class NoiseNet(nn.Module):
    """Standard deviation of a denoising step, in (0.08, 0.16), from pooled context, state feature and time.

    It does not see x, so that the entropy of a denoising chain is known in closed form.

    Args:
        context_width: D.
        state_width: W.
        action_shape: (H, A) of the head's chunk.
    """

    def __init__(self, context_width: int, state_width: int, action_shape: tuple[int, int]) -> None:
        super().__init__()
        self.action_shape = action_shape
        width_out = action_shape[0] * action_shape[1]
        self.mlp = silu_mlp((context_width + state_width + 2 * _FREQUENCIES, _HIDDEN, width_out))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw fresh weights, which start in the geometric middle of the range."""
        init_mlp(self.mlp, generator)

    def forward(self, pooled_context: Tensor, state_feature: Tensor, bucket: Tensor) -> Tensor:
        """(R, D), (R, W) and (R,) int64 to standard deviations (R, H, A) float32."""
        exponents = torch.arange(_FREQUENCIES, device=bucket.device) / _FREQUENCIES
        time = torch.cat(sinusoids(bucket, exponents), dim=-1).to(pooled_context.dtype)
        raw = self.mlp(torch.cat([pooled_context, state_feature, time], dim=-1))
        return bounded_std(raw.float().unflatten(-1, self.action_shape), *STD_RANGE)
