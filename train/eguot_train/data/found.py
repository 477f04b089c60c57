"""Pairs that nobody named: raws and target photos of one scene in one framing, told by their structure.

Many who have two folders have scenes in both: raws with the camera's own JPEGs, a phone beside a camera, a data set
whose pairs were shuffled. Each raw's reference rendering and each photo is reduced to 32x32 and its luma locally
normalised, which removes tone and colour (the structure term of the transport cost). Pictures of one scene then
correlate above 0.95, pictures of different scenes below 0.35 (`train/LOG.md`), so no close call has to be made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from eguot_sdk.raw import RawFrame
from eguot_sdk.spec import ColorInput

from ..cost import normalised_luma
from ..reference import half_size
from ..render import frame_planes, to_uint8
from .crops import Picture, middle

SIDE = 32
SURE, CLEAR = 0.8, 0.3
"""Least correlation of a pair, and how far it must lie above the next best one of its raw and of its photo."""
LEEWAY = 0.03
"""Sides may differ by this share: a camera's JPEG leaves out a few rows and columns of the sensor."""
MOST = 50
"""Pairs that are kept: so many settle what pairs can settle."""
WINDOW = 1024
"""Pixels a side of the middle that is used of each: registration takes two seconds a megapixel."""


@dataclass(frozen=True, slots=True)
class Found:
    """One raw and the photo of its scene, by index."""

    raw: int
    photo: int
    turns: int
    """Quarter turns, counter-clockwise, that lay the photo as the sensor lay."""
    likeness: float
    """Correlation of their structure, at most 1."""


def find_same_scenes(frames: Sequence[RawFrame], photos: Sequence[Picture], color_input: ColorInput) -> list[Found]:
    """Raws and photos (uint8 sRGB [H, W, 3]) of one scene in one framing, the surest first, at most MOST.

    Pictures whose sides differ by more than LEEWAY are no match, nor are those cut or zoomed differently.
    """
    raws = [_structure(_thumbnail_of_raw(frame, color_input)) for frame in frames]
    best: dict[tuple[int, int], Found] = {}
    scores = np.full((len(frames), len(photos)), -1.0)
    for j, photo in enumerate(photos):
        for turns in range(4):
            size = photo.shape[:2] if turns % 2 == 0 else photo.shape[1::-1]
            same = [i for i, f in enumerate(frames) if _close((f.height, f.width), (size[0], size[1]))]
            if not same:
                continue
            structure = _structure(np.rot90(_thumbnail(photo), turns))
            for i in same:
                likeness = float(raws[i] @ structure)
                if likeness > scores[i, j]:
                    scores[i, j] = likeness
                    best[i, j] = Found(i, j, turns, likeness)
    kept = [found for found in best.values() if found.likeness > SURE and _stands_out(scores, found)]
    return sorted(kept, key=lambda found: -found.likeness)[:MOST]


def laid_on(photo: Picture, frame: RawFrame, found: Found) -> Picture:
    """The photo turned as the sensor lay and centred on the mosaic, uint8 [H, W, 3]: cut, or its border repeated."""
    picture = np.rot90(photo, found.turns)
    for axis, size in enumerate((frame.height, frame.width)):
        spare = picture.shape[axis] - size
        first = max(spare, 0) // 2
        picture = np.take(picture, range(first, first + min(size, picture.shape[axis])), axis=axis)
        missing = size - picture.shape[axis]
        widths = [(0, 0)] * 3
        widths[axis] = (missing // 2, missing - missing // 2)
        picture = np.pad(picture, widths, mode="edge")
    return np.ascontiguousarray(picture)


def found_pairs(
    frames: Sequence[RawFrame], photos: Sequence[Picture], color_input: ColorInput
) -> Iterator[tuple[int, RawFrame, Picture]]:
    """Index of the photo, raw, and the photo laid on it, of each pair that `find_same_scenes` tells: their middles."""
    for found in find_same_scenes(frames, photos, color_input):
        frame = frames[found.raw]
        truth = laid_on(photos[found.photo], frame, found)
        part = middle(frame.height, frame.width, WINDOW)
        yield found.photo, replace(frame, mosaic=frame.mosaic[part]), np.ascontiguousarray(truth[part])


def _close(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return all(abs(m - n) <= LEEWAY * m for m, n in zip(a, b, strict=True))


def _stands_out(scores: NDArray[np.float64], found: Found) -> bool:
    others = [np.delete(scores[found.raw], found.photo), np.delete(scores[:, found.photo], found.raw)]
    return all(found.likeness - other.max(initial=-1.0) > CLEAR for other in others)


def _thumbnail(picture: Picture) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX))


def _thumbnail_of_raw(frame: RawFrame, color_input: ColorInput) -> Picture:
    """Of the raw's plain rendering at half size."""
    planes, _ = frame_planes(frame, color_input, 0, 1)
    return _thumbnail(to_uint8(half_size(planes)[0]))


def _structure(thumbnail: Picture) -> Tensor:
    """Unit vector [SIDE * SIDE] of a thumbnail's locally normalised luma."""
    rgb = torch.from_numpy(thumbnail.astype(np.float32) / 255).permute(2, 0, 1)[None]
    flat = normalised_luma(rgb, 1).flatten()
    flat = flat - flat.mean()
    return flat / flat.norm().clamp(min=1e-6)
