"""Lens shading: the gain maps of a DNG (OpcodeList2), which even out what the lens darkens towards its corners.

A map is a coarse grid of gains over the active area, applied to the linear counts of one plane after black and before
clipping. Other opcodes (warps, bad pixels) are not read. Sizes are bounded before anything is allocated.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import RawError, UsageError

if TYPE_CHECKING:
    from .raw import RawFrame

GAIN_MAP = 9
MAX_OPCODES = 64
MAX_POINTS = 1 << 14
MAX_GAIN = 64.0
PEDESTAL, TOP = 2048, 65535
"""Levels of an evened frame: 16 bits for any sensor, so that rounding costs nothing, and room below black for noise."""
ROWS = 64


LensShading = Literal["auto", "on", "off"]
"""Apply the gain maps of a file: where it has some, always (and refuse a file without), never."""


class ShadingError(ValueError):
    """The maps are damaged, or of a kind not read here."""


@dataclass(frozen=True, eq=False, kw_only=True)
class GainMap:
    """Gains of one colour plane on a regular grid, bilinear in between and constant outside it."""

    points: NDArray[np.float32]
    """[v, h] gains."""
    spacing: tuple[float, float]
    """Between points, as shares of the height and width of `area`."""
    origin: tuple[float, float]
    """Place of the first point, likewise."""
    area: tuple[int, int, int, int]
    """Top, left, height, width of the area, in pixels of the mosaic."""

    def __post_init__(self) -> None:
        points, grid = self.points, (*self.spacing, *self.origin)
        if points.ndim != 2 or not 1 <= points.size <= MAX_POINTS:
            raise ShadingError(f"a gain map of shape {points.shape}")
        if not (np.isfinite(points).all() and points.min() > 0 and points.max() <= MAX_GAIN):
            raise ShadingError(f"gains outside 0..{MAX_GAIN:g}")
        if not np.isfinite(grid).all() or min(self.spacing) <= 1e-6 or max(abs(v) for v in grid) > 10:
            raise ShadingError("a grid of points that makes no sense")
        if len(self.area) != 4 or not all(isinstance(v, int) for v in self.area) or min(self.area[2:]) < 1:
            raise ShadingError(f"an area {self.area!r:.80} that is none")

    def along(self, axis: int, index: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """For pixels of the mosaic along an axis: the grid point before each, and the weight of the one after."""
        place = (index + 0.5 - self.area[axis]) / self.area[2 + axis]
        last = self.points.shape[axis] - 1
        at = np.clip((place - self.origin[axis]) / self.spacing[axis], 0, last) if last else np.zeros(len(index))
        before = np.minimum(at.astype(np.intp), max(last - 1, 0))
        return before, (at - before).astype(np.float32)


GainMaps = tuple[GainMap | None, GainMap | None, GainMap | None, GainMap | None]
"""Of the planes R, Gr, Gb, B; None: a gain of 1."""


def read_gain_maps(
    opcodes: bytes, *, cfa: str, origin: tuple[int, int], area: tuple[int, int, int, int]
) -> GainMaps | None:
    """The maps in the bytes of an OpcodeList2; None where it holds none. Raises ShadingError.

    `cfa`: phase of the mosaic; `origin`: row and column of the active area in it; `area`: top, left, height, width of
    the same, in pixels of the mosaic.
    """
    found: dict[int, GainMap] = {}
    for values, points in _gain_maps(opcodes):
        top, left, bottom, right, plane, planes, row_pitch, column_pitch = values[:8]
        if plane != 0 or planes < 1 or (row_pitch, column_pitch) not in ((1, 1), (2, 2)):
            raise ShadingError("gain maps of another layout than one for each colour of a 2 x 2 cell")
        if bottom - top < area[2] - 2 * row_pitch or right - left < area[3] - 2 * column_pitch:
            raise ShadingError("a gain map for a part of the picture")
        spacing, place = (values[10], values[11]), (values[12], values[13])
        made = GainMap(points=points, spacing=spacing, origin=place, area=area)
        for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)) if row_pitch == 1 else ((top % 2, left % 2),):
            site = 2 * ((int(y) + origin[0]) % 2) + (int(x) + origin[1]) % 2
            found[site] = _product(found[site], made) if site in found else made
    if not found:
        return None
    red = cfa.index("R")
    return found.get(red), found.get(red ^ 1), found.get(red ^ 2), found.get(red ^ 3)


def _product(one: GainMap, two: GainMap) -> GainMap:
    if one.points.shape != two.points.shape or one.spacing != two.spacing or one.origin != two.origin:
        raise ShadingError("several gain maps of different grids for one plane")
    return dataclasses.replace(one, points=one.points * two.points)


def _gain_maps(opcodes: bytes) -> Iterator[tuple[tuple[float, ...], NDArray[np.float32]]]:
    """The numbers and points of every gain map in a list of opcodes, which is big-endian in every DNG."""
    try:
        (count,) = struct.unpack_from(">I", opcodes)
        at = 4
        for _ in range(min(count, MAX_OPCODES)):
            code, _, _, length = struct.unpack_from(">4I", opcodes, at)
            data, at = opcodes[at + 16 : at + 16 + length], at + 16 + length
            if at > len(opcodes):
                raise ShadingError("an opcode is cut short")
            if code == GAIN_MAP:
                values = struct.unpack_from(">10I4dI", data)
                yield values[:14], _points(data, int(values[8]), int(values[9]), int(values[14]))
    except struct.error as error:
        raise ShadingError("the list of opcodes is cut short") from error


def _points(data: bytes, height: int, width: int, planes: int) -> NDArray[np.float32]:
    if not (1 <= height * width <= MAX_POINTS and planes == 1 and len(data) >= 76 + 4 * height * width):
        raise ShadingError(f"a gain map of {height} x {width} points in {planes} planes and {len(data)} bytes")
    return np.frombuffer(data, ">f4", height * width, 76).astype(np.float32).reshape(height, width)


def check_lens_shading(lens_shading: str) -> None:
    """Raise UsageError where it is none of LensShading."""
    if lens_shading not in get_args(LensShading):
        raise UsageError(f"lens shading is auto, on or off, not {lens_shading!r}")


def shaded(frame: RawFrame, lens_shading: LensShading) -> RawFrame:
    """The frame as `lens_shading` asks for it. Raises RawError with `on` where the frame has no gain maps."""
    check_lens_shading(lens_shading)
    if lens_shading == "on" and frame.gain_maps is None and frame.origins.get("gain_maps") != "applied":
        why = frame.origins.get("gain_maps", "absent")
        raise RawError(f"{frame.source or 'the frame'}: no lens shading to apply ({why}): use auto or off")
    return frame if lens_shading == "off" else evened(frame)


def evened(frame: RawFrame) -> RawFrame:
    """The frame with its gain maps applied to the counts, which become 16 bits with levels of their own."""
    if frame.gain_maps is None:
        return frame
    mosaic = np.empty(frame.mosaic.shape, np.uint16)
    red = frame.cfa.index("R")
    for plane, gain_map in enumerate(frame.gain_maps):
        y, x = divmod(red ^ plane, 2)
        scale = (TOP - PEDESTAL) / (frame.white[plane] - frame.black[plane])
        source, target = frame.mosaic[y::2, x::2], mosaic[y::2, x::2]
        rows, columns = np.arange(y, frame.height, 2), np.arange(x, frame.width, 2)
        if gain_map is not None:
            line, line_weight = gain_map.along(0, rows)
            column, weight = gain_map.along(1, columns)
            points = gain_map.points
            after = np.minimum(column + 1, points.shape[1] - 1)
            wide = points[:, column] * (1 - weight) + points[:, after] * weight
        for top in range(0, len(source), ROWS):
            counts = source[top : top + ROWS].astype(np.float32)
            counts -= np.float32(frame.black[plane])
            counts *= np.float32(scale)
            if gain_map is not None:
                low, share = line[top : top + ROWS], line_weight[top : top + ROWS, None]
                high = np.minimum(low + 1, len(wide) - 1)
                counts *= wide[low] * (1 - share) + wide[high] * share
            counts += np.float32(PEDESTAL + 0.5)
            target[top : top + ROWS] = np.clip(counts, 0, TOP).astype(np.uint16)
    mosaic.setflags(write=False)
    origins = {**frame.origins, "gain_maps": "applied"}
    levels = (float(PEDESTAL),) * 4, (float(TOP),) * 4
    return dataclasses.replace(frame, mosaic=mosaic, black=levels[0], white=levels[1], gain_maps=None, origins=origins)
