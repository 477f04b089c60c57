"""The camera matrix of a DNG from its colour tags and the as-shot white, by the DNG specification 1.7, chapter 6.

With ForwardMatrix tags, those; with two ColorMatrix tags, both, weighted by how warm the as-shot light is; a single
ColorMatrix is used as LibRaw does (`dng.camera_matrix`). Where tags make no sense the next way is tried.
The result maps white-balanced camera RGB to linear sRGB, and its rows sum to 1: what was balanced stays grey.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .dng import DCRAW_SRGB_TO_XYZ, tag_matrix
from .tiff import Tiff

Matrix = NDArray[np.float64]

# EXIF light source -> kelvin; those that say no colour of light are left out.
KELVIN = {
    1: 5500, 2: 4150, 3: 2850, 4: 5500, 9: 5500, 10: 6500, 11: 7500, 12: 6400, 13: 5050, 14: 4150, 15: 3525,
    17: 2850, 18: 5500, 19: 6500, 20: 5500, 21: 6500, 22: 7500, 23: 5000, 24: 3200,
}  # fmt: skip
D50 = np.array([0.9642, 1.0, 0.8249])
DCRAW_D65 = DCRAW_SRGB_TO_XYZ.sum(axis=1)
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
MAX_ENTRY = 10.0


def dng_matrix(tiff: Tiff, gains: Sequence[float] | None) -> tuple[Matrix, str] | None:
    """The matrix of a DNG for a shot whose white-balance gains R, G, B were `gains`, and the tags it came from.

    None where the file has no usable matrix. Without gains the light is not known: the matrix for daylight.
    """
    if gains is not None:
        # A camera that divides by AnalogBalance or differs from its model (CameraCalibration) says so on the diagonal.
        neutral = 1.0 / np.array(gains, np.float64)
        for found in (_by_forward(tiff, neutral), _by_two(tiff, neutral)):
            if found is not None:
                return found
    return tag_matrix(tiff)


def _by_forward(tiff: Tiff, neutral: NDArray[np.float64]) -> tuple[Matrix, str] | None:
    tags = [(n, _matrix(tiff, f"ForwardMatrix{n}")) for n in (1, 2)]
    known = [(n, matrix) for n, matrix in tags if matrix is not None]
    if not known:
        return None
    names = " and ".join(f"ForwardMatrix{n}" for n, _ in known)
    if len(known) == 1:
        forward, weights = known[0][1], (1.0, 0.0) if known[0][0] == 1 else (0.0, 1.0)
    else:
        light = _light(tiff, neutral)
        if light is None:
            return None
        weights = light[1]
        forward = weights[0] * known[0][1] + weights[1] * known[1][1]
    camera = _calibration(tiff, weights)
    reference = np.linalg.inv(camera) @ neutral  # what the reference camera of the model would have seen of white
    if (reference <= 0).any():
        return None
    to_d50 = forward @ np.diag(1.0 / reference) @ np.linalg.inv(camera) @ np.diag(neutral)
    return _checked(np.linalg.inv(DCRAW_SRGB_TO_XYZ) @ _adaptation(D50, DCRAW_D65) @ to_d50, f"tag {names}")


def _by_two(tiff: Tiff, neutral: NDArray[np.float64]) -> tuple[Matrix, str] | None:
    light = _light(tiff, neutral)
    if light is None:
        return None
    white, _, to_camera = light
    to_xyz = np.linalg.inv(to_camera) @ np.diag(neutral)
    matrix = np.linalg.inv(DCRAW_SRGB_TO_XYZ) @ _adaptation(white, DCRAW_D65) @ to_xyz
    return _checked(matrix, "tag ColorMatrix1 and ColorMatrix2")


def _light(tiff: Tiff, neutral: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[float, float], Matrix] | None:
    """XYZ of the as-shot white, weights of both calibrations, and the matrix XYZ to camera in between.

    The white decides the weights and the weights the white, so both are found in turns. None where two calibrations
    under known and different light are not there.
    """
    matrices = [_matrix(tiff, f"ColorMatrix{n}") for n in (1, 2)]
    kelvin = [KELVIN.get(tiff.whole(f"CalibrationIlluminant{n}", -1)) for n in (1, 2)]
    one, two = matrices
    if one is None or two is None or kelvin[0] is None or kelvin[1] is None or kelvin[0] == kelvin[1]:
        return None
    if min(abs(np.linalg.det(one)), abs(np.linalg.det(two))) < 1e-3:
        return None
    white, weights = D50, (0.5, 0.5)
    to_camera = one
    for _ in range(30):
        first = (1 / _kelvin_of(white) - 1 / kelvin[1]) / (1 / kelvin[0] - 1 / kelvin[1])
        first = min(max(first, 0.0), 1.0)
        weights = (first, 1.0 - first)
        to_camera = _calibration(tiff, weights) @ (weights[0] * one + weights[1] * two)
        if abs(np.linalg.det(to_camera)) < 1e-9:
            return None
        found = np.linalg.solve(to_camera, neutral)
        if not np.isfinite(found).all() or (found <= 0).any():
            return None
        found = found / found[1]
        if np.abs(found - white).max() < 1e-7:
            break
        white = found
    return white, weights, to_camera


def _calibration(tiff: Tiff, weights: tuple[float, float]) -> Matrix:
    """AnalogBalance @ CameraCalibration, each the identity where it is absent or makes no sense."""
    camera = np.zeros((3, 3))
    for n, weight in zip((1, 2), weights, strict=True):
        matrix = _matrix(tiff, f"CameraCalibration{n}")
        usable = matrix is not None and abs(np.linalg.det(matrix)) > 1e-3 and np.abs(matrix).max() < MAX_ENTRY
        camera += weight * (matrix if usable and matrix is not None else np.eye(3))
    balance = tiff.find("AnalogBalance")
    if isinstance(balance, tuple) and len(balance) == 3 and all(0.01 < v < 100 for v in balance):
        camera = np.diag(np.array(balance, np.float64)) @ camera
    return camera if abs(np.linalg.det(camera)) > 1e-6 else np.eye(3)


def _kelvin_of(white: NDArray[np.float64]) -> float:
    """Correlated colour temperature of an XYZ white: McCamy (1992), within a few kelvin from 2,800 to 6,500."""
    x, y = white[:2] / white.sum()
    n = (x - 0.3320) / (0.1858 - y) if abs(y - 0.1858) > 1e-6 else 0.0
    return float(min(max(449 * n**3 + 3525 * n**2 + 6823.3 * n + 5520.33, 1500.0), 50000.0))


def _adaptation(source: NDArray[np.float64], target: NDArray[np.float64]) -> Matrix:
    """[3, 3] that takes XYZ seen under one white to XYZ under another, by the Bradford cone responses."""
    scale = (BRADFORD @ target) / (BRADFORD @ source)
    adapted: Matrix = np.linalg.inv(BRADFORD) @ np.diag(scale) @ BRADFORD
    return adapted


def _checked(matrix: Matrix, origin: str) -> tuple[Matrix, str] | None:
    if not np.isfinite(matrix).all():
        return None
    sums = matrix.sum(axis=1, keepdims=True)
    if (np.abs(sums - 1) > 0.1).any():  # a matrix that turns white into a colour was not made for this white
        return None
    matrix = matrix / sums
    return (matrix, origin) if np.abs(matrix).max() < MAX_ENTRY and abs(np.linalg.det(matrix)) > 1e-3 else None


def _matrix(tiff: Tiff, name: str) -> Matrix | None:
    value = tiff.find(name)
    if value is None or isinstance(value, str) or len(value) != 9:
        return None
    matrix = np.array(value, np.float64).reshape(3, 3)
    return matrix if np.isfinite(matrix).all() and np.abs(matrix).max() < 100 else None
