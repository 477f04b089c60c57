"""Registration of a truth onto a picture: known shifts come back under a cast, what does not match is masked."""

from __future__ import annotations

import numpy as np
import pytest

from eguot_sdk.errors import UsageError
from eguot_sdk.evaluation import score_image
from eguot_sdk.metrics import psnr
from eguot_sdk.registration import register


def textured(seed: int = 0, side: int = 192) -> np.ndarray:
    """Smooth coloured texture, side + 16 a side."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(side + 16, side + 16, 3)).cumsum(0).cumsum(1)
    noise -= noise.mean((0, 1))
    image = 128 + 60 * np.sin(noise / 12)
    return np.asarray(image.clip(0, 255), np.uint8)


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, -2), (3, -3), (-4, 4)])
def test_a_known_shift_is_undone_under_a_cast(shift: tuple[int, int]) -> None:
    scene = textured()
    dy, dx = shift
    truth = scene[8:-8, 8:-8]
    picture = scene[8 + dy : scene.shape[0] - 8 + dy, 8 + dx : scene.shape[1] - 8 + dx]
    cast = (picture * np.array([0.8, 0.9, 1.0]) + np.array([20, 5, 0])).astype(np.uint8)
    warped, mask = register(cast, truth)
    assert mask.mean() > 0.8
    assert psnr(warped[mask][:, None], picture[mask][:, None]) > 35
    if shift != (0, 0):
        assert psnr(picture, truth) < 32


def test_other_content_is_masked() -> None:
    first, second = textured(0)[:192, :192], textured(1)[:192, :192]
    picture = first.copy()
    picture[:, 96:] = second[:, 96:]
    _, mask = register(picture, first)
    assert mask[:, :96].mean() > 0.95
    assert mask[:, 96:].mean() < 0.2


def test_the_protocols_score_as_they_say() -> None:
    scene = textured()
    truth, picture = scene[8:-8, 8:-8].copy(), scene[9:-7, 8:-8].copy()
    plain, aligned = score_image("a", picture, truth), score_image("a", picture, truth, "aligned")
    assert aligned.psnr_db > plain.psnr_db + 10
    assert aligned.matched is not None
    assert aligned.matched > 0.8
    assert plain.ms_ssim is not None
    assert aligned.ms_ssim is None
    half = picture[::2, ::2].copy()
    assert score_image("a", half, half.repeat(2, 0).repeat(2, 1), "ntire26").psnr_db > 25
    noise = np.random.default_rng(0).integers(0, 255, truth.shape, dtype=np.uint8)
    assert score_image("a", noise, truth, "aligned").matched == pytest.approx(0, abs=0.1)


def test_too_small_pictures_are_refused() -> None:
    with pytest.raises(UsageError, match="40 pixels"):
        register(np.zeros((39, 64, 3), np.uint8), np.zeros((39, 64, 3), np.uint8))
