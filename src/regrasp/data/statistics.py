"""Normalisation statistics in the shape of LeRobot's `stats.json`."""

from __future__ import annotations

from typing import Any

import numpy as np

Statistics = dict[str, list[Any]]
"""min, max, mean, std, q01, q10, q50, q90, q99 and count of one feature, as plain JSON numbers."""

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def compute_statistics(array: np.ndarray) -> Statistics:
    """Statistics of each column, in float64.

    `std` is the population's (divided by N). Quantiles interpolate linearly between order statistics.

    Args:
        array: (N, D) numbers or bools, or (N,) for a scalar feature; N >= 1.

    Returns:
        Lists of D floats, and `count` as [N].

    Raises:
        ValueError: If the array is empty, has another rank, or holds a number that is not finite.
    """
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(f"statistics need an array (N, D) or (N,) that is not empty, not shape {array.shape}")
    columns = array.reshape(len(array), -1).astype(np.float64)
    if not np.isfinite(columns).all():
        raise ValueError("statistics of an array that holds NaN or infinity")
    quantiles = np.quantile(columns, list(QUANTILES.values()), axis=0)
    return {
        "min": columns.min(axis=0).tolist(),
        "max": columns.max(axis=0).tolist(),
        "mean": columns.mean(axis=0).tolist(),
        "std": columns.std(axis=0).tolist(),
        **{name: row.tolist() for name, row in zip(QUANTILES, quantiles, strict=True)},
        "count": [len(columns)],
    }


class ImageStatistics:
    """Per-channel statistics of 8-bit images, accumulated as histograms.

    256 bins hold every value exactly, so quantiles over any number of images are those of all their pixels.
    """

    def __init__(self) -> None:
        self.histogram = np.zeros((3, 256), dtype=np.int64)
        self.num_images = 0

    def add(self, images: np.ndarray) -> None:
        """Count the pixels of `images`, (N, H, W, 3) uint8."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"expected (N, H, W, 3) uint8 images, not {images.dtype} {images.shape}")
        for channel in range(3):
            self.histogram[channel] += np.bincount(images[..., channel].ravel(), minlength=256)
        self.num_images += len(images)

    def merge(self, other: ImageStatistics) -> None:
        """Add everything that `other` has counted."""
        self.histogram += other.histogram
        self.num_images += other.num_images

    def statistics(self) -> Statistics:
        """Statistics in [0, 1], each of shape (3, 1, 1); `count` is the number of images.

        Raises:
            ValueError: If no image was added.
        """
        if self.num_images == 0:
            raise ValueError("statistics of no image")
        levels = np.arange(256) / 255.0
        pixels = int(self.histogram[0].sum())
        mean = self.histogram @ levels / pixels
        variance = (self.histogram * (levels - mean[:, None]) ** 2).sum(axis=1) / pixels
        cumulative = self.histogram.cumsum(axis=1)
        values = {
            "min": _order_statistic(cumulative, 0) / 255.0,
            "max": _order_statistic(cumulative, pixels - 1) / 255.0,
            "mean": mean,
            "std": np.sqrt(variance),
            **{name: _quantile(cumulative, q) / 255.0 for name, q in QUANTILES.items()},
        }
        return {
            **{name: value.reshape(3, 1, 1).tolist() for name, value in values.items()},
            "count": [self.num_images],
        }


def sample_rows(num_rows: int, num_samples: int) -> np.ndarray:
    """Indices of at most `num_samples` rows, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, num_rows - 1, min(num_rows, num_samples)).round().astype(np.int64))


def _quantile(cumulative: np.ndarray, quantile: float) -> np.ndarray:
    """(3,) quantiles, linear between order statistics, of histograms given by their cumulative counts (3, 256)."""
    position = quantile * (int(cumulative[0, -1]) - 1)
    lower = int(position)
    low = _order_statistic(cumulative, lower)
    high = _order_statistic(cumulative, min(lower + 1, int(cumulative[0, -1]) - 1))
    return low + (position - lower) * (high - low)


def _order_statistic(cumulative: np.ndarray, rank: int) -> np.ndarray:
    """(3,) levels of the pixel with this rank, counted from 0, in each channel."""
    return np.array([np.searchsorted(row, rank, side="right") for row in cumulative], dtype=np.float64)
