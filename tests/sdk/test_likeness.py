"""Distances between sets of pictures: closed forms, and each sees what it is for."""

from __future__ import annotations

import numpy as np
import pytest

from eguot_sdk.errors import UsageError
from eguot_sdk.likeness import PictureSet, frechet, sliced_wasserstein, summarise


def scenes(seed: int, count: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        low = rng.uniform(20, 235, (12, 12, 3))
        image = low.repeat(16, 0).repeat(16, 1) + rng.normal(0, 6, (192, 192, 3))
        made.append(np.asarray(image.clip(0, 255), np.uint8))
    return made


def of(pictures: list[np.ndarray]) -> PictureSet:
    found = PictureSet()
    for picture in pictures:
        found.add(summarise(picture))
    return found


def test_frechet_of_gaussians_with_a_common_basis() -> None:
    """For commuting covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))
    s1, s2 = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 2, 1, 5, 0])
    mean = np.arange(5.0)
    first, second = basis @ np.diag(s1**2) @ basis.T, basis @ np.diag(s2**2) @ basis.T
    expected = (mean**2).sum() + ((s1 - s2) ** 2).sum()
    assert frechet(mean, first, np.zeros(5), second) == pytest.approx(expected, rel=1e-6)


def test_sliced_distance_of_a_shift_is_the_mean_projection() -> None:
    """A shift by d moves every projection by |d.u|, whose mean over the sphere is |d| / 2."""
    cloud = np.random.default_rng(0).normal(size=(4000, 3)).astype(np.float32)
    shift = np.array([6.0, -3.0, 2.0], np.float32)
    assert sliced_wasserstein(cloud, cloud + shift) == pytest.approx(7 / 2, rel=0.06)
    assert sliced_wasserstein(cloud, cloud) == 0


def test_equal_sets_are_at_no_distance() -> None:
    for value in of(scenes(0)).distances(of(scenes(0))).values():
        assert value == pytest.approx(0, abs=1e-4)


def test_each_distance_sees_its_own_flaw() -> None:
    base = of(scenes(0))
    cast = base.distances(of([(s * np.array([1.0, 0.85, 0.85])).astype(np.uint8) for s in scenes(0)]))
    soft = base.distances(of([((s[:, :-1].astype(int) + s[:, 1:]) // 2).astype(np.uint8) for s in scenes(0)]))
    assert cast["swd_lab"] > 5 * soft["swd_lab"]
    assert cast["hellinger_uv"] > 2 * soft["hellinger_uv"]
    assert soft["log_spectral"] > 2 * cast["log_spectral"]
    assert soft["rfid"] > 0.1


def test_nothing_and_too_little_are_refused() -> None:
    with pytest.raises(UsageError, match="no pictures"):
        PictureSet().distances(of(scenes(0, 1)))
    with pytest.raises(UsageError, match="64 pixels"):
        summarise(np.zeros((63, 80, 3), np.uint8))
