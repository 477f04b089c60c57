"""Procedural scenes: the same seed gives the same scene, and scenes look enough like pictures to train on."""

from __future__ import annotations

import numpy as np
import pytest

from eguot_train.data.scenes import make_scene


def test_a_seed_fixes_the_scene() -> None:
    scene = make_scene(5, 96, 130)
    assert scene.shape == (96, 130, 3)
    assert scene.dtype == np.uint8
    np.testing.assert_array_equal(scene, make_scene(5, 96, 130))
    assert (scene != make_scene(6, 96, 130)).mean() > 0.5


@pytest.mark.parametrize("size", [(2, 2), (2, 64), (16, 16), (33, 47), (300, 20)])
def test_any_size_works(size: tuple[int, int]) -> None:
    for seed in range(6):
        assert make_scene(seed, *size).shape == (*size, 3)


def test_scenes_have_the_statistics_of_pictures() -> None:
    """Wide tonal range, greys in most places, some saturated colour, edges at all scales, few clipped pixels."""
    scenes = np.stack([make_scene(seed, 120, 160) for seed in range(40)]).astype(np.float64)
    luma = scenes.mean(axis=-1)
    assert np.percentile(luma, 5) < 50
    assert np.percentile(luma, 95) > 200
    assert 80 < luma.mean() < 160
    chroma = scenes.max(axis=-1) - scenes.min(axis=-1)
    assert np.median(chroma) < 70
    assert (chroma > 120).mean() > 0.02
    assert (scenes.min(axis=-1) >= 255).mean() < 0.08
    means = scenes.mean(axis=(1, 2))
    assert np.abs(means.mean(axis=0) - means.mean()).max() < 25  # no cast over many scenes
    # Power falls with frequency about as 1/f^2, as it does in photographs.
    window = np.hanning(120)[:, None] * np.hanning(120)[None, :]
    power = np.zeros((120, 120))
    for picture in luma[:, :, :120]:
        power += np.abs(np.fft.fft2((picture - picture.mean()) * window)) ** 2
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(120) * 120, np.fft.fftfreq(120) * 120))
    bands = [power[(radius >= r) & (radius < 2 * r)].mean() for r in (2, 4, 8, 16, 32)]
    slope = np.polyfit(np.log([2, 4, 8, 16, 32]), np.log(bands), 1)[0]
    assert -3.2 < slope < -1.5
