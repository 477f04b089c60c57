"""How alike two sets of pictures are that show different scenes (METHOD.md 6): for training without pairs.

Each picture is boiled down to a few kilobytes, so sets of any size stream. Distances are between sets, 0 for equal
ones: `swd_lab` sliced Wasserstein-1 between Lab colours, 256 directions, in Lab units; `hellinger_uv` between mean
RGB-uv histograms, 0..1; `log_spectral` RMS difference of mean radial log spectra of luma, dB; `rfid` Frechet distance
on fixed Haar features. All use fixed seeds and are to be compared within this project only. They also see what the
scenes show, not the look alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .metrics import LUMA, srgb_to_lab

COLOURS = 256
"""Lab colours drawn from each picture."""
DIRECTIONS = 256
QUANTILES = 512
BINS = 32
SPECTRUM = 64
"""Side of the windows whose spectrum is taken, and of those of the Haar features."""
WINDOWS = 16
LEVELS = 3

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class PictureSummary:
    """What is kept of one picture."""

    lab: NDArray[np.float32]
    """[COLOURS, 3], drawn at random."""
    histogram: NDArray[np.float32]
    """[3, BINS, BINS], sums to 1."""
    spectrum: Floats
    """[SPECTRUM / 2] radial log power of luma, dB."""
    features: NDArray[np.float32]
    """[windows, n] Haar features."""


def summarise(picture: Picture) -> PictureSummary:
    """Of a uint8 sRGB picture [H, W, 3] of at least 64 pixels a side."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or min(picture.shape[:2]) < SPECTRUM:
        raise UsageError(f"summarise needs a uint8 picture of 64 pixels or more, not {picture.dtype} {picture.shape}")
    rng = np.random.default_rng(0)
    pixels = picture.reshape(-1, 3)
    lab = srgb_to_lab(pixels[rng.integers(len(pixels), size=COLOURS)])
    windows = _windows(picture)
    return PictureSummary(lab, _uv_histogram(picture[::2, ::2]), _spectrum(windows), _haar(windows))


