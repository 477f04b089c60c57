"""Metrics against scikit-image, torchmetrics, the published CIEDE2000 table and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eguot_sdk.errors import UsageError
from eguot_sdk.metrics import delta_e_2000, delta_e_2000_lab, ms_ssim, psnr, psnr_affine, srgb_to_lab, ssim

# Sharma, Wu, Dalal: The CIEDE2000 color-difference formula (2005), table 1: two Lab colours and their difference.
SHARMA = """
50.0000 2.6772 -79.7751 50.0000 0.0000 -82.7485 2.0425
50.0000 3.1571 -77.2803 50.0000 0.0000 -82.7485 2.8615
50.0000 2.8361 -74.0200 50.0000 0.0000 -82.7485 3.4412
50.0000 -1.3802 -84.2814 50.0000 0.0000 -82.7485 1.0000
50.0000 -1.1848 -84.8006 50.0000 0.0000 -82.7485 1.0000
50.0000 -0.9009 -85.5211 50.0000 0.0000 -82.7485 1.0000
50.0000 0.0000 0.0000 50.0000 -1.0000 2.0000 2.3669
50.0000 -1.0000 2.0000 50.0000 0.0000 0.0000 2.3669
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0009 7.1792
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0010 7.1792
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0011 7.2195
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0012 7.2195
50.0000 -0.0010 2.4900 50.0000 0.0009 -2.4900 4.8045
50.0000 -0.0010 2.4900 50.0000 0.0010 -2.4900 4.8045
50.0000 -0.0010 2.4900 50.0000 0.0011 -2.4900 4.7461
50.0000 2.5000 0.0000 50.0000 0.0000 -2.5000 4.3065
50.0000 2.5000 0.0000 73.0000 25.0000 -18.0000 27.1492
50.0000 2.5000 0.0000 61.0000 -5.0000 29.0000 22.8977
50.0000 2.5000 0.0000 56.0000 -27.0000 -3.0000 31.9030
50.0000 2.5000 0.0000 58.0000 24.0000 15.0000 19.4535
50.0000 2.5000 0.0000 50.0000 3.1736 0.5854 1.0000
50.0000 2.5000 0.0000 50.0000 3.2972 0.0000 1.0000
50.0000 2.5000 0.0000 50.0000 1.8634 0.5757 1.0000
50.0000 2.5000 0.0000 50.0000 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""


def pictures(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth picture with noise, and a coloured, noisier copy."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([127 + 100 * np.sin(x / 9), 127 + 90 * np.cos(y / 7), 127 + 120 * np.sin((x + y) / 15)], axis=-1)
    truth = np.clip(base + rng.normal(0, 4, base.shape), 0, 255).astype(np.uint8)
    picture = np.clip(0.9 * truth + rng.normal(3, 8, base.shape), 0, 255).astype(np.uint8)
    return picture, truth


@pytest.mark.parametrize("size", [(11, 11), (63, 40), (64, 33), (150, 97)])
def test_ssim_equals_scikit_image(size: tuple[int, int]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    picture, truth = pictures(*size)
    expected = metrics.structural_similarity(
        picture, truth, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=2, data_range=255
    )
    assert ssim(picture, truth) == pytest.approx(expected, abs=1e-5)


def test_ssim_of_flat_pictures() -> None:
    """Without structure only the luminance term is left: (2ab + C1) / (a^2 + b^2 + C1)."""
    a, b = np.full((20, 20, 3), 40, np.uint8), np.full((20, 20, 3), 200, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b) == pytest.approx((2 * 40 * 200 + c1) / (40**2 + 200**2 + c1), abs=1e-6)
    assert ssim(a, a) == pytest.approx(1.0, abs=1e-7)


def test_psnr_closed_form_and_scikit_image() -> None:
    truth = np.full((70, 30, 3), 100, np.uint8)
    picture = truth.copy()
    picture[..., 0] = 94  # one channel off by 6: mean squared error 12
    assert psnr(picture, truth) == pytest.approx(10 * math.log10(255**2 / 12))
    assert psnr(truth, truth) == math.inf
    black, white = np.zeros_like(truth), np.full_like(truth, 255)
    assert psnr(black, white) == pytest.approx(0.0)
    metrics = pytest.importorskip("skimage.metrics")
    picture, truth = pictures(130, 50)
    assert psnr(picture, truth) == pytest.approx(metrics.peak_signal_noise_ratio(truth, picture), abs=1e-9)


def test_delta_e_2000_on_the_published_table() -> None:
    table = np.array(SHARMA.split(), np.float64).reshape(34, 7)
    np.testing.assert_allclose(delta_e_2000_lab(table[:, :3], table[:, 3:6]), table[:, 6], atol=1e-4)
    np.testing.assert_allclose(delta_e_2000_lab(table[:, 3:6], table[:, :3]), table[:, 6], atol=1e-4)


def test_delta_e_2000_equals_scikit_image() -> None:
    color = pytest.importorskip("skimage.color")
    picture, truth = pictures(130, 90)
    picture[:20] = picture[:20, :, :1]  # greys: hue is undefined
    truth[:10] = truth[:10, :, :1]
    expected = color.deltaE_ciede2000(color.rgb2lab(picture), color.rgb2lab(truth)).mean()
    assert delta_e_2000(picture, truth) == pytest.approx(expected, abs=2e-3)
    assert delta_e_2000(truth, truth) == 0.0


def test_lab_of_every_grey_is_neutral_and_white_is_100() -> None:
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    lab = srgb_to_lab(greys)
    assert np.abs(lab[:, 1:]).max() < 1e-3
    assert lab[255, 0] == pytest.approx(100, abs=1e-3)
    assert (np.diff(lab[:, 0]) > 0).all()


def test_affine_fit_undoes_an_affine_error() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(60, 180, (90, 70, 3), dtype=np.uint8)
    mix = np.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.1], [0.0, 0.2, 0.9]])
    picture = np.rint(truth @ mix + 5).astype(np.uint8)
    assert psnr(picture, truth) < 27
    assert psnr_affine(picture, truth) > 48  # only rounding is left
    assert psnr_affine(truth, truth) == math.inf


