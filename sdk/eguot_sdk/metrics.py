"""Image quality of one picture against its truth, as the protocol `plain` takes it.

`plain`: uint8 sRGB [H, W, 3] on both sides, as written to a file; all pixels, no alignment, no border left out,
all channels alike, peak 255. Numbers of several images are means of the numbers of each. NumPy only; pictures are
worked on in strips, so memory stays near that of the two pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError

Picture = NDArray[np.uint8]
Array = NDArray[Any]

_STRIP = 64
WINDOW = 11
_SIGMA = 1.5
_MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIDE = WINDOW * 2 ** (len(_MS_WEIGHTS) - 1)
"""Smallest side that leaves the coarsest scale of MS-SSIM a window."""

# IEC 61966-2-1 primaries with a D65 white of 0.95047, 1, 1.08883.
SRGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
D65 = np.array([0.95047, 1.0, 1.08883])
LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G, B in the luma of BT.601."""


def psnr(picture: Picture, truth: Picture) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels; inf for equal pictures."""
    _check(picture, truth)
    total = sum(_squared_error(picture[s], truth[s]) for s in _strips(len(truth)))
    return _decibel(total / truth.size)


def psnr_affine(picture: Picture, truth: Picture) -> float:
    """PSNR in dB after the affine RGB map (3x3 and offset) that brings `picture` nearest to `truth`.

    The map is fitted by least squares on all pixels; the result is clipped and rounded. The gain over `psnr` is the
    part of the error that is global colour.
    """
    _check(picture, truth)
    normal, moment = np.zeros((4, 4)), np.zeros((4, 3))
    for strip in _strips(len(truth)):
        rows = _with_one(picture[strip])
        normal += rows.T @ rows
        moment += rows.T @ truth[strip].reshape(-1, 3).astype(np.float64)
    fit = np.linalg.lstsq(normal, moment, rcond=1e-10)[0]
    total = 0
    for strip in _strips(len(truth)):
        mapped = np.clip(np.rint(_with_one(picture[strip]) @ fit), 0, 255).astype(np.uint8)
        total += _squared_error(mapped, truth[strip].reshape(-1, 3))
    return _decibel(total / truth.size)


def ssim(picture: Picture, truth: Picture, mask: NDArray[np.bool_] | None = None) -> float:
    """Structural similarity (Wang et al. 2004), mean over channels and pixels, or windows whose centre `mask` has.

    Gaussian window 11x11 with sigma 1.5, K1 0.01, K2 0.03, population covariance, only where the window fits: equal
    to scikit-image with gaussian_weights=True, sigma=1.5, use_sample_covariance=False. Sides must be 11 or more.
    """
    _check(picture, truth)
    height, width = truth.shape[:2]
    if min(height, width) < WINDOW:
        raise UsageError(f"ssim needs pictures of at least {WINDOW}x{WINDOW} pixels, not {width}x{height}")
    half = WINDOW // 2
    total, counted = 0.0, 0
    for top in range(0, height - WINDOW + 1, _STRIP):
        rows = slice(top, min(top + _STRIP + WINDOW - 1, height))
        luminance, structure = _ssim_maps(_centred(picture[rows]), _centred(truth[rows]))
        luminance *= structure
        if mask is not None:
            luminance = luminance[mask[rows][half:-half, half:-half]]
        total += float(luminance.sum(dtype=np.float64))
        counted += luminance.size
    return total / counted if counted else math.nan


def ms_ssim(picture: Picture, truth: Picture) -> float | None:
    """Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003), mean over channels; None below 176 pixels.

    Five scales halved by 2x2 means with the published weights, the window of `ssim`; negative structure counts as 0.
    """
    _check(picture, truth)
    if min(truth.shape[:2]) < MS_SSIM_SIDE:
        return None
    x, y = _centred(picture), _centred(truth)
    result = np.ones(3)
    for scale, weight in enumerate(_MS_WEIGHTS):
        luminance, structure = _ssim_maps(x, y)
        if scale == len(_MS_WEIGHTS) - 1:
            structure *= luminance
        result *= np.maximum(structure.mean(axis=(0, 1), dtype=np.float64), 0) ** weight
        x, y = _halved(x), _halved(y)
    return float(result.mean())


def delta_e_2000(picture: Picture, truth: Picture) -> float:
    """Mean CIEDE2000 colour difference over the pixels; sRGB is taken to CIELAB under D65."""
    _check(picture, truth)
    total = 0.0
    for strip in _strips(len(truth)):
        total += float(delta_e_2000_lab(srgb_to_lab(picture[strip]), srgb_to_lab(truth[strip])).sum(dtype=np.float64))
    return float(total / (truth.shape[0] * truth.shape[1]))


def srgb_to_lab(picture: Picture) -> NDArray[np.float32]:
    """uint8 sRGB [..., 3] -> CIELAB under D65, float32 [..., 3]: L in 0..100."""
    code = np.arange(256) / 255.0
    linear = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4).astype(np.float32)
    relative = linear[picture] @ (SRGB_TO_XYZ / D65[:, None]).T.astype(np.float32)
    f = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


def delta_e_2000_lab(first: Array, second: Array) -> Array:
    """CIEDE2000 between CIELAB colours [..., 3] (Sharma, Wu and Dalal 2005), kL = kC = kH = 1; floats [...]."""
    l1, a1, b1 = (first[..., i] for i in range(3))
    l2, a2, b2 = (second[..., i] for i in range(3))
    g = 1.5 - 0.5 * np.sqrt(_saturation_7((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2))
    a1, a2 = a1 * g, a2 * g
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.arctan2(b1, a1) % (2 * np.pi), np.arctan2(b2, a2) % (2 * np.pi)
    grey = c1 * c2 == 0
    turn = h2 - h1
    turn = np.where(turn > np.pi, turn - 2 * np.pi, np.where(turn < -np.pi, turn + 2 * np.pi, turn))
    hue_difference = np.where(grey, 0, 2 * np.sqrt(c1 * c2) * np.sin(turn / 2))
    # The mean hue lies in the middle of the shorter way round; of a grey and a colour it is the colour's hue.
    hue = np.where(grey, h1 + h2, h1 + turn / 2)
    lightness, chroma = (l1 + l2) / 2 - 50, (c1 + c2) / 2
    t = (
        1
        - 0.17 * np.cos(hue - np.radians(30))
        + 0.24 * np.cos(2 * hue)
        + 0.32 * np.cos(3 * hue + np.radians(6))
        - 0.20 * np.cos(4 * hue - np.radians(63))
    )
    from_blue = (np.degrees(hue) % 360 - 275) / 25
    rotation = -2 * np.sqrt(_saturation_7(chroma)) * np.sin(np.radians(60) * np.exp(-(from_blue**2)))
    dl = (l2 - l1) / (1 + 0.015 * lightness**2 / np.sqrt(20 + lightness**2))
    dc = (c2 - c1) / (1 + 0.045 * chroma)
    dh = hue_difference / (1 + 0.015 * chroma * t)
    return np.asarray(np.sqrt(np.maximum(dl**2 + dc**2 + dh**2 + rotation * dc * dh, 0)))


def _saturation_7(chroma: Array) -> Array:
    """C^7 / (C^7 + 25^7)."""
    ratio = (chroma / 25) ** 7
    return np.asarray(ratio / (ratio + 1))


def _ssim_maps(x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Luminance and contrast-structure maps of centred pictures.

    Written in sum s and difference d of the pictures: 2 cov(x, y) = (var s - var d) / 2 and
    var x + var y = (var s + var d) / 2, four filtered images for five; the means alike.
    """
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    total, difference = x + y, x - y
    mean_s, mean_d = _filter(total), _filter(difference)
    var_s = _filter(total * total) - mean_s * mean_s
    var_d = _filter(difference * difference) - mean_d * mean_d
    mean_s += 255
    mean_s *= mean_s
    mean_d *= mean_d
    luminance = ((mean_s - mean_d) / 2 + c1) / ((mean_s + mean_d) / 2 + c1)
    structure = ((var_s - var_d) / 2 + c2) / ((var_s + var_d) / 2 + c2)
    return luminance.astype(np.float32, copy=False), structure.astype(np.float32, copy=False)


