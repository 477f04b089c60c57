"""Registration of a truth onto a picture: known shifts come back under a cast, what does not match is masked."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

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


def test_what_is_left_beside_the_blocks_goes_with_its_neighbour() -> None:
    """Pictures are seldom multiples of 32 pixels, nor square: here 200 x 232, with other content below."""
    scene, other = textured(0, 232), textured(1, 232)
    truth, picture = scene[8:208, 8:240].copy(), scene[9:209, 6:238].copy()
    picture[128:] = other[128:200, 8:240]
    warped, mask = register(picture, truth)
    assert warped.shape == picture.shape
    assert mask.shape == (200, 232)
    assert mask[:96, 8:].mean() > 0.95
    assert mask[:96, 224:230].mean() > 0.95  # the last 8 columns are in no block
    assert mask[192:].mean() < 0.3  # and so are the last 8 rows, below what does not match
    inside = mask[:96]
    assert psnr(warped[:96][inside][:, None], picture[:96][inside][:, None]) > 35


def test_shifts_between_blocks_are_interpolated() -> None:
    """A truth of a longer focal length: 2% larger about the middle, so shifts run from -2 to 2 pixels."""
    cells = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    scene = np.asarray(cells.resize((192, 192), Image.Resampling.BICUBIC))
    edge = 192 * 0.02 / 2 / 1.02
    box = (edge, edge, 192 - edge, 192 - edge)
    truth = np.asarray(Image.fromarray(scene).resize((192, 192), Image.Resampling.BICUBIC, box=box))
    warped, mask = register(scene, truth)
    assert mask.mean() > 0.9
    within = np.s_[16:-16, 16:-16]
    assert psnr(truth[within], scene[within]) < 25
    assert psnr(warped[within], scene[within]) > 38


def test_flat_places_are_in_register_where_the_truth_is_as_flat() -> None:
    """A clear sky has nothing to match; it must not cost the picture its score, and a detailed truth is no sky."""
    sky, other = np.full((96, 128, 3), (150, 180, 220), np.uint8), np.full((96, 128, 3), (140, 175, 225), np.uint8)
    warped, mask = register(sky, other)
    assert mask.all()
    np.testing.assert_array_equal(warped, other)
    detailed = other.copy()
    detailed[:, 68:] = textured(0)[:96, :60]
    _, mask = register(sky, detailed)
    assert mask[:, :64].all()
    assert not mask[:, 64:].any()


@pytest.mark.parametrize("axis", [0, 1])
def test_what_repeats_itself_stays_where_it_is(axis: int) -> None:
    """A fence of four pixels matches a fence moved by four as well: the nearest of equal shifts is taken."""
    wave = np.array([60, 120, 200, 120])[np.arange(128) % 4]
    fence = np.broadcast_to((wave[:, None] if axis == 0 else wave[None])[..., None], (128, 128, 3)).astype(np.uint8)
    warped, mask = register(fence, fence)
    assert mask.all()
    np.testing.assert_array_equal(warped, fence)
