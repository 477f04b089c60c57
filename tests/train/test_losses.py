"""Losses between rendering and truth against scikit-image and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from eguot_train.data.scenes import make_scene
from eguot_train.losses import charbonnier, ms_ssim, pair_loss, ssim, supervised_loss


def scenes(first: int, size: tuple[int, int] = (40, 52)) -> Tensor:
    stacked = np.stack([make_scene(first + i, *size) for i in range(3)])
    return torch.from_numpy(stacked.astype(np.float64) / 255).permute(0, 3, 1, 2)


def test_ssim_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a = scenes(0)
    for b in (scenes(5), (a + 0.05 * torch.randn(a.shape, dtype=a.dtype, generator=torch.manual_seed(0))).clamp(0, 1)):
        for i in range(3):
            # Its mean leaves out a border of the window's radius, ours does no padding: the same pixels.
            expected = metrics.structural_similarity(
                a[i].numpy(), b[i].numpy(), channel_axis=0, data_range=1.0,
                gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
            )  # fmt: skip
            assert float(ssim(a, b)[i]) == pytest.approx(expected, abs=1e-6)


def reference_ms_ssim(a: np.ndarray, b: np.ndarray, weights: list[float]) -> float:
    """Of one channel, after Wang et al. 2003: contrast-structure of every scale, luminance of the coarsest alone."""
    gaussian_filter = pytest.importorskip("scipy.ndimage").gaussian_filter
    score = 1.0
    for scale, weight in enumerate(weights):
        if scale:
            a, b = (x[: x.shape[0] // 2 * 2, : x.shape[1] // 2 * 2] for x in (a, b))
            a, b = ((x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4 for x in (a, b))
        ma, mb, aa, bb, ab = (
            gaussian_filter(x, 1.5, truncate=3.5)[5:-5, 5:-5] for x in (a, b, a * a, b * b, a * b)
        )  # fmt: skip
        value = (2 * (ab - ma * mb) + 0.03**2) / (aa - ma**2 + bb - mb**2 + 0.03**2)
        if scale == len(weights) - 1:
            value = value * (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
        score *= value.mean() ** weight
    return score


@pytest.mark.parametrize(("size", "scales"), [((176, 190), 5), ((64, 80), 3), ((12, 30), 1)])
def test_ms_ssim_is_that_of_the_definition(size: tuple[int, int], scales: int) -> None:
    a = scenes(0, size)
    b = (a + 0.05 * torch.randn(a.shape, dtype=a.dtype, generator=torch.manual_seed(0))).clamp(0, 1)
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    for i in range(3):
        channels = [
            reference_ms_ssim(a[i, c].numpy(), b[i, c].numpy(), list(weights / weights.sum())) for c in range(3)
        ]
        assert float(ms_ssim(a, b)[i]) == pytest.approx(np.mean(channels), abs=1e-9)
    torch.testing.assert_close(ms_ssim(a, a), torch.ones(3, dtype=a.dtype))


def test_equal_pictures_cost_nothing() -> None:
    a = scenes(0)
    torch.testing.assert_close(ssim(a, a), torch.ones(3, dtype=a.dtype))
    assert charbonnier(a, a).max() == pytest.approx(1e-3)
    assert pair_loss(a, a).max() == pytest.approx(1.5e-3)
    assert supervised_loss(a, a).max() == pytest.approx(0, abs=1e-12)


def test_closed_forms() -> None:
    a = scenes(0)
    np.testing.assert_allclose(charbonnier(a, a + 0.3), np.sqrt(0.09 + 1e-6))
    np.testing.assert_allclose(supervised_loss(a, a + 0.3), 0.3 + 0.15 * (1 - ssim(a, a + 0.3)))
    grey = np.sqrt(0.09 + 1e-6) + 0.4 * (1 - ssim(a, a + 0.3)) + 20 * 0.09 + 0.5e-3
    np.testing.assert_allclose(pair_loss(a, a + 0.3), grey)  # a shift of grey leaves R - G and B - G as they are
    b = a + 0.3 * torch.tensor([0.0, 1.0, 0.0], dtype=a.dtype)[:, None, None]
    green = (np.sqrt(0.09 + 1e-6) + 2e-3) / 3 + 0.4 * (1 - ssim(a, b)) + 20 * 0.03 + 0.5 * np.sqrt(0.09 + 1e-6)
    np.testing.assert_allclose(pair_loss(a, b), green)
