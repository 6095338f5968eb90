from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from regrasp.models.groot.processing.images import prepare_images


def triangle_weights(source: int, target: int) -> NDArray[np.float64]:
    """(target, source) rows of the antialiased linear filter, from its definition: pixel centres at .5, edges cut."""
    scale = source / target
    reach = max(scale, 1.0)
    rows = np.zeros((target, source))
    for i in range(target):
        centre = (i + 0.5) * scale
        for j in range(max(0, int(centre - reach)), min(source, int(centre + reach) + 1)):
            rows[i, j] = max(0.0, 1 - abs(j + 0.5 - centre) / reach)
    return rows / rows.sum(axis=1, keepdims=True)


def reference(image: NDArray[np.uint8], size: int, crop_scale: float) -> NDArray[np.float64]:
    """One image (H, W, 3) through crop and resize, in float64, before its fractions are cut off."""
    height, width = image.shape[:2]
    kept_height, kept_width = int(height * crop_scale), int(width * crop_scale)
    top, left = int(np.round((height - kept_height) / 2)), int(np.round((width - kept_width) / 2))
    cropped = image[top : top + kept_height, left : left + kept_width].astype(np.float64)
    rows, columns = triangle_weights(kept_height, size), triangle_weights(kept_width, size)
    return np.einsum("yh,hwc,xw->yxc", rows, cropped, columns, optimize=True)


def prepare(views: torch.Tensor, *, size: int, crop_scale: float) -> torch.Tensor:
    """(B, V, H, W, 3) through `prepare_images`."""
    return prepare_images(views.unbind(1), size=size, crop_scale=crop_scale)


def random_views(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 3), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("height", "width", "size", "crop_scale"),
    [(120, 160, 56, 0.95), (61, 37, 56, 0.95), (56, 56, 56, 0.95), (30, 90, 56, 1.0), (59, 59, 56, 0.95)],
)
def test_equals_the_definition(height, width, size, crop_scale):
    views = random_views(2, 2, height, width)
    prepared = prepare(views, size=size, crop_scale=crop_scale)
    assert prepared.shape == (2, 2, size, size, 3)
    assert prepared.dtype == torch.uint8
    for row in range(2):
        for view in range(2):
            exact = reference(views[row, view].numpy(), size, crop_scale)
            found = prepared[row, view].numpy()
            error = found - np.floor(exact)
            assert np.abs(error).max() <= 1
            # Only a value within rounding error of a whole number may come out on its other side.
            assert np.abs(exact - np.round(exact))[error != 0].max(initial=0) < 1e-3


def test_fractions_are_cut_off_not_rounded():
    views = torch.zeros(1, 1, 2, 2, 3, dtype=torch.uint8)
    views[..., 0, :] = 3
    prepared = prepare(views, size=1, crop_scale=1.0)
    assert prepared.flatten().tolist() == [1, 1, 1]


def test_offset_of_an_odd_margin_is_rounded_half_to_even():
    views = torch.arange(31, dtype=torch.uint8).view(1, 1, 1, 31, 1).expand(1, 1, 31, 31, 3).contiguous()
    assert prepare(views, size=28, crop_scale=0.91)[0, 0, 0, :, 0].tolist() == list(range(2, 30))
    assert prepare(views, size=30, crop_scale=0.97)[0, 0, 0, :, 0].tolist() == list(range(30))


def test_nothing_to_do_returns_the_images():
    views = random_views(2, 1, 28, 28)
    assert torch.equal(prepare(views, size=28, crop_scale=1.0), views)


def test_constant_images_keep_their_value():
    for value in (0, 1, 127, 254, 255):
        views = torch.full((1, 1, 47, 33, 3), value, dtype=torch.uint8)
        prepared = prepare(views, size=28, crop_scale=0.95).int()
        assert (prepared - value).abs().max() <= 1


def test_an_image_does_not_depend_on_its_batch():
    views = random_views(3, 2, 480, 640)
    together = prepare(views, size=28, crop_scale=0.95)
    alone = prepare(views[1:2], size=28, crop_scale=0.95)
    assert torch.equal(together[1:2], alone)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_images():
    views = random_views(4, 3, 480, 640)
    found = prepare(views.cuda(), size=224, crop_scale=0.95)
    expected = prepare(views, size=224, crop_scale=0.95)
    assert found.is_cuda
    assert (found.cpu().int() - expected.int()).abs().max() <= 1
