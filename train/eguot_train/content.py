"""What pictures show, told by what no look changes, and weights that make two folders show the same on the mean.

Two folders of unlike scenes differ in tone and colour for two reasons: the look, which the alignment wants, and what
happens to be shown, which it does not. Pictures with bright colourful things on dark ground, or with a dark middle
against the sky, are darker or brighter than others in any look. So pictures are described by numbers that a rising
tone curve, a saturation and a small turn of hue leave alone (`describe`), and both folders are weighted until their
means agree: entropy balancing (Hainmueller 2012) with a ridge, towards the mean of both. `train/LOG.md` says what it
is worth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eguot_sdk.raw import RawFrame
from eguot_sdk.spec import ColorInput

from .cost import LUMA
from .reference import Alignment
from .typical import FEWEST, reference_thumbnail, thumbnail

RIDGE = 1.0
"""Price of the tilt's squared size. With less, few pictures carry a folder; with more, nothing is balanced."""
FARTHEST = 2.5
"""Standard deviations at which a picture's number is cut off, so that no odd one carries its folder."""
SECTORS = 6

Array = NDArray[np.float64]


def content_weights(
    frames: Sequence[RawFrame], photos: Sequence[NDArray[np.uint8]], color_input: ColorInput
) -> tuple[list[float], list[float]]:
    """Weights of the raws and of the photos (uint8 sRGB [H, W, 3]), of mean 1 on each side.

    All 1 with fewer than FEWEST pictures on a side: then every one is needed.
    """
    if min(len(frames), len(photos)) < FEWEST:
        return [1.0] * len(frames), [1.0] * len(photos)
    raws = np.stack([describe(reference_thumbnail(frame, Alignment(), color_input)) for frame in frames])
    targets = np.stack([describe(thumbnail(photo)) for photo in photos])
    deviation = np.sqrt((raws.var(0) + targets.var(0)) / 2) + 1e-6
    middle = (raws.mean(0) + targets.mean(0)) / 2
    first, second = (tilt(((x - middle) / deviation).clip(-FARTHEST, FARTHEST)) for x in (raws, targets))
    return [float(w) for w in first], [float(w) for w in second]


def tilt(numbers: Array) -> Array:
    """Weights [P] of mean 1, exp(numbers @ t), whose weighted mean of `numbers` [P, K] is nearest to 0.

    t minimises log mean exp(numbers @ t) + RIDGE / 2 |t|^2, by Newton's method; the gradient is that mean + RIDGE t.
    """
    t = np.zeros(numbers.shape[1])
    for _ in range(50):
        share = _share(numbers @ t)
        mean = share @ numbers
        slope = mean + RIDGE * t
        if np.abs(slope).max() < 1e-9:
            break
        curvature = (numbers * share[:, None]).T @ numbers - np.outer(mean, mean) + RIDGE * np.eye(len(t))
        step = np.linalg.solve(curvature, slope)
        t = t - step / max(1.0, float(np.abs(step).max()))
    return _share(numbers @ t) * len(numbers)


def _share(height: Array) -> Array:
    mass = np.exp(height - height.max())
    return np.asarray(mass / mass.sum())


def describe(rgb: Array) -> Array:
    """[9] of a picture [H, W, 3] in [0, 1], the same for its quarter turns and for every look of an `Alignment`
    but for the turn of its hue.

    Brightness counts by rank alone: its correlations with colourfulness, with R - Y and with B - Y, and that of the
    middle. Then the shares of the colourfulness that five of six sectors of hue hold. Nothing of edges or noise, which
    differ between raws and finished photos.
    """
    luma = rgb @ np.array(LUMA)
    rank = _ranks(luma)
    red, blue = rgb[..., 0] - luma, rgb[..., 2] - luma
    colourful = np.hypot(red, blue)
    held, hue = colourful / (colourful.sum() + 1e-6), np.arctan2(blue, red)
    around = [np.cos(hue - k * 2 * np.pi / SECTORS) > np.cos(np.pi / SECTORS) for k in range(SECTORS - 1)]
    y, x = (np.linspace(-1, 1, n) for n in rank.shape)
    middle = rank[y[:, None] ** 2 + x**2 < 0.5].mean()
    along = [_correlation(rank, other) for other in (colourful, red, blue)]
    return np.array([*along, middle, *(held[inside].sum() for inside in around)])


def _ranks(values: Array) -> Array:
    """Share of the pixels below each one, of its equals a half; values closer than 1e-6 are equal."""
    _, place, count = np.unique(values.round(6), return_inverse=True, return_counts=True)
    return np.asarray(((np.cumsum(count) - count / 2) / values.size)[place].reshape(values.shape))


def _correlation(a: Array, b: Array) -> float:
    """Pearson's, 0 where one of them is flat."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size > 1e-9 else 0.0
