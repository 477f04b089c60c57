"""Filters as matrices against SciPy's and against a window moved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from eguot_train.blur import box, gaussian


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape)


@pytest.mark.parametrize(("sigma", "radius"), [(1.5, 5), (4.34, 10), (0.7, 2)])
@pytest.mark.parametrize("size", [(16, 31), (40, 12), (11, 11)])
def test_gaussian_reflects_as_scipy_does(sigma: float, radius: int, size: tuple[int, int]) -> None:
    image = picture(2, 3, *size)
    found = gaussian(torch.from_numpy(image), sigma, radius).numpy()
    expected = ndimage.gaussian_filter(image, (0, 0, sigma, sigma), mode="mirror", radius=(0, 0, radius, radius))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_gaussian_cropped_is_the_inside() -> None:
    image = picture(1, 2, 20, 27)
    inside = gaussian(torch.from_numpy(image), 1.5, 5)[..., 5:-5, 5:-5]
    torch.testing.assert_close(gaussian(torch.from_numpy(image), 1.5, 5, "crop"), inside)


@pytest.mark.parametrize("window", [1, 3, 15])
@pytest.mark.parametrize("size", [(9, 14), (24, 6)])
def test_box_averages_what_lies_inside(window: int, size: tuple[int, int]) -> None:
    image, half = picture(1, 1, *size), window // 2
    found = box(torch.from_numpy(image), window).numpy()
    for y in range(size[0]):
        for x in range(size[1]):
            inside = image[0, 0, max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
            assert found[0, 0, y, x] == pytest.approx(inside.mean(), abs=1e-12)


def test_filters_keep_constants_dtype_and_gradients() -> None:
    flat = torch.full((1, 3, 12, 12), 0.3, requires_grad=True)
    for filtered in (gaussian(flat, 2.0, 4), gaussian(flat, 2.0, 4, "crop"), box(flat, 5)):
        assert filtered.dtype == torch.float32
        torch.testing.assert_close(filtered, torch.full_like(filtered, 0.3))
        (gradient,) = torch.autograd.grad(filtered.sum(), flat)
        assert float(gradient.sum()) == pytest.approx(filtered.numel(), rel=1e-5)
