"""Statistics against NumPy on the values, and against what LeRobot 0.4.4 made of the same arrays."""

from __future__ import annotations

import json

import numpy as np
import pytest

from regrasp.data.statistics import combined_statistics, compute_statistics, image_statistics, sample_rows

# aggregate_stats of compute_episode_stats, episodes of 1, 9 and 140 frames
LEROBOT_VECTORS = {
    "q01": [-0.932428237, -0.0, 0.25],
    "q10": [-0.883299976, 1.586898133, 0.25],
    "q50": [0.090390968, 44.47881744, 0.25],
    "q90": [0.952646771, 145.888757888, 0.25],
    "q99": [0.992451831, 177.792629762, 0.25],
}
LEROBOT_IMAGES = {
    "q01": [0.007923649, -0.0, 0.035294118],
    "q10": [0.101836303, -0.0, 0.035294118],
    "q50": [0.501825284, 0.313727119, 0.035294118],
    "q90": [0.898168896, 0.690090806, 0.035294118],
    "q99": [0.992075254, 0.752932505, 0.035294118],
}


def wave(length: int) -> np.ndarray:
    t = np.arange(length)
    return np.stack([np.sin(t / 3), t**2 / 100, np.full(length, 0.25)], axis=1)


def test_vectors_of_several_episodes() -> None:
    episodes = [wave(length) for length in (1, 9, 140)]
    stats = combined_statistics([compute_statistics(episode) for episode in episodes])
    array = np.concatenate(episodes)
    for name, expected in {
        "min": array.min(axis=0),
        "max": array.max(axis=0),
        "mean": array.mean(axis=0),
        "std": array.std(axis=0),
        **LEROBOT_VECTORS,
    }.items():
        np.testing.assert_allclose(stats[name], expected, atol=1e-8, err_msg=name)
    assert stats["count"] == [150]
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


def test_large_images_are_thinned_and_sampled() -> None:
    y, x = np.mgrid[0:310, 0:20]
    images = np.stack(
        [np.stack([(x * 7 + y + k * 5) % 256, (x * y) % 200, np.full_like(x, 9)], -1) for k in range(120)]
    ).astype(np.uint8)
    stats = image_statistics(images)
    seen = images[sample_rows(120)][:, ::2, ::2].reshape(-1, 3) / 255
    for name, expected in {
        "min": seen.min(axis=0),
        "max": seen.max(axis=0),
        "mean": seen.mean(axis=0),
        "std": seen.std(axis=0),
        **LEROBOT_IMAGES,
    }.items():
        assert np.shape(stats[name]) == (3, 1, 1)
        np.testing.assert_allclose(np.ravel(stats[name]), expected, atol=1e-8, err_msg=name)
    assert stats["count"] == [100]


@pytest.mark.parametrize(
    "images", [np.zeros((1, 2, 2, 3), dtype=np.float32), np.zeros((0, 2, 2, 3), dtype=np.uint8)], ids=["floats", "none"]
)
def test_what_is_no_image_is_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        image_statistics(images)


@pytest.mark.parametrize(("length", "number"), [(3, 3), (100, 100), (477, 102), (1000, 177), (300_000, 10_000)])
def test_sampled_rows_span_everything_once(length: int, number: int) -> None:
    rows = sample_rows(length)
    assert (len(rows), rows[0], rows[-1]) == (number, 0, length - 1)
    assert (np.diff(rows) > 0).all()
