"""The frequency expert: checkerboards, CFA mazes, blur, noise floors, over-sharpening (METHOD.md 3.3).

It sees luma, R - G and B - G through log spectra of 64x64 Hann windows and through Haar sub-bands, both relative to the
energy at middle frequencies, so contrast and exposure cancel. Phase-locked sub-band means catch what a pixel shuffle
leaves: a comb of period two has a mean that no photograph has. Pictures must be at least 64 px on each side.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from eguot_sdk.errors import UsageError

from ..cost import luma
from .base import Expert, Features, Standardise, scaled, strided

WINDOW = 64
RINGS = 24
GAIN_BAND = (2 / RINGS, 12 / RINGS)
"""Radii, as shares of the largest, whose mean log energy is the reference."""
LATTICE = ((32, 32), (32, 0), (0, 32), (16, 16))
"""Rows and columns of the half spectrum at (pi, pi), (pi, 0), (0, pi) and (pi/2, pi/2): periods of 2 and 4 pixels."""
LEVELS = 3
VECTOR = RINGS + len(LATTICE) + 2 * 3 * LEVELS
FLOOR = 4e-6
"""Variance below which energy does not count: thrice that of rounding to 8 bits, which only targets went through."""
LEAST_DEVIATION = 2e-3
PHASE_FLOOR = 0.01
LIMIT = 30.0
"""Standardised features go through LIMIT * tanh(z / LIMIT): a comb may be a hundred deviations away."""


class FrequencyExpert(Expert):
    """A convolutional judge of every log spectrum and a small one of the vector of each channel; one logit."""

    name = "frequency"

    def __init__(self, width: int = 64, *, spectrum: bool = True) -> None:
        super().__init__()
        a, b, hidden = scaled(32, width), scaled(64, width), max(16, scaled(64, width))
        self.vector_scale = Standardise((3, VECTOR), PHASE_FLOOR)
        self.vector = nn.Sequential(
            nn.Linear(VECTOR, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1),
        )
        self.spectrum_scale = Standardise((3, WINDOW, WINDOW // 2 + 1), 0.1) if spectrum else None
        self.spectrum = (
            nn.Sequential(strided((1, a, b, b), 3), nn.Flatten(), nn.Linear(b * 8 * 5, 1)) if spectrum else None
        )

    def transform(self, rgb: Tensor, reference: Tensor | None = None) -> Features:
        spectra, vector = frequency_features(rgb)
        bounded = _limit(self.vector_scale(vector))
        if self.spectrum_scale is None:
            return (bounded,)
        return bounded, _limit(self.spectrum_scale(spectra))

    def judge(self, features: Features) -> Tensor:
        logit: Tensor = self.vector(features[0]).mean((1, 2))
        if self.spectrum is None:
            return logit
        maps = features[1]
        return logit + self.spectrum(maps.reshape(-1, 1, *maps.shape[-2:])).reshape(len(maps), -1).mean(1)

    def observe(self, real: Tensor, weights: Tensor) -> None:
        spectra, vector = frequency_features(real)
        self.vector_scale.update(vector, weights)
        if self.spectrum_scale is not None:
            windows = spectra.shape[1]
            self.spectrum_scale.update(spectra.flatten(0, 1), weights.repeat_interleave(windows))


def _limit(z: Tensor) -> Tensor:
    return LIMIT * torch.tanh(z / LIMIT)


def frequency_features(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 3, H, W] -> log spectra [B, windows, 3, 64, 33] and vectors [B, 3, 46], for luma, R - G, B - G.

    A vector holds 24 rings, 4 lattice points, 9 Haar log energies, 9 phase-locked ratios |mean| / deviation.
    """
    if min(rgb.shape[-2:]) < WINDOW:
        raise UsageError(
            f"the frequency expert needs pictures of at least {WINDOW} px a side, got {tuple(rgb.shape[-2:])}"
        )
    planes = torch.cat([luma(rgb), rgb[:, 0:1] - rgb[:, 1:2], rgb[:, 2:3] - rgb[:, 1:2]], 1)
    log_power = _log_spectra(planes)
    rings, band = _rings(planes.dtype, planes.device)
    flat = log_power.flatten(-2)
    gain = flat @ band
    spectra = log_power - gain[..., None, None]
    ringed = ((flat - gain[..., None]) @ rings).mean(1)
    lattice = torch.stack([spectra[..., row, column] for row, column in LATTICE], -1).mean(1)
    energy, phase = _haar(planes)
    return spectra, torch.cat([ringed, lattice, energy - gain.mean(1)[..., None], phase], -1)


def _log_spectra(planes: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, windows, C, 64, 33]: log power per pixel under a Hann window, local mean removed."""
    tiles = planes.unfold(2, WINDOW, WINDOW).unfold(3, WINDOW, WINDOW)
    tiles = tiles.flatten(2, 3).transpose(1, 2)
    hann = torch.hann_window(WINDOW, periodic=False, dtype=planes.dtype, device=planes.device)
    taper = torch.outer(hann, hann)
    mean = (tiles * taper).sum((-2, -1), keepdim=True) / taper.sum()
    spectrum = torch.fft.rfft2((tiles - mean) * taper)
    power = (spectrum.real.square() + spectrum.imag.square()) / taper.square().sum()
    return (power + FLOOR).log()


@lru_cache(maxsize=8)
def _rings(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Matrix [64 * 33, 24] that averages a half spectrum over rings, and [64 * 33], over the gain band."""
    rows = torch.fft.fftfreq(WINDOW, dtype=torch.float64)[:, None]
    columns = torch.fft.rfftfreq(WINDOW, dtype=torch.float64)[None, :]
    radius = (rows.square() + columns.square()).sqrt().flatten() / math.sqrt(0.5)
    ring = (radius * RINGS).long().clamp(max=RINGS - 1)
    matrix = torch.zeros(len(radius), RINGS, dtype=torch.float64)
    matrix[torch.arange(len(radius)), ring] = 1
    band = ((radius >= GAIN_BAND[0]) & (radius <= GAIN_BAND[1])).double()
    return (matrix / matrix.sum(0)).to(device, dtype), (band / band.sum()).to(device, dtype)


def _haar(planes: Tensor) -> tuple[Tensor, Tensor]:
    """[B, C, H, W] -> log energies and phase-locked ratios, both [B, C, 9], of LH, HL, HH at three levels."""
    energies, phases = [], []
    side = 2**LEVELS
    low = planes[..., : planes.shape[-2] // side * side, : planes.shape[-1] // side * side]
    for _ in range(LEVELS):
        a, b, c, d = low[..., ::2, ::2], low[..., ::2, 1::2], low[..., 1::2, ::2], low[..., 1::2, 1::2]
        low = (a + b + c + d) / 2
        for band in ((a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2):
            mean, square = band.mean((-2, -1)), band.square().mean((-2, -1))
            deviation = (square - mean.square()).clamp(min=0).add(LEAST_DEVIATION**2).sqrt()
            energies.append((square + FLOOR).log())
            phases.append(mean.abs() / deviation)
    return torch.stack(energies, -1), torch.stack(phases, -1)
