"""Statistics of a dataset, `stats.json`, by the arithmetic of LeRobot's `compute_stats`.

Quantiles are read off a histogram of each episode, and those of a dataset are the means of its episodes' weighted by
their frames: approximations, which programs that train on such a dataset expect. Regrasp normalises by the values
themselves (`regrasp.models.normalization`).

Source: lerobot/datasets/compute_stats.py of LeRobot 0.4. Of images its standard deviation overflows 8 bits; here it is
that of the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Statistics = dict[str, list[Any]]
"""min, max, mean, std, q01, q10, q50, q90, q99 and count of one feature, as plain JSON numbers."""

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_NUM_BINS = 5000
"""Of the histogram between an episode's smallest and largest value."""
_MARGIN = 1e-10
"""By which the histogram is wider, on each side."""
_LARGE_IMAGE, _SMALL_IMAGE = 300, 150
"""An image with a side of at least the first is thinned to about the second."""


def compute_statistics(array: np.ndarray) -> Statistics:
    """Statistics of each column of an episode, in float64.

    Args:
        array: (N, D) numbers or bools, or (N,) for a scalar feature; N >= 1.

    Returns:
        Lists of D floats, and `count` as [N]. `std` is the population's (divided by N).

    Raises:
        ValueError: If the array is empty, has another rank, or holds a number that is not finite.
    """
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(f"statistics need an array (N, D) or (N,) that is not empty, not shape {array.shape}")
    columns = array.reshape(len(array), -1).astype(np.float64)
    if not np.isfinite(columns).all():
        raise ValueError("statistics of an array that holds NaN or infinity")
    weights = np.ones(len(columns))
    parts = [_weighted(column, weights) for column in columns.T]
    return {**{key: [part[key] for part in parts] for key in parts[0]}, "count": [len(columns)]}


def image_statistics(images: np.ndarray) -> Statistics:
    """Statistics in [0, 1] of some images of an episode, each of shape (3, 1, 1); `count` is how many were looked at.

    Args:
        images: (N, H, W, 3) uint8; N >= 1.

    Raises:
        ValueError: If they are no such images.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or images.size == 0:
        raise ValueError(f"expected (N, H, W, 3) uint8 images, not {images.dtype} {images.shape}")
    rows = sample_rows(len(images))
    sides = images.shape[1:3]
    thin = max(sides) // _SMALL_IMAGE if max(sides) >= _LARGE_IMAGE else 1
    seen = images[rows][:, ::thin, ::thin]
    levels = np.arange(256.0)
    counts = [np.bincount(seen[..., channel].ravel(), minlength=256) for channel in range(3)]
    parts = [_weighted(levels[count > 0], count[count > 0].astype(np.float64)) for count in counts]
    values = {key: [[[part[key] / 255.0]] for part in parts] for key in parts[0]}
    return {**values, "count": [len(rows)]}


def combined_statistics(episodes: Sequence[Statistics]) -> Statistics:
    """Statistics of a feature over all episodes, from those of each; at least one."""
    counts = np.array([episode["count"][0] for episode in episodes], dtype=np.float64)
    stacked = {key: np.array([episode[key] for episode in episodes], dtype=np.float64) for key in episodes[0]}

    def mean(values: np.ndarray) -> np.ndarray:
        return np.tensordot(counts, values, axes=1) / counts.sum()

    center = mean(stacked["mean"])
    combined = {
        "min": stacked["min"].min(axis=0),
        "max": stacked["max"].max(axis=0),
        "mean": center,
        "std": np.sqrt(mean(stacked["std"] ** 2 + (stacked["mean"] - center) ** 2)),
        **{name: mean(stacked[name]) for name in QUANTILES},
    }
    return {**{key: value.tolist() for key, value in combined.items()}, "count": [int(counts.sum())]}


def sample_rows(num_rows: int) -> np.ndarray:
    """Indices of the images of an episode that statistics look at: all of 100, 177 of 1,000, never above 10,000."""
    num_samples = max(min(num_rows, 100), min(int(num_rows**0.75), 10_000))
    return np.round(np.linspace(0, num_rows - 1, num_samples)).astype(np.int64)


def _weighted(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Statistics of numbers (N,) that occur `weights` times."""
    total = weights.sum()
    mean = values @ weights / total
    low, high = values.min(), values.max()
    edges = np.linspace(low - _MARGIN, high + _MARGIN, _NUM_BINS + 1)
    cumulative = np.histogram(values, edges, weights=weights)[0].cumsum()
    return {
        "min": float(low),
        "max": float(high),
        "mean": float(mean),
        "std": float(np.sqrt((values - mean) ** 2 @ weights / total)),
        **{
            name: float(_quantile(cumulative, edges, q * total) if total > 1 else mean) for name, q in QUANTILES.items()
        },
    }


def _quantile(cumulative: np.ndarray, edges: np.ndarray, rank: float) -> float:
    """The value below which `rank` values lie, linear within its bin; the left edge where it is in the first."""
    index = int(np.searchsorted(cumulative, rank))
    if index == 0:
        return edges[0]
    fraction = (rank - cumulative[index - 1]) / (cumulative[index] - cumulative[index - 1])
    return edges[index] + fraction * (edges[index + 1] - edges[index])
