from math import sqrt

import numpy as np
import pytest

from regrasp.logging.intervals import mean_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(8, 10, 0.490, 0.943), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)],
)
def test_published_values(successes, episodes, low, high):
    """Rows of R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3, and a textbook example."""
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize(("successes", "episodes"), [(0, 7), (3, 7), (7, 7), (137, 448)])
def test_bounds_solve_the_score_equation(successes, episodes):
    """Both bounds p satisfy (rate - p)^2 = z^2 p (1 - p) / n, the definition of the interval."""
    z = 2.5758293035489004
    rate = successes / episodes
    for bound in wilson_interval(successes, episodes, confidence=0.99):
        assert abs(rate - bound) == pytest.approx(z * sqrt(bound * (1 - bound) / episodes), abs=1e-12)


def test_covers_the_true_rate_about_as_often_as_promised():
    draws = np.random.default_rng(0).binomial(60, 0.9, size=2000)
    bounds = np.array([wilson_interval(int(draw), 60) for draw in draws])
    assert np.mean((bounds[:, 0] <= 0.9) & (bounds[:, 1] >= 0.9)) == pytest.approx(0.95, abs=0.025)


def test_no_episode_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "episodes", "confidence"), [(-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0)])
def test_impossible_arguments(successes, episodes, confidence):
    with pytest.raises(ValueError):
        wilson_interval(successes, episodes, confidence)


def test_the_mean_of_zeros_and_ones_has_wilsons_interval():
    assert mean_interval([1.0] * 8 + [0.0] * 2) == wilson_interval(8, 10)


def test_the_interval_of_a_mean_covers_it_about_as_often_as_promised():
    draws = np.random.default_rng(0).integers(0, 5, (2000, 60)).astype(float)
    bounds = np.array([mean_interval(row.tolist()) for row in draws])
    assert np.mean((bounds[:, 0] <= 2) & (bounds[:, 1] >= 2)) == pytest.approx(0.95, abs=0.02)
    np.testing.assert_allclose(bounds.mean(1), draws.mean(1))


def test_one_value_has_no_interval():
    with pytest.raises(ValueError):
        mean_interval([2.0])
