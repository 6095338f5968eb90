"""Normalisation of states and actions by the statistics of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from regrasp.errors import UserError

NormalizationMode = Literal["min_max", "q99", "mean_std"]
NORMALIZATION_MODES: tuple[NormalizationMode, ...] = ("min_max", "q99", "mean_std")


@dataclass(frozen=True)
class Statistics:
    """Per-dimension statistics, each (D,) float32, in physical units."""

    max: Tensor
    min: Tensor
    mean: Tensor
    std: Tensor
    q01: Tensor
    """1st percentile."""
    q99: Tensor
    """99th percentile."""

    @classmethod
    def of(cls, samples: Tensor) -> Statistics:
        """Statistics of samples (N, D); population standard deviation, linearly interpolated percentiles."""
        values = samples.double()
        quantiles = torch.quantile(values, torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
        parts = (values.amax(0), values.amin(0), values.mean(0), values.std(0, correction=0), *quantiles)
        return cls(*(part.float() for part in parts))

    @classmethod
    def identity(cls, width: int) -> Statistics:
        """Statistics under which every mode leaves values as they are."""
        one, zero = torch.ones(width), torch.zeros(width)
        return cls(max=one, min=-one, mean=zero, std=one, q01=-one, q99=one)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Sequence[float]], *, file: Any = None, key: str = "") -> Statistics:
        """Read lists by name; further entries are left alone.

        Raises:
            UserError: A statistic is missing, or its width differs from the others'.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in mapping]
        if missing:
            raise UserError(f"Statistics without {', '.join(missing)}", file=file, key=key, expected=", ".join(names))
        parts = {name: torch.tensor(mapping[name], dtype=torch.float32).reshape(-1) for name in names}
        if len({len(part) for part in parts.values()}) != 1:
            widths = {name: len(part) for name, part in parts.items()}
            raise UserError("Statistics of different widths", file=file, key=key, value=widths)
        return cls(**parts)

    @classmethod
    def concatenate(cls, parts: Sequence[Statistics]) -> Statistics:
        """Statistics of the vectors laid end to end."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def to_mapping(self) -> dict[str, list[float]]:
        """Lists by name, for JSON."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @property
    def width(self) -> int:
        """D."""
        return len(self.mean)


class Normalizer:
    """An invertible scaling of (..., D) vectors, fixed by statistics and a mode.

    `min_max` maps [min, max], and `q99` maps [q01, q99], to [-1, 1] (`q99` clamps to it); `mean_std` gives mean 0 and
    standard deviation 1. A dimension that never varies becomes 0, and comes back as its constant.
    """

    def __init__(self, statistics: Statistics, mode: NormalizationMode) -> None:
        if mode == "mean_std":
            center, scale = statistics.mean, statistics.std
        else:
            low, high = (statistics.min, statistics.max) if mode == "min_max" else (statistics.q01, statistics.q99)
            center, scale = (high + low) / 2, (high - low) / 2
        self.mode = mode
        self._center = center
        self._scale = scale
        self._inverse_scale = torch.where(scale > 0, 1 / scale, 0.0)

    @property
    def width(self) -> int:
        """D."""
        return len(self._center)

    def normalize(self, values: Tensor) -> Tensor:
        """Physical units to policy units, float32."""
        self._move(values.device)
        normalized = (values.float() - self._center) * self._inverse_scale
        return normalized.clamp(-1, 1) if self.mode == "q99" else normalized

    def unnormalize(self, values: Tensor) -> Tensor:
        """Policy units to physical units, float32; nothing is clamped."""
        self._move(values.device)
        return values.float() * self._scale + self._center

    def _move(self, device: torch.device) -> None:
        if self._center.device != device:
            self._center, self._scale, self._inverse_scale = (
                tensor.to(device) for tensor in (self._center, self._scale, self._inverse_scale)
            )