class PictureSet:
    """Summaries of many pictures."""

    def __init__(self) -> None:
        self._lab: list[NDArray[np.float32]] = []
        self._histogram = np.zeros((3, BINS, BINS))
        self._spectrum = np.zeros(SPECTRUM // 2)
        self._count = self._windows = 0
        self._sum: Floats | None = None
        self._outer: Floats | None = None

    def add(self, summary: PictureSummary) -> None:
        """Count one picture."""
        self._lab.append(summary.lab)
        self._histogram += summary.histogram
        self._spectrum += summary.spectrum
        self._count += 1
        features = summary.features.astype(np.float64)
        outer = features.T @ features
        self._sum = features.sum(axis=0) if self._sum is None else self._sum + features.sum(axis=0)
        self._outer = outer if self._outer is None else self._outer + outer
        self._windows += len(features)

    def distances(self, other: PictureSet) -> dict[str, float]:
        """The four distances. Raises UsageError where a set is empty."""
        if not self._count or not other._count:
            raise UsageError("no pictures to compare")
        first, second = (s._histogram / s._count for s in (self, other))
        hellinger = np.sqrt(max(0.0, 1 - float(np.sqrt(first * second).sum())))
        gap = self._spectrum / self._count - other._spectrum / other._count
        return {
            "swd_lab": sliced_wasserstein(np.concatenate(self._lab), np.concatenate(other._lab)),
            "hellinger_uv": float(hellinger),
            "log_spectral": float(np.sqrt(np.mean(gap**2))),
            "rfid": frechet(*self._gaussian(), *other._gaussian()),
        }

    def _gaussian(self) -> tuple[Floats, Floats]:
        assert self._sum is not None
        assert self._outer is not None
        mean = self._sum / self._windows
        return mean, self._outer / self._windows - np.outer(mean, mean)


def sliced_wasserstein(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Mean over directions of the Wasserstein-1 distance between projections of point clouds [n, 3] and [m, 3].

    Quantile functions are compared on a fixed grid, so clouds may differ in size.
    """
    directions = np.random.default_rng(0).standard_normal((DIRECTIONS, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    grid = (np.arange(QUANTILES) + 0.5) / QUANTILES
    gaps = [
        np.abs(np.quantile(first @ d, grid) - np.quantile(second @ d, grid)).mean()
        for d in directions.astype(np.float32)
    ]
    return float(np.mean(gaps))


def frechet(mean1: Floats, cov1: Floats, mean2: Floats, cov2: Floats) -> float:
    """Frechet distance between Gaussians: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2)."""
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov2 @ root), 0)).sum()
    return max(0.0, float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * cross))


def _uv_histogram(picture: Picture) -> NDArray[np.float32]:
    """Log-chroma histograms, weighted by brightness: for each channel the log ratios to the other two, in -1.5..1.5."""
    value = picture.reshape(-1, 3).astype(np.float64) / 255
    weight = np.sqrt((value**2).sum(axis=1))
    logs = np.log(value + 0.02)
    planes = []
    for c in range(3):
        u, v = (logs[:, c] - logs[:, (c + k) % 3] for k in (1, 2))
        planes.append(np.histogram2d(u, v, BINS, ((-1.5, 1.5), (-1.5, 1.5)), weights=weight)[0])
    total = np.stack(planes)
    return np.asarray(total / max(total.sum(), 1e-12), np.float32)


def _windows(picture: Picture) -> NDArray[np.float32]:
    """Luma and two colour differences in up to WINDOWS windows spread over the picture, [n, 64, 64, 3], in 0..1."""
    height, width = picture.shape[:2]
    per_side = int(WINDOWS**0.5)
    tops = np.unique(np.linspace(0, height - SPECTRUM, min(per_side, height // SPECTRUM)).astype(int))
    lefts = np.unique(np.linspace(0, width - SPECTRUM, min(per_side, width // SPECTRUM)).astype(int))
    cut = [picture[t : t + SPECTRUM, s : s + SPECTRUM] for t in tops for s in lefts]
    rgb = np.stack(cut).astype(np.float32) / 255
    luma = rgb @ np.array(LUMA, np.float32)
    return np.stack([luma, rgb[..., 0] - rgb[..., 1], rgb[..., 2] - rgb[..., 1]], axis=-1)


def _spectrum(windows: NDArray[np.float32]) -> Floats:
    """Mean radial log power of luma under a Hann window, dB."""
    hann = np.hanning(SPECTRUM)[:, None] * np.hanning(SPECTRUM)[None, :]
    luma = windows[..., 0] - windows[..., 0].mean(axis=(1, 2), keepdims=True)
    power = np.abs(np.fft.fft2(luma * hann)) ** 2
    frequency = np.fft.fftfreq(SPECTRUM) * SPECTRUM
    radius = np.rint(np.hypot(frequency[:, None], frequency[None, :])).astype(int)
    inside = (radius >= 1) & (radius <= SPECTRUM // 2)
    counts = np.bincount(radius[inside], minlength=SPECTRUM // 2 + 1)[1:]
    radial = [np.bincount(radius[inside], p[inside], SPECTRUM // 2 + 1)[1:] / counts for p in power]
    return np.asarray(np.mean([10 * np.log10(r + 1e-8) for r in radial], axis=0))


def _haar(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """For each window and channel: log energy of the Haar bands of three levels, and mean and spread of the rest."""
    features = []
    low = windows
    for _ in range(LEVELS):
        a, b, c, d = low[:, ::2, ::2], low[:, ::2, 1::2], low[:, 1::2, ::2], low[:, 1::2, 1::2]
        for band in (a - b + c - d, a + b - c - d, a - b - c + d):
            features.append(np.log((band / 2) ** 2 + 1e-5).mean(axis=(1, 2)))
        low = np.asarray((a + b + c + d) / 4, np.float32)
    features += [low.mean(axis=(1, 2)), low.std(axis=(1, 2))]
    return np.asarray(np.concatenate(features, axis=1), np.float32)
