"""Pseudo-raws: the raw that would have made a target photo, so that unpaired photos teach demosaicing and detail.

A photo crop goes back through the alignment to reference colours, to linear light, through the inverse camera
matrix of one of the run's own raws to balanced camera RGB, is sampled at the Bayer sites, gets Poisson-Gaussian
noise as fitted to the raws, and then takes the SDK's own way (`mix_and_compand`) to network input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from eguot_sdk.bayer import RED_AT
from eguot_sdk.ingest import (
    PLANE_AT,
    balanced_gains,
    cell_mix,
    color_matrix,
    decompand,
    linear_luts,
    mix_and_compand,
    pack,
)
from eguot_sdk.raw import RawFrame
from eguot_sdk.spec import ColorInput

from ..reference import Alignment

BLOCK = 8
NOISE_BINS = 12


@dataclass(frozen=True, slots=True)
class Noise:
    """Variance of a raw value x in [0, 1] before white balance: shot * x + read."""

    shot: float
    read: float


def estimate_noise(frame: RawFrame) -> Noise:
    """Noise of a raw from its flattest 8x8 blocks of the first green plane.

    The second difference x[i,j] - x[i,j+1] - x[i+1,j] + x[i+1,j+1] has four times the noise variance and no
    gradient. Per brightness bin the 10th percentile of the block variances is taken for noise alone (0.75 of it,
    the 10th percentile of a chi-square mean over 64 correlated differences, is divided out); a line is fitted.
    """
    luts = linear_luts(frame, (1.0, 1.0, 1.0))
    oy, ox = RED_AT[frame.cfa]
    green = luts[1][frame.mosaic[oy::2, (ox + 1) % 2 :: 2]].astype(np.float64)
    difference = green[:-1, :-1] - green[:-1, 1:] - green[1:, :-1] + green[1:, 1:]
    h, w = (s // BLOCK * BLOCK for s in difference.shape)
    if h == 0 or w == 0:
        return Noise(1e-4, 1e-6)

    def blocks(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x[:h, :w].reshape(h // BLOCK, BLOCK, w // BLOCK, BLOCK).mean((1, 3)).ravel()

    variance, level = blocks(difference**2) / 4, blocks(green[:h, :w])
    usable = (level > 0.002) & (level < 0.9)
    if usable.sum() < 8 * NOISE_BINS:
        return Noise(1e-4, 1e-6)
    variance, level = variance[usable], level[usable]
    edges = np.quantile(level, np.linspace(0, 1, NOISE_BINS + 1))
    xs, ys = [], []
    for low, high in pairwise(edges):
        inside = (level >= low) & (level <= high)
        xs.append(level[inside].mean())
        ys.append(np.quantile(variance[inside], 0.1) / 0.75)
    x, y = np.array(xs), np.array(ys)
    weight = 1 / np.maximum(y, 1e-9)  # relative errors count, variances span decades
    basis = np.stack([x, np.ones_like(x)], 1) * weight[:, None]
    shot, read = np.linalg.lstsq(basis, y * weight, rcond=None)[0]
    if shot < 0 or read < 0:
        shot, read = (max(float(np.median(y / x)), 0.0), 0.0) if read < 0 else (0.0, float(np.median(y)))
    return Noise(float(np.clip(shot, 0, 0.05)), float(np.clip(read, 0, 0.01)))


class PseudoRaws:
    """Makes network input from photo crops with the cameras and noise of the given raws."""

    def __init__(self, frames: Sequence[RawFrame], alignment: Alignment, color_input: ColorInput) -> None:
        self.alignment = alignment
        self._cameras = [(balanced_gains(f)[0], color_matrix(f)[0], estimate_noise(f)) for f in frames]
        self._color_input = color_input

    def make(self, photo: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
        """Photo crop uint8 [2c, 2c, 3] -> planes float32 [c, c, 4]."""
        gains, matrix, noise = self._cameras[int(rng.integers(len(self._cameras)))]
        rgb = torch.from_numpy(photo.astype(np.float32) / 255).permute(2, 0, 1)[None]
        reference = self.alignment.invert(rgb)[0].permute(1, 2, 0).numpy()
        linear = decompand(reference)
        if self._color_input == "srgb":
            linear = linear @ np.linalg.inv(matrix).T.astype(np.float32)
        mosaic = np.empty(photo.shape[:2], np.float32)
        for (y, x), channel in zip(PLANE_AT, (0, 1, 1, 2), strict=True):
            mosaic[y::2, x::2] = linear[y::2, x::2, channel]
        cells = pack(np.clip(mosaic, 0, 1))
        gain = np.array([gains[0], gains[1], gains[1], gains[2]], np.float32)
        # After white balance a value is gain times its raw value, so is its deviation.
        variance = gain * noise.shot * cells + gain**2 * noise.read
        cells = cells + np.sqrt(variance) * rng.standard_normal(cells.shape, np.float32)
        mix = cell_mix(matrix) if self._color_input == "srgb" else None
        return mix_and_compand(np.clip(cells, 0, 1), mix)
