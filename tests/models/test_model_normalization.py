from __future__ import annotations

import numpy as np
import pytest
import torch

from regrasp.config.types import NormalizationMode
from regrasp.errors import UserError
from regrasp.models.normalization import Concatenation, Normalizer, Statistics

AFFINE: tuple[NormalizationMode, ...] = ("min_max", "q99", "mean_std")
SAMPLES = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.0]) + 2.0


def test_statistics_agree_with_numpy():
    array = SAMPLES.numpy().astype(np.float64)
    statistics = Statistics.of(SAMPLES)
    expected = {
        "max": array.max(0),
        "min": array.min(0),
        "mean": array.mean(0),
        "std": array.std(0),
        "q01": np.percentile(array, 1, axis=0),
        "q99": np.percentile(array, 99, axis=0),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(statistics, name).numpy(), value, rtol=1e-5, atol=1e-6)


def test_min_max_covers_minus_one_to_one_and_constants_become_zero():
    normalized = Normalizer(Statistics.of(SAMPLES), "min_max").normalize(SAMPLES)
    torch.testing.assert_close(normalized.amax(0), torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(normalized.amin(0), torch.tensor([-1.0, -1.0, 0.0]))


def test_mean_std_standardises():
    normalized = Normalizer(Statistics.of(SAMPLES), "mean_std").normalize(SAMPLES)[:, :2]
    torch.testing.assert_close(normalized.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized.std(0, correction=0), torch.ones(2))


@pytest.mark.parametrize(("mode", "seen"), [("min_max", [0.0, 0.0]), ("q99", [0.4, 1.0]), ("mean_std", [0.4, 7.0])])
def test_a_constant_dimension_is_treated_as_the_published_transforms_do(mode, seen):
    constant = Normalizer(Statistics.of(torch.full((5, 2), 3.0)), mode)
    assert constant.normalize(torch.tensor([0.4, 7.0])).tolist() == pytest.approx(seen)
    assert constant.unnormalize(torch.tensor([0.4, 7.0])).tolist() == [3.0, 3.0]


def test_binary_is_a_threshold_both_ways():
    binary = Normalizer(Statistics.identity(4), "binary")
    values = torch.tensor([-1.0, 0.5, 0.51, 3.0])
    assert binary.normalize(values).tolist() == binary.unnormalize(values).tolist() == [0.0, 0.0, 1.0, 1.0]


def test_sin_cos_gives_all_sines_and_then_all_cosines():
    angles = torch.tensor([[0.0, np.pi / 2], [np.pi / 6, np.pi]])
    wide = Normalizer(Statistics.identity(2), "sin_cos")
    assert (wide.width, wide.normalized_width) == (2, 4)
    expected = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.5, 0.0, 3**0.5 / 2, -1.0]])
    torch.testing.assert_close(wide.normalize(angles), expected)
    with pytest.raises(ValueError, match="sines"):
        wide.unnormalize(expected)


def test_none_changes_nothing():
    raw = Normalizer(Statistics.of(SAMPLES), "none")
    assert torch.equal(raw.normalize(SAMPLES), SAMPLES)
    assert torch.equal(raw.unnormalize(SAMPLES), SAMPLES)


def test_a_concatenation_scales_each_part_by_its_own_rule():
    first, second = Normalizer(Statistics.identity(1), "sin_cos"), Normalizer(Statistics.of(SAMPLES), "min_max")
    both = Concatenation([first, second])
    assert (both.width, both.normalized_width) == (4, 5)
    values = torch.cat([torch.zeros(len(SAMPLES), 1), SAMPLES], 1)
    expected = torch.cat([torch.tensor([0.0, 1.0]).expand(len(SAMPLES), 2), second.normalize(SAMPLES)], 1)
    assert torch.equal(both.normalize(values), expected)
    back = Concatenation([second, second])
    twice = torch.cat([SAMPLES, SAMPLES], 1)
    torch.testing.assert_close(back.unnormalize(back.normalize(twice)), twice)


def test_q99_clamps_when_normalising_only():
    normalizer = Normalizer(Statistics.of(SAMPLES), "q99")
    normalized = normalizer.normalize(SAMPLES)
    assert normalized.abs().max() == 1.0
    outside = normalizer.unnormalize(torch.full((1, 3), 3.0))
    statistics = Statistics.of(SAMPLES)
    torch.testing.assert_close(outside[0], statistics.q01 + 2 * (statistics.q99 - statistics.q01))


@pytest.mark.parametrize("mode", AFFINE)
def test_inverse(mode):
    normalizer = Normalizer(Statistics.of(SAMPLES), mode)
    statistics = Statistics.of(SAMPLES)
    inside = SAMPLES.clamp(statistics.q01, statistics.q99)
    torch.testing.assert_close(normalizer.unnormalize(normalizer.normalize(inside)), inside, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", AFFINE)
def test_identity_statistics_change_nothing(mode):
    normalizer = Normalizer(Statistics.identity(3), mode)
    values = torch.rand(4, 3) * 2 - 1
    assert torch.equal(normalizer.normalize(values), values)
    assert torch.equal(normalizer.unnormalize(values), values)


def test_columns_are_the_statistics_of_a_part():
    part, expected = Statistics.of(SAMPLES).columns(1, 3), Statistics.of(SAMPLES[:, 1:3])
    assert part.to_mapping() == expected.to_mapping()


def test_mapping_round_trip_and_missing_statistic():
    statistics = Statistics.of(SAMPLES)
    mapping = statistics.to_mapping() | {"count": [200]}
    assert torch.equal(Statistics.from_mapping(mapping).q01, statistics.q01)
    del mapping["q99"]
    with pytest.raises(UserError, match="q99"):
        Statistics.from_mapping(mapping, key="state")


def test_statistics_of_different_widths_are_refused():
    with pytest.raises(UserError, match="as many numbers"):
        Statistics.from_mapping(Statistics.identity(2).to_mapping() | {"max": [1.0]})


@pytest.mark.parametrize("mode", AFFINE)
@pytest.mark.parametrize("center", [0.0, 0.5, -300.0])
def test_noise_is_taken_as_constant(mode: NormalizationMode, center: float) -> None:
    noise = center + max(abs(center), 0.1) * 1e-6 * torch.tensor([[0.0], [1.0], [2.0]])
    statistics = Statistics.of(noise)
    assert statistics.min == statistics.max == statistics.mean == statistics.q01 == statistics.q99
    assert statistics.std == 0
    moved = Normalizer(statistics, mode).normalize(noise[:1] + 1e-2) - Normalizer(statistics, mode).normalize(noise[:1])
    assert moved.abs() < 0.0101
    assert Statistics.of(center + torch.tensor([[0.0], [1e-2]])).std > 0
