"""Pictures that no raw resembles lose weight before the first step; ordinary ones keep theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from eguot_sdk.raw import RawFrame
from eguot_train.data.crops import PhotoCrops
from eguot_train.data.scenes import make_scene
from eguot_train.data.synth import SynthCamera
from eguot_train.reference import Alignment
from eguot_train.typical import photo_typicality


@pytest.fixture(scope="module")
def frames() -> list[RawFrame]:
    camera = SynthCamera.from_seed(3)
    return [camera.shoot(make_scene(i, 96, 128), f"s{i}") for i in range(16)]


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return [make_scene(100 + i, 96, 128) for i in range(16)]


def page(rng: np.random.Generator) -> np.ndarray:
    """White paper with lines of words."""
    rgb = np.full((96, 128, 3), 250, np.uint8)
    for y in range(8, 88, 6):
        rgb[y : y + 2, 10:118] = np.where(rng.random((1, 108, 1)) < 0.6, 20, 250)
    return rgb


def heat(rng: np.random.Generator) -> np.ndarray:
    """A thermal picture: smooth, from blue over red to yellow."""
    y, x = np.mgrid[:96, :128] / 96
    level = 0.5 + 0.5 * np.sin(3 * y + rng.uniform(0, 6)) * np.cos(2 * x + rng.uniform(0, 6))
    return (np.stack([level, (2 * level - 1).clip(0, 1), 1 - level], -1) * 255).astype(np.uint8)


def dark(rng: np.random.Generator) -> np.ndarray:
    """Next to nothing."""
    return rng.integers(0, 6, (96, 128, 3)).astype(np.uint8)


def test_raws_count_as_the_eye_saw_them(frames: list[RawFrame], photos: list[np.ndarray]) -> None:
    """The same cells from a sensor that lay on its side, as phones store portraits."""
    turned = []
    for frame in frames:
        mosaic = np.ascontiguousarray(frame.mosaic.T)
        mosaic.setflags(write=False)
        red, first, second, blue = frame.black  # the greens change places
        turned.append(replace(frame, mosaic=mosaic, black=(red, second, first, blue), orientation=5))
    as_seen = photo_typicality(frames, photos, Alignment(), "srgb")
    assert photo_typicality(turned, photos, Alignment(), "srgb") == pytest.approx(as_seen, abs=1e-3)


@pytest.mark.parametrize("odd", [page, heat, dark])
def test_odd_pictures_weigh_least(
    odd: Callable[[np.random.Generator], np.ndarray], frames: list[RawFrame], photos: list[np.ndarray]
) -> None:
    rng = np.random.default_rng(0)
    mixed = [odd(rng), *photos[:7], odd(rng), *photos[7:]]
    weights = np.array(photo_typicality(frames, mixed, Alignment(), "srgb"))
    planted = np.array([0, 8])
    others = np.delete(weights, planted)
    assert weights[planted].max() < 0.8 * np.median(others)
    assert weights.max() == 1
    wins = weights[planted][:, None] < others[None]
    assert wins.mean() > 0.9


def test_pictures_of_the_raws_own_kind_keep_their_weight(frames: list[RawFrame], photos: list[np.ndarray]) -> None:
    weights = photo_typicality(frames, photos, Alignment(), "srgb")
    assert max(weights) == 1
    assert np.mean(weights) > 0.75
    assert min(weights) > 0.2


def test_few_pictures_weigh_the_same(frames: list[RawFrame], photos: list[np.ndarray]) -> None:
    assert photo_typicality(frames[:4], photos, Alignment(), "srgb") == [1.0] * 16
    assert photo_typicality(frames, photos[:3], Alignment(), "srgb") == [1.0] * 3


def test_crops_are_drawn_by_weight(photos: list[np.ndarray]) -> None:
    crops = PhotoCrops(photos[:3], 16, [1.0, 0.0, 3.0])
    rng = np.random.default_rng(0)
    drawn = np.bincount([crops.sample(rng)[1] for _ in range(2000)], minlength=3) / 2000
    assert drawn == pytest.approx([0.25, 0.0, 0.75], abs=0.03)


@pytest.mark.parametrize("light", [1.0, 0.0])
def test_raws_so_alike_that_no_photo_is_like_them_say_nothing(photos: list[np.ndarray], light: float) -> None:
    """A burst, and pictures of a dark room: distances in units of how raws differ are then beyond all measure."""
    camera = SynthCamera.from_seed(3)
    scene = (make_scene(0, 96, 128) * light).astype(np.uint8)
    burst = [camera.shoot(scene, f"shot{i}") for i in range(9)]
    weights = photo_typicality(burst, photos, Alignment(), "srgb")
    assert sum(weight > 0.99 for weight in weights) >= len(photos) / 2
