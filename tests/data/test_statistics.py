"""Statistics against NumPy on the raw values."""

from __future__ import annotations

import json

import numpy as np
import pytest

from regrasp.data.statistics import ImageStatistics, compute_statistics, sample_rows

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def test_columns_agree_with_numpy() -> None:
    array = np.random.default_rng(0).normal(3.0, 2.0, size=(137, 4)).astype(np.float32)
    stats = compute_statistics(array)
    wide = array.astype(np.float64)
    np.testing.assert_array_equal(stats["min"], array.min(axis=0))
    np.testing.assert_array_equal(stats["max"], array.max(axis=0))
    np.testing.assert_allclose(stats["mean"], wide.mean(axis=0))
    np.testing.assert_allclose(stats["std"], wide.std(axis=0))
    for name, q in QUANTILES.items():
        np.testing.assert_allclose(stats[name], np.quantile(wide, q, axis=0))
    assert stats["count"] == [137]
    assert json.loads(json.dumps(stats)) == stats


def test_scalars_and_bools_give_lists_of_one() -> None:
    stats = compute_statistics(np.array([False, True, True, True]))
    assert stats["mean"] == [0.75]
    assert stats["min"] == [0.0]
    assert stats["count"] == [4]


@pytest.mark.parametrize("array", [np.zeros((0, 3)), np.zeros((2, 2, 2)), np.array([1.0, np.nan]), np.array([np.inf])])
def test_unusable_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="statistics"):
        compute_statistics(array)


def test_images_agree_with_numpy_over_all_pixels() -> None:
    rng = np.random.default_rng(1)
    batches = [rng.integers(low, 200, size=(n, 6, 10, 3), dtype=np.uint8) for low, n in ((0, 3), (90, 5))]
    total = ImageStatistics()
    for batch in batches:
        part = ImageStatistics()
        part.add(batch)
        total.merge(part)
    stats = total.statistics()
    pixels = np.concatenate(batches).reshape(-1, 3) / 255.0
    for name, expected in {
        "min": pixels.min(axis=0),
        "max": pixels.max(axis=0),
        "mean": pixels.mean(axis=0),
        "std": pixels.std(axis=0),
        **{name: np.quantile(pixels, q, axis=0) for name, q in QUANTILES.items()},
    }.items():
        assert np.shape(stats[name]) == (3, 1, 1)
        np.testing.assert_allclose(np.ravel(stats[name]), expected, atol=1e-12, err_msg=name)
    assert stats["count"] == [8]


def test_image_statistics_refuse_floats_and_nothing() -> None:
    with pytest.raises(ValueError, match="uint8"):
        ImageStatistics().add(np.zeros((1, 2, 2, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="no image"):
        ImageStatistics().statistics()


def test_sampled_rows_span_everything_once() -> None:
    assert sample_rows(3, 32).tolist() == [0, 1, 2]
    rows = sample_rows(1000, 32)
    assert len(rows) == 32
    assert (rows[0], rows[-1]) == (0, 999)
    assert (np.diff(rows) > 0).all()
