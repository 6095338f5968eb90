"""Normalisation of states and actions by the statistics of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from regrasp.config.types import NormalizationMode
from regrasp.errors import UserError

_NOISE, _SMALL = 1e-5, 0.1
"""A range beside its magnitude, and the smallest magnitude that counts."""
_FLOAT32_MAX = torch.finfo(torch.float32).max


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
        """Statistics of samples (N, D); population standard deviation, linearly interpolated percentiles.

        A dimension whose range is at most 1e-5 of its largest magnitude, or 1e-6, is noise, and taken as constant:
        scaled to the network's range it would turn the next deviation into a value far outside what was trained on.
        """
        values = samples.double()
        extent = values.amax(0) - values.amin(0)
        is_noise = extent <= _NOISE * values.abs().amax(0).clamp(min=_SMALL)
        values = torch.where(is_noise & (extent > 0), values.mean(0), values)
        quantiles = torch.quantile(values, torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
        parts = (values.amax(0), values.amin(0), values.mean(0), values.std(0, correction=0), *quantiles)
        return cls(*(part.float() for part in parts))

    @classmethod
    def identity(cls, width: int) -> Statistics:
        """Statistics under which every affine mode leaves values as they are."""
        return cls.bounds(torch.ones(width))

    @classmethod
    def bounds(cls, limit: Tensor) -> Statistics:
        """Statistics of values (D,) between -limit and limit, where nothing else is known."""
        return cls(max=limit, min=-limit, mean=torch.zeros_like(limit), std=limit, q01=-limit, q99=limit)

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Sequence[float]], *, file: Any = None, key: str = "", width: int | None = None
    ) -> Statistics:
        """Read lists by name; further entries are left alone.

        Args:
            mapping: The lists.
            file: Where they stand, for errors.
            key: Of the mapping there.
            width: Of the lists, all finite; None: whatever they are.

        Raises:
            UserError: A statistic is missing, or is no list of as many numbers as the others.
        """
        names = [field.name for field in fields(cls)]
        for name in names:
            values: Any = mapping.get(name) if isinstance(mapping, Mapping) else None
            is_list = isinstance(values, Sequence) and all(type(value) in (int, float) for value in values)
            is_finite = width is None or (is_list and all(abs(value) < _FLOAT32_MAX for value in values))
            if not (is_list and is_finite) or len(values) != (width or len(mapping[names[0]])):
                many = "as many" if width is None else f"{width} finite"
                place, expected = f"{key}.{name}", f"lists of {many} numbers: {', '.join(names)}"
                raise UserError("Not a list of numbers", file=file, key=place, value=values, expected=expected)
        return cls(*(torch.tensor(mapping[name], dtype=torch.float32) for name in names))

    def columns(self, start: int, stop: int) -> Statistics:
        """Statistics of a part of the vector."""
        return type(self)(*(getattr(self, field.name)[start:stop] for field in fields(self)))

    def to_mapping(self) -> dict[str, list[float]]:
        """Lists by name, for JSON."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @property
    def width(self) -> int:
        """D."""
        return len(self.mean)

    @property
    def is_identity(self) -> bool:
        """Whether these are of no data, but those of `identity`."""
        values = {"max": 1, "min": -1, "mean": 0, "std": 1, "q01": -1, "q99": 1}
        return all(bool((getattr(self, name) == value).all()) for name, value in values.items())


class Scaling(Protocol):
    """From physical units (..., width) to what a network sees (..., normalized_width), and back."""

    width: int
    normalized_width: int

    def normalize(self, values: Tensor) -> Tensor:
        """Physical units to policy units, float32."""
        ...

    def unnormalize(self, values: Tensor) -> Tensor:
        """Policy units to physical units, float32."""
        ...


class Normalizer:
    """Scaling of (..., D) vectors, fixed by statistics and a mode, with the arithmetic of GR00T's transforms.

    `min_max` maps [min, max], and `q99` maps [q01, q99], to [-1, 1] (`q99` clamps to it); `mean_std` gives mean 0 and
    standard deviation 1. A dimension that never varies becomes 0 with `min_max`, passes as it is with the other two,
    and comes back as its constant. `binary` is 1 above 0.5, else 0, both ways. `sin_cos` gives all sines, then all
    cosines, and has no way back. `none` changes nothing.
    """

    def __init__(self, statistics: Statistics, mode: NormalizationMode) -> None:
        self.mode: NormalizationMode = mode
        self.width = statistics.width
        self.normalized_width = 2 * self.width if mode == "sin_cos" else self.width
        self._center, self._scale = _affine(statistics, mode)
        constant = self._scale == 0
        passes = constant & (mode in ("q99", "mean_std"))
        self._offset = self._center.masked_fill(passes, 0)
        self._gain = torch.where(constant, passes.float(), 1 / self._scale)

    @property
    def is_finite(self) -> bool:
        """Whether the statistics that the mode uses are numbers."""
        uses_none = self.mode in ("binary", "sin_cos", "none")
        return uses_none or bool((self._center.isfinite() & self._scale.isfinite()).all())

    def normalize(self, values: Tensor) -> Tensor:
        """Physical units to policy units, float32."""
        values = values.float()
        match self.mode:
            case "none":
                return values
            case "binary":
                return (values > 0.5).float()
            case "sin_cos":
                return torch.cat([values.sin(), values.cos()], -1)
        self._move(values.device)
        normalized = (values - self._offset) * self._gain
        return normalized.clamp(-1, 1) if self.mode == "q99" else normalized

    def unnormalize(self, values: Tensor) -> Tensor:
        """Policy units to physical units, float32; nothing is clamped.

        Raises:
            ValueError: The mode is `sin_cos`.
        """
        values = values.float()
        match self.mode:
            case "none":
                return values
            case "binary":
                return (values > 0.5).float()
            case "sin_cos":
                raise ValueError("sines and cosines are not turned back into angles")
        self._move(values.device)
        return values * self._scale + self._center

    def _move(self, device: torch.device) -> None:
        if self._center.device != device:
            self._center, self._scale, self._offset, self._gain = (
                tensor.to(device) for tensor in (self._center, self._scale, self._offset, self._gain)
            )


class Concatenation:
    """Scaling of vectors laid end to end, each by its own rule."""

    def __init__(self, parts: Sequence[Scaling]) -> None:
        self.parts = tuple(parts)
        self.width = sum(part.width for part in parts)
        self.normalized_width = sum(part.normalized_width for part in parts)

    def normalize(self, values: Tensor) -> Tensor:
        """Physical units (..., width) to policy units (..., normalized_width)."""
        pieces = values.split([part.width for part in self.parts], -1)
        return torch.cat([part.normalize(piece) for part, piece in zip(self.parts, pieces, strict=True)], -1)

    def unnormalize(self, values: Tensor) -> Tensor:
        """Policy units (..., normalized_width) to physical units (..., width)."""
        pieces = values.split([part.normalized_width for part in self.parts], -1)
        return torch.cat([part.unnormalize(piece) for part, piece in zip(self.parts, pieces, strict=True)], -1)


def _affine(statistics: Statistics, mode: NormalizationMode) -> tuple[Tensor, Tensor]:
    """Center and scale (D,) of the affine modes; the other modes have no use for them."""
    if mode == "mean_std":
        return statistics.mean, statistics.std
    low, high = (statistics.q01, statistics.q99) if mode == "q99" else (statistics.min, statistics.max)
    return (high + low) / 2, (high - low) / 2
