"""Confidence intervals of success rates and of means."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist, fmean, variance


def wilson_interval(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a binomial proportion.

    Unlike the normal approximation it stays inside [0, 1] and keeps its coverage near 0 and 1 and for few episodes.
    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927);
    recommended by Brown, Cai and DasGupta, "Interval Estimation for a Binomial Proportion", Stat. Sci. 16 (2001).

    Args:
        successes: Number of successful episodes.
        episodes: Number of independent episodes; 0 says nothing, so the interval is then (0, 1).
        confidence: Two-sided confidence level in (0, 1).

    Returns:
        Lower and upper bound of the success rate, both in [0, 1].
    """
    if not 0 <= successes <= episodes:
        raise ValueError(f"need 0 <= successes <= episodes, found {successes} of {episodes}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), found {confidence}")
    if episodes == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate = successes / episodes
    shrink = 1 + z * z / episodes
    centre = (rate + z * z / (2 * episodes)) / shrink
    half = z / shrink * sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes * episodes))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == episodes else centre + half
    return low, high


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of independent values: Wilson's where all are 0 or 1, else the normal approximation.

    Args:
        values: One per episode; at least two.
        confidence: Two-sided confidence level in (0, 1).

    Returns:
        Lower and upper bound of the mean.
    """
    if len(values) < 2:
        raise ValueError(f"the spread of {len(values)} values is unknown")
    if set(values) <= {0.0, 1.0}:
        return wilson_interval(round(sum(values)), len(values), confidence)
    mean = fmean(values)
    half = NormalDist().inv_cdf((1 + confidence) / 2) * sqrt(variance(values) / len(values))
    return mean - half, mean + half