def test_affine_fit_is_the_least_squares_one() -> None:
    picture, truth = pictures(70, 66)
    rows = np.concatenate([picture.reshape(-1, 3), np.ones((70 * 66, 1))], axis=1)
    fit, *_ = np.linalg.lstsq(rows, truth.reshape(-1, 3).astype(float), rcond=None)
    mapped = np.clip(np.rint(rows @ fit), 0, 255).astype(np.uint8).reshape(truth.shape)
    assert psnr_affine(picture, truth) == pytest.approx(psnr(mapped, truth), abs=1e-3)


def test_affine_fit_of_a_flat_picture_predicts_the_mean() -> None:
    _, truth = pictures(40, 40)
    flat = np.full_like(truth, 90)
    mean = np.broadcast_to(np.rint(truth.reshape(-1, 3).mean(axis=0)).astype(np.uint8), truth.shape)
    assert psnr_affine(flat, truth) == pytest.approx(psnr(np.ascontiguousarray(mean), truth), abs=1e-9)


def test_wrong_arguments_are_refused() -> None:
    good = np.zeros((20, 20, 3), np.uint8)
    for bad in (good[..., 0], good.astype(np.float32), good[:0], good[:10]):
        for metric in (psnr, ssim, delta_e_2000, psnr_affine):
            with pytest.raises(UsageError):
                metric(bad, good)
    with pytest.raises(UsageError, match="11x11"):
        ssim(good[:10], good[:10])


def test_ms_ssim_is_the_product_of_its_scales() -> None:
    """Against SciPy's filter in double precision, scale by scale."""
    picture, truth = (image.astype(np.float64) for image in pictures(200, 181))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    filters = pytest.importorskip("scipy.ndimage")
    expected = np.ones(3)
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):

        def mean(image: np.ndarray) -> np.ndarray:
            blurred = filters.gaussian_filter(image, (1.5, 1.5, 0), truncate=5 / 1.5)
            return np.asarray(blurred[5:-5, 5:-5])

        mx, my = mean(picture), mean(truth)
        vx, vy, cxy = mean(picture**2) - mx**2, mean(truth**2) - my**2, mean(picture * truth) - mx * my
        structure = (2 * cxy + c2) / (vx + vy + c2)
        if scale == 4:
            structure = structure * (2 * mx * my + c1) / (mx**2 + my**2 + c1)
        else:
            h, w = (n // 2 * 2 for n in picture.shape[:2])
            picture, truth = (
                (i[:h:2, :w:2] + i[1:h:2, :w:2] + i[:h:2, 1:w:2] + i[1:h:2, 1:w:2]) / 4 for i in (picture, truth)
            )
        expected *= structure.mean(axis=(0, 1)) ** weight
    assert ms_ssim(*pictures(200, 181)) == pytest.approx(expected.mean(), abs=1e-5)
    assert ms_ssim(*pictures(175, 300)) is None


@pytest.mark.parametrize("size", [(176, 176), (200, 181), (448, 448)])
def test_psnr_ssim_and_ms_ssim_equal_torchmetrics(size: tuple[int, int]) -> None:
    """In double precision, channel by channel. It also counts windows over a reflected border, which ours does not."""
    torch = pytest.importorskip("torch")
    image = pytest.importorskip("torchmetrics.functional.image")
    picture, truth = pictures(*size)
    x, y = (torch.from_numpy(i).permute(2, 0, 1)[:, None].double() for i in (picture, truth))
    assert psnr(picture, truth) == pytest.approx(float(image.peak_signal_noise_ratio(x, y, data_range=255.0)), abs=1e-6)
    options = {"data_range": 255.0, "kernel_size": 11, "sigma": 1.5}
    _, full = image.structural_similarity_index_measure(x, y, return_full_image=True, **options)
    assert ssim(picture, truth) == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-6)
    expected = image.multiscale_structural_similarity_index_measure(x, y, **options)  # the mean over channels
    assert ms_ssim(picture, truth) == pytest.approx(float(expected), abs=5e-5)


def test_ssim_of_a_mask_counts_the_windows_centred_in_it() -> None:
    picture, truth = pictures(90, 70)
    mask = np.zeros((90, 70), bool)
    mask[5:85, 5:65] = True
    assert ssim(picture, truth, mask) == pytest.approx(ssim(picture, truth), abs=1e-9)
    mask[:, 35:] = False
    assert ssim(picture, truth, mask) == pytest.approx(ssim(picture[:, :40], truth[:, :40]), abs=1e-6)
