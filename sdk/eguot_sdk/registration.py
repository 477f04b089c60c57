"""Brings a truth that was shot by another camera into register with a rendering, block by block (METHOD.md 2.1).

Pairs of two cameras are misaligned by pixels, and a shift of one pixel costs more PSNR than most differences between
ISPs.
The colours of the picture are mapped affinely to the truth's luma, both low-passed, so that a cast does not matter.
Then for each block of 32 x 32 pixels whole shifts of up to 4 pixels are tried, and the one of the highest normalised
cross-correlation is kept. Blocks above 0.8 count as matched. The truth is warped by the smoothed field of shifts; what
is not matched, or would come from outside the truth, is masked. No learned optical flow: numbers compare only with
numbers taken this way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .metrics import LUMA

BLOCK = 32
REACH = 4
LEAST_SIDE = BLOCK + 2 * REACH
MATCHED = 0.8
LOW_PASS = np.array([1, 4, 6, 4, 1], np.float32) / 16

Picture = NDArray[np.uint8]
Float32 = NDArray[np.float32]


def register(picture: Picture, truth: Picture) -> tuple[Picture, NDArray[np.bool_]]:
    """The truth warped onto the picture, and where to compare; both uint8 sRGB [H, W, 3], 40 pixels a side or more."""
    if picture.shape != truth.shape or picture.ndim != 3 or min(picture.shape[:2]) < LEAST_SIDE:
        raise UsageError(
            f"register needs pictures of one size, {LEAST_SIDE} pixels or more: {picture.shape}, {truth.shape}"
        )
    shifts, matched = _block_shifts(picture, truth)
    dy, dx = (_spread(_smoothed(shifts[..., axis], matched), truth.shape[:2]) for axis in range(2))
    height, width = truth.shape[:2]
    y = np.arange(height, dtype=np.float32)[:, None] + dy
    x = np.arange(width, dtype=np.float32)[None, :] + dx
    inside = (y >= 0) & (y <= height - 1) & (x >= 0) & (x <= width - 1)
    mask = np.repeat(np.repeat(matched, BLOCK, 0), BLOCK, 1)
    rows, cols = (np.minimum(np.arange(n), m - 1) for n, m in zip((height, width), mask.shape, strict=True))
    return _sampled(truth, y, x), mask[np.ix_(rows, cols)] & inside


def _block_shifts(picture: Picture, truth: Picture) -> tuple[Float32, NDArray[np.bool_]]:
    """Shift (y, x) of each block, [by, bx, 2]: how far the truth's content lies from the picture's; which matched."""
    h, w = (n // BLOCK * BLOCK for n in truth.shape[:2])
    target = _low_passed(truth.astype(np.float32) @ np.array(LUMA, np.float32))
    source = _mapped(picture.astype(np.float32)[:h, :w], target[:h, :w])
    padded = np.pad(target, REACH, mode="reflect")
    source = source - _block_mean(source)
    norm = _block_sum(source * source)
    best = np.full(norm.shape, -1.0, np.float32)
    shifts = np.zeros((*norm.shape, 2), np.float32)
    # Nearer shifts first, and only a clear gain moves further: flat blocks stay where they are.
    reach = range(-REACH, REACH + 1)
    for dy, dx in sorted(((dy, dx) for dy in reach for dx in reach), key=lambda d: d[0] ** 2 + d[1] ** 2):
        moved = padded[REACH + dy : REACH + dy + h, REACH + dx : REACH + dx + w]
        mean = _block_mean(moved)
        variance = _block_sum(moved * moved) - BLOCK * BLOCK * mean[::BLOCK, ::BLOCK] ** 2
        score = _block_sum(source * moved) / np.sqrt(np.maximum(norm * variance, 1.0))
        better = score > best + 1e-4
        best = np.where(better, score, best)
        shifts[better] = (dy, dx)
    flat = norm < BLOCK * BLOCK * 0.25  # nothing to match: in register wherever it is, if the truth is as flat there
    still = _block_sum((target[:h, :w] - _block_mean(target[:h, :w])) ** 2) < BLOCK * BLOCK
    return shifts, (best > MATCHED) | (flat & still)


def _mapped(picture: Float32, luma: Float32) -> Float32:
    """Affine map of the picture's colours to the truth's luma, fitted on low-passed values of all blocks.

    Of all: within one block a shift of four pixels would spoil the fit.
    """
    low = np.stack([_low_passed(picture[..., c]) for c in range(3)] + [np.full(luma.shape, 255.0, np.float32)], axis=-1)
    pixels, goal = low.reshape(-1, 4).astype(np.float64), luma.reshape(-1).astype(np.float64)
    fit = np.linalg.solve(pixels.T @ pixels + np.eye(4) * len(pixels), pixels.T @ goal)
    return np.asarray(low @ fit.astype(np.float32))


def _block_sum(image: Float32) -> Float32:
    h, w = image.shape
    return np.asarray(image.reshape(h // BLOCK, BLOCK, w // BLOCK, BLOCK).sum(axis=(1, 3), dtype=np.float64))


def _block_mean(image: Float32) -> Float32:
    """Mean of each block, at every one of its pixels."""
    mean = _block_sum(image) / (BLOCK * BLOCK)
    return np.repeat(np.repeat(mean, BLOCK, 0), BLOCK, 1).astype(np.float32)


def _low_passed(image: Float32) -> Float32:
    """Five taps along both axes, reflected at the borders."""
    for _ in range(2):
        padded = np.pad(image, ((2, 2), (0, 0)), mode="reflect")
        image = np.asarray(sum(tap * padded[i : i + image.shape[0]] for i, tap in enumerate(LOW_PASS))).T
    return image


def _smoothed(shift: Float32, matched: NDArray[np.bool_]) -> Float32:
    """Means over matched neighbours, weighted 1 2 1; blocks without one keep the mean of all."""
    weight = matched.astype(np.float32)
    total = shift * weight
    for axis in (0, 1):
        total, weight = _one_two_one(total, axis), _one_two_one(weight, axis)
    everywhere = float(shift[matched].mean()) if matched.any() else 0.0
    return np.where(weight > 0, total / np.maximum(weight, 1e-6), everywhere).astype(np.float32)


def _one_two_one(field: Float32, axis: int) -> Float32:
    pad = [(0, 0), (0, 0)]
    pad[axis] = (1, 1)
    padded = np.pad(field, pad)
    n = field.shape[axis]
    first, middle, last = (np.take(padded, range(i, i + n), axis=axis) for i in range(3))
    return np.asarray(first + 2 * middle + last)


def _spread(field: Float32, size: tuple[int, int]) -> Float32:
    """Bilinear between the centres of the blocks, [H, W]."""
    result = field
    for axis in (0, 1):
        at = np.clip((np.arange(size[axis]) + 0.5) / BLOCK - 0.5, 0, field.shape[axis] - 1)
        low = np.minimum(at.astype(int), max(field.shape[axis] - 2, 0))
        high = np.minimum(low + 1, field.shape[axis] - 1)
        share = (at - low).astype(np.float32)
        share = share[:, None] if axis == 0 else share[None, :]
        result = np.take(result, low, axis=axis) * (1 - share) + np.take(result, high, axis=axis) * share
    return np.asarray(result, np.float32)


def _sampled(picture: Picture, y: Float32, x: Float32) -> Picture:
    """Bilinear samples at rows y and columns x, clamped to the picture."""
    height, width = picture.shape[:2]
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    y0, x0 = np.minimum(y.astype(int), height - 2), np.minimum(x.astype(int), width - 2)
    fy, fx = (y - y0)[..., None], (x - x0)[..., None]
    top = picture[y0, x0] * (1 - fx) + picture[y0, x0 + 1] * fx
    bottom = picture[y0 + 1, x0] * (1 - fx) + picture[y0 + 1, x0 + 1] * fx
    return np.asarray(np.rint(top * (1 - fy) + bottom * fy), np.uint8)
