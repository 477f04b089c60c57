"""Pseudo-raws: the exact inverse of the way in, and noise as the raws have it."""

from __future__ import annotations

import numpy as np
import pytest

from eguot_sdk.ingest import PLANE_AT, compand, pack
from eguot_sdk.raw import RawFrame
from eguot_train.data.pseudo import PseudoRaws, estimate_noise
from eguot_train.data.scenes import make_scene
from eguot_train.data.synth import SynthCamera
from eguot_train.reference import KNOTS, Alignment, Reference

MATRIX = np.array([[1.5, -0.3, -0.2], [-0.1, 1.3, -0.2], [0.0, -0.4, 1.4]])


def quiet_frame(matrix: np.ndarray, gains: tuple[float, float, float] = (2.0, 1.0, 1.5)) -> RawFrame:
    """A raw without noise: shaded, so that its noise can be measured as nothing."""
    y, x = np.mgrid[:256, :256]
    return RawFrame.from_array(
        (2000 + 40 * y + 20 * x).astype(np.uint16), cfa="RGGB", black=(0.0,) * 4, white=(16383.0,) * 4,
        white_balance=gains, matrix=matrix,
    )  # fmt: skip


def test_without_noise_matrix_and_alignment_it_is_the_mosaic_of_the_photo() -> None:
    photo = make_scene(1, 40, 48)
    planes = PseudoRaws([quiet_frame(np.eye(3))], Alignment(), "srgb").make(photo, np.random.default_rng(0))
    assert planes.shape == (20, 24, 4)
    assert planes.dtype == np.float32
    mosaic = np.empty((40, 48))
    for (y, x), channel in zip(PLANE_AT, (0, 1, 1, 2), strict=True):
        mosaic[y::2, x::2] = photo[y::2, x::2, channel] / 255
    # The photo is companded already: linear and back again is the identity.
    np.testing.assert_allclose(planes, pack(mosaic), atol=2e-4)
    np.testing.assert_allclose(planes, compand(pack(mosaic) ** 2.2), atol=2e-4)


@pytest.mark.parametrize("color_input", ["srgb", "camera"])
def test_the_reference_rendering_of_a_pseudo_raw_is_the_photo(color_input: str) -> None:
    """R undoes what `make` did, alignment, matrix and all, where a photo has no detail finer than a cell."""
    import torch

    small = np.random.default_rng(0).integers(70, 180, (12, 12, 3), dtype=np.uint8)
    photo = small.repeat(2, 0).repeat(2, 1)
    curve = tuple(float(x) for x in np.linspace(0, 1, KNOTS) * (1.3 - 0.3 * np.linspace(0, 1, KNOTS)))
    alignment = Alignment(curve, ((1.2, 0.05), (0.05, 1.1)))
    frame = quiet_frame(MATRIX)
    planes = PseudoRaws([frame], alignment, color_input).make(photo, np.random.default_rng(0))  # type: ignore[arg-type]
    rendered = Reference(alignment)(torch.from_numpy(planes).permute(2, 0, 1)[None])
    cells = rendered.reshape(3, 12, 2, 12, 2).mean((2, 4)).permute(1, 2, 0).numpy()
    # R is interpolated between cells: compare it with the photo interpolated likewise.
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(small / 255.0).permute(2, 0, 1)[None], scale_factor=2, mode="bilinear"
    )
    expected = smooth.reshape(3, 12, 2, 12, 2).mean((2, 4)).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(cells, expected, atol=2e-3)


def test_noise_is_that_of_the_raw_behind_the_gains() -> None:
    """A flat photo, many draws: variance = gain shot x + gain^2 read of the camera's own fit."""
    camera = SynthCamera.from_seed(1)
    frame = camera.shoot(np.tile(np.arange(0, 256, dtype=np.uint8)[None, :, None], (256, 1, 3)), "ramp")
    noise = estimate_noise(frame)
    gains = np.array(camera.gains("ramp"))
    gains /= gains.min()
    pseudo = PseudoRaws([frame], Alignment(), "camera")
    level = 120
    planes = pseudo.make(np.full((400, 400, 3), level, np.uint8), np.random.default_rng(0))
    linear, expected = planes.astype(np.float64) ** 2.2, (level / 255) ** 2.2
    for plane, gain in enumerate((gains[0], gains[1], gains[1], gains[2])):
        variance = gain * noise.shot * expected + gain**2 * noise.read
        assert linear[..., plane].mean() == pytest.approx(expected, rel=0.01)
        assert linear[..., plane].var() == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize(("shot", "read"), [(2e-4, 1e-6), (1e-3, 1e-5), (5e-5, 4e-6)])
@pytest.mark.parametrize("cfa", ["RGGB", "BGGR"])
def test_planted_noise_is_found(shot: float, read: float, cfa: str) -> None:
    """Poisson-Gaussian noise on a scene of flat and shaded parts, within 30%."""
    rng = np.random.default_rng(0)
    blocks = rng.uniform(0.005, 0.85, (16, 20)).repeat(32, 0).repeat(32, 1)
    y, x = np.mgrid[: blocks.shape[0], : blocks.shape[1]]
    signal = blocks * (1 + 0.1 * np.sin(y / 40) * np.cos(x / 50))
    noisy = rng.poisson(signal / shot) * shot + rng.normal(0, read**0.5, signal.shape)
    counts = np.clip(np.rint(512 + noisy * (16383 - 512)), 0, 16383).astype(np.uint16)
    frame = RawFrame.from_array(
        counts, cfa=cfa, black=(512.0,) * 4, white=(16383.0,) * 4, white_balance=(2.0, 1.0, 1.6), matrix=np.eye(3)
    )
    found = estimate_noise(frame)
    assert found.shot == pytest.approx(shot, rel=0.3)
    # The read noise shows where it is not drowned by the shot noise of the darkest bins.
    dark = 0.05
    assert found.shot * dark + found.read == pytest.approx(shot * dark + read, rel=0.3)


@pytest.mark.parametrize("seed", range(4))
def test_noise_of_the_synthetic_camera_is_found(seed: int) -> None:
    """On scenes full of texture: within a factor of two of the variance at mid tones."""
    camera = SynthCamera.from_seed(seed)
    found = estimate_noise(camera.shoot(make_scene(seed, 480, 640), "scene"))
    quantisation = 1 / 12 / (camera.white - camera.black[1]) ** 2
    for level in (0.05, 0.3):
        truth = camera.shot * level + camera.read**2 + quantisation
        assert 0.5 < (found.shot * level + found.read) / truth < 2


def test_frames_that_say_nothing_get_an_ordinary_noise() -> None:
    for mosaic in (np.full((8, 8), 300, np.uint16), np.full((400, 400), 16383, np.uint16)):
        frame = RawFrame.from_array(
            mosaic, cfa="RGGB", black=(0.0,) * 4, white=(16383.0,) * 4, white_balance=(1.0,) * 3, matrix=np.eye(3)
        )
        noise = estimate_noise(frame)
        assert 0 < noise.shot < 1e-3
        assert 0 < noise.read < 1e-4


def test_every_camera_of_the_run_is_drawn() -> None:
    dim, bright = quiet_frame(MATRIX), quiet_frame(np.eye(3))
    pseudo = PseudoRaws([dim, bright], Alignment(), "srgb")
    photo = make_scene(2, 16, 16)
    rng = np.random.default_rng(0)
    seen = {pseudo.make(photo, rng).tobytes() for _ in range(20)}
    one = PseudoRaws([bright], Alignment(), "srgb").make(photo, rng)
    assert len(seen) >= 2
    assert np.isfinite(one).all()
