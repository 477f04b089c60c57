"""How typical each target photo is of what the raws show: unbalanced transport between whole pictures.

The potential judges crops and needs many steps to say anything; drawings, screens, infrared or thermal pictures
among the photos can be told before the first one. A picture is a point: tone, colour and their relations, edges and
layout, measured on a 64-pixel thumbnail, raws through the aligned reference rendering. Distances are scaled by how
raws differ among each other. A photo's weight is the mass that the unbalanced plan leaves it over the median
photo's, at most 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from eguot_sdk.output import upright
from eguot_sdk.raw import RawFrame
from eguot_sdk.spec import ColorInput

from .alignment import unbalanced_marginals
from .cost import LUMA
from .reference import Alignment, half_size
from .render import frame_planes, to_uint8

SIDE = 64
FEWEST = 8
"""Pictures a side below which nothing is typical: all photos weigh the same."""
RELAXATION, ENTROPY, STEPS = 1.0, 0.3, 200
SHRINKAGE = 0.5
"""Of the covariance of the statistics towards independence: raws are few."""
LEAST_DEVIATION = 0.02
LEAST_MASS = 1e-6
"""What the plan leaves the median photo, of its even share, below which distances mean nothing."""

Array = NDArray[np.float64]


def photo_typicality(
    frames: Sequence[RawFrame], photos: Sequence[NDArray[np.uint8]], alignment: Alignment, color_input: ColorInput
) -> list[float]:
    """Weight of each photo (uint8 sRGB [H, W, 3]): 1 for the better half, towards 0 for what no raw resembles."""
    if min(len(frames), len(photos)) < FEWEST:
        return [1.0] * len(photos)
    raws = np.stack([_statistics(_thumbnail(_rendered(frame, alignment, color_input))) for frame in frames])
    targets = np.stack([_statistics(_thumbnail(photo)) for photo in photos])
    mean, deviation = raws.mean(0), raws.std(0) + LEAST_DEVIATION
    raws, targets = (raws - mean) / deviation, (targets - mean) / deviation
    covariance = (1 - SHRINKAGE) * np.cov(raws.T) + SHRINKAGE * np.eye(raws.shape[1])
    whiten = np.linalg.cholesky(np.linalg.inv(covariance))
    a, b = (torch.from_numpy(x @ whiten) for x in (raws, targets))
    distance = torch.cdist(a, b).square() / (2 * raws.shape[1])
    even_a, even_b = (torch.full((len(x),), 1 / len(x), dtype=a.dtype) for x in (a, b))
    _, plan, _ = unbalanced_marginals(distance, even_a, even_b, relaxation=RELAXATION, entropy=ENTROPY, steps=STEPS)
    weights = plan.numpy() * len(photos)
    middle = float(np.median(weights))
    if not middle > LEAST_MASS:  # raws so alike, of a burst or a dark room, that no photo is like them: it says nothing
        return [1.0] * len(photos)
    return [float(w) for w in (weights / middle).clip(max=1.0)]


def _rendered(frame: RawFrame, alignment: Alignment, color_input: ColorInput) -> NDArray[np.uint8]:
    """Aligned R(x) at half size, upright as photos are."""
    planes, _ = frame_planes(frame, color_input, 0, 1)
    return np.ascontiguousarray(upright(to_uint8(alignment.apply(half_size(planes))[0]), frame.orientation), np.uint8)


def _thumbnail(picture: NDArray[np.uint8]) -> Array:
    image = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(image, np.float64) / 255


def _statistics(rgb: Array) -> Array:
    """[17] of a thumbnail [SIDE, SIDE, 3] in [0, 1]."""
    y = rgb @ np.array(LUMA)
    u, v = rgb[..., 0] - y, rgb[..., 2] - y
    covariance = np.cov(np.stack([y.ravel(), u.ravel(), v.ravel()]))
    deviation = np.sqrt(np.diag(covariance)) + 0.01
    correlation = covariance / np.outer(deviation, deviation)
    slope = np.hypot(np.diff(y, axis=0)[:, :-1], np.diff(y, axis=1)[:-1])
    steep = np.sqrt(np.square(slope).mean()) + 1e-3
    third = SIDE // 3
    tone = [*np.quantile(y, [0.05, 0.25, 0.5, 0.75, 0.95]), *np.log(deviation)]
    colour = [3 * u.mean(), 3 * v.mean(), correlation[0, 1], correlation[0, 2], correlation[1, 2]]
    edges = [np.log(steep / deviation[0]), slope.mean() / steep, np.log((np.median(slope) + 0.003) / steep)]
    from_above = (y[:third].mean() - y[-third:].mean()) / deviation[0]
    return np.array([*tone, *colour, *edges, from_above])