def _centred(picture: Picture) -> NDArray[np.float32]:
    """Around 0, so that single precision suffices."""
    return picture.astype(np.float32) - np.float32(127.5)


def _halved(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of 2x2 pixels; an odd last row or column is left out."""
    h, w = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    return np.asarray(image[:h, :w].reshape(h // 2, 2, w // 2, 2, -1).mean(axis=(1, 3)))


def _filter(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gaussian window over the first two axes, where it fits: [h, w, 3] -> [h - 10, w - 10, 3]."""
    half = WINDOW // 2
    taps = np.exp(-0.5 * (np.arange(-half, half + 1) / _SIGMA) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for _ in range(2):
        size = image.shape[0] - 2 * half
        result = taps[half] * image[half : half + size]
        for i in range(half):
            result += taps[i] * (image[i : i + size] + image[2 * half - i : 2 * half - i + size])
        image = result.swapaxes(0, 1)
    return image


def _squared_error(picture: Picture, truth: Picture) -> int:
    difference = picture.astype(np.int32) - truth
    return int((difference * difference).sum(dtype=np.int64))


def _decibel(mean_squared_error: float) -> float:
    return math.inf if mean_squared_error == 0 else 10 * math.log10(255**2 / mean_squared_error)


def _with_one(picture: Picture) -> NDArray[np.float64]:
    """Pixels [n, 4]: R, G, B, 1."""
    rows = np.ones((picture.shape[0] * picture.shape[1], 4))
    rows[:, :3] = picture.reshape(-1, 3)
    return rows


def _strips(height: int) -> Iterator[slice]:
    return (slice(top, top + _STRIP) for top in range(0, height, _STRIP))


def _check(picture: Array, truth: Array) -> None:
    for what, image in (("picture", picture), ("truth", truth)):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise UsageError(f"the {what} must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    if picture.shape != truth.shape:
        raise UsageError(f"picture {list(picture.shape)} and truth {list(truth.shape)} differ in size")
