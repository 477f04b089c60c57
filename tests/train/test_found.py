"""Raws and photos of one scene are found whatever their tone, turn and margin; unlike ones never are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eguot_sdk.raw import RawFrame
from eguot_train.config import TrainConfig
from eguot_train.data.batches import Batches, load_sources
from eguot_train.data.found import Found, find_same_scenes, found_pairs, laid_on
from eguot_train.data.scenes import make_scene
from eguot_train.data.synth import SynthCamera, dng_bytes
from eguot_train.reference import Alignment

SIZE = (200, 256)


@pytest.fixture(scope="module")
def scenes() -> list[np.ndarray]:
    return [make_scene(i, *SIZE) for i in range(8)]


@pytest.fixture(scope="module")
def frames(scenes: list[np.ndarray]) -> list[RawFrame]:
    camera = SynthCamera.from_seed(3)
    return [camera.shoot(scene, f"s{i}") for i, scene in enumerate(scenes[:4])]


def retouched(scene: np.ndarray) -> np.ndarray:
    """Another look: darker shadows, warm, less saturated."""
    rgb = (scene / 255.0) ** 1.4
    rgb = 0.7 * rgb + 0.3 * rgb.mean(-1, keepdims=True)
    return (rgb * np.array([1.0, 0.93, 0.8]) * 255).round().astype(np.uint8)


def test_same_scenes_are_found_and_no_others(scenes: list[np.ndarray], frames: list[RawFrame]) -> None:
    photos = [scenes[6], retouched(scenes[2]), np.rot90(retouched(scenes[0])).copy(), scenes[1][2:-2, 3:-3], scenes[7]]
    found = find_same_scenes(frames, photos, "srgb")
    assert {(f.raw, f.photo, f.turns) for f in found} == {(2, 1, 0), (0, 2, 3), (1, 3, 0)}
    assert all(f.likeness > 0.9 for f in found)
    assert find_same_scenes(frames, scenes[4:], "srgb") == []


def test_nothing_is_found_between_other_framings_or_twice(scenes: list[np.ndarray], frames: list[RawFrame]) -> None:
    assert find_same_scenes(frames, [scenes[0][:150, :192]], "srgb") == []  # cut
    assert find_same_scenes(frames, [np.repeat(np.repeat(scenes[0], 2, 0), 2, 1)], "srgb") == []  # another resolution
    assert find_same_scenes(frames, [scenes[0], retouched(scenes[0])], "srgb") == []  # which of the two is its photo?
    assert find_same_scenes(frames, [np.full((*SIZE, 3), 90, np.uint8)], "srgb") == []  # nothing to tell it by


def test_a_photo_is_laid_as_the_sensor_lay(scenes: list[np.ndarray], frames: list[RawFrame]) -> None:
    turned = np.rot90(scenes[0]).copy()
    np.testing.assert_array_equal(laid_on(turned, frames[0], Found(0, 0, 3, 1.0)), scenes[0])
    smaller = laid_on(scenes[0][2:-2, 3:-3], frames[0], Found(0, 0, 0, 1.0))
    np.testing.assert_array_equal(smaller[2:-2, 3:-3], scenes[0][2:-2, 3:-3])
    assert smaller.shape == scenes[0].shape
    larger = np.pad(scenes[0], ((1, 1), (2, 2), (0, 0)))
    np.testing.assert_array_equal(laid_on(larger, frames[0], Found(0, 0, 0, 1.0)), scenes[0])


def test_large_pairs_are_cut_to_their_middle(monkeypatch: pytest.MonkeyPatch, frames: list[RawFrame]) -> None:
    monkeypatch.setattr("eguot_train.data.found.WINDOW", 64)
    scene = make_scene(0, *SIZE)
    ((photo, frame, truth),) = found_pairs(frames, [scene], "srgb")
    assert photo == 0
    np.testing.assert_array_equal(truth, scene[68:132, 96:160])
    np.testing.assert_array_equal(frame.mosaic, frames[0].mosaic[68:132, 96:160])
    assert frame.cfa == frames[0].cfa


def test_an_unpaired_run_draws_the_pairs_that_it_finds(
    tmp_path: Path, scenes: list[np.ndarray], frames: list[RawFrame]
) -> None:
    for folder in ("raw", "srgb"):
        (tmp_path / folder).mkdir()
    for i, frame in enumerate(frames):
        (tmp_path / "raw" / f"{i}.dng").write_bytes(dng_bytes(frame))
    for i in (2, 5, 6):
        Image.fromarray(scenes[i]).save(tmp_path / "srgb" / f"photo{i}.png")
    folders = {"raw": str(tmp_path / "raw"), "srgb": str(tmp_path / "srgb")}
    config = TrainConfig(mode="unpaired", batch=2, crop=32, **folders)
    sources = load_sources(config)
    assert [pair.name for pair in sources.pairs] == ["photo2.png"]
    assert any("same framing: 1, used as pairs" in note for note in sources.notes)
    batch = Batches(config, sources, Alignment()).at(0)
    assert batch.raw_t is not None
    assert batch.pair_raw is not None
    assert batch.pair_mask is not None
    assert batch.pair_mask.mean() > 0.7
    large = load_sources(TrainConfig(mode="unpaired", batch=2, crop=2 * max(SIZE), **folders))
    assert large.pairs == [], "a found pair smaller than the crop is none"
    off = TrainConfig(mode="unpaired", batch=2, crop=32, find_pairs=False, **folders)
    assert load_sources(off).pairs == []
    assert Batches(off, load_sources(off), Alignment()).at(0).pair_raw is None
