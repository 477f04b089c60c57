"""The one place where a mosaic becomes network input; training and devices call the same functions.

Order: subtract black, divide by (white - black), multiply by the white-balance gain and the exposure,
clip to [0, 1] (all of it one lookup table per plane), optionally apply the camera matrix to each 2x2 cell,
compand with r^(1/2.2), quantise. Input planes are R, Gr, Gb, B of the cell; Gr is the green on the red row.

A frame whose first pixel is not red is seen through a shift of one row or column: the *virtual* mosaic starts
with red, reaches past the frame by reflection-101 (which keeps the phase), and `Ingest.crop` says where the
frame lies in it.
"""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bayer import RED_AT
from .errors import UsageError
from .raw import Four, RawFrame
from .spec import IspSpec, TensorSpec

GAMMA = 2.2
PLANE_AT = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Row and column of R, Gr, Gb, B in a cell that starts with red."""

# The mean over the cameras whose matrices LibRaw knows and that we hold raws of; rows sum to 1.
TYPICAL_MATRIX = np.array([[1.47, -0.39, -0.08], [-0.05, 1.32, -0.27], [0.05, -0.42, 1.37]])
# Daylight gains of an ordinary sensor, the prior of the grey-world estimate.
TYPICAL_GAINS = (1.9, 1.0, 1.6)
GREY_WORLD_TRUST = 0.7
# Red times blue gain of grey: about 3 for sensors, under any light, and 1 where the camera balanced before storing.
BALANCED_BELOW = 1.35
GAIN_LIMITS = (0.25, 8.0)

STRIPE = 1 << 14
"""Cells worked on at once: so few stay in cache, and keep the matrix product of float ingest below the size where
OpenBLAS starts threads of its own (4 to 10 times slower on busy cores).
"""
CODES = 65535

Array = NDArray[Any]
Float32 = NDArray[np.float32]
Runs = list[tuple[slice, slice | NDArray[np.intp]]]
"""Places along one axis of an output, and where in the mosaic they come from."""


def compand(linear: Array, exponent: float = 1 / GAMMA) -> Float32:
    """clip(linear, 0, 1) ** exponent, float32, any shape."""
    return np.power(np.clip(linear, 0.0, 1.0).astype(np.float32, copy=False), np.float32(exponent))


def decompand(companded: Array, exponent: float = 1 / GAMMA) -> Float32:
    """The inverse of `compand` on [0, 1]."""
    return np.power(np.clip(companded, 0.0, 1.0).astype(np.float32, copy=False), np.float32(1.0 / exponent))


def pack(mosaic: Array) -> Array:
    """[2h, 2w] starting with red -> [h, w, 4] in the order R, Gr, Gb, B."""
    if mosaic.ndim != 2 or mosaic.shape[0] % 2 or mosaic.shape[1] % 2:
        raise UsageError(f"pack needs an even [H, W] mosaic, not shape {mosaic.shape}")
    return np.stack([mosaic[y::2, x::2] for y, x in PLANE_AT], axis=-1)


def unpack(planes: Array) -> Array:
    """The inverse of `pack`: [h, w, 4] -> [2h, 2w]."""
    if planes.ndim != 3 or planes.shape[2] != 4:
        raise UsageError(f"unpack needs [h, w, 4] planes, not shape {planes.shape}")
    mosaic = np.empty((2 * planes.shape[0], 2 * planes.shape[1]), planes.dtype)
    for i, (y, x) in enumerate(PLANE_AT):
        mosaic[y::2, x::2] = planes[..., i]
    return mosaic


def reflect(index: NDArray[np.intp], size: int) -> NDArray[np.intp]:
    """Reflection-101 of any whole number into 0..size-1; keeps parity, so it keeps the CFA phase."""
    period = 2 * (size - 1)
    index = np.abs(index) % period
    return np.where(index >= size, period - index, index)


def balanced_gains(frame: RawFrame) -> tuple[tuple[float, float, float], str]:
    """White-balance gains R, G, B scaled so that the smallest is 1, and where they came from.

    With the smallest gain at 1 every channel reaches 1 where the sensor clips, so clipped highlights stay white.
    Without an as-shot balance the gains are a grey-world estimate drawn towards a typical daylight balance, or towards
    1, 1, 1 where the counts look balanced already, as those of early digital cameras are; only an estimate is limited.
    """
    gains, limit = frame.white_balance, math.inf
    origin = frame.origins.get("white_balance", "argument")
    if gains is None:
        gains, limit = _grey_world(frame), GAIN_LIMITS[1]
        origin = "estimate: grey world, drawn towards a typical balance"
    low = min(gains)
    red, green, blue = (min(g / low, limit) for g in gains)
    return (red, green, blue), origin


def _grey_world(frame: RawFrame) -> tuple[float, float, float]:
    cells = _sample_cells(frame, (1.0, 1.0, 1.0))
    usable = (cells.max(axis=1) < 0.95) & (cells.mean(axis=1) > 0.01)
    if usable.sum() < 16:
        return TYPICAL_GAINS
    red, gr, gb, blue = cells[usable].mean(axis=0, dtype=np.float64)
    green = (gr + gb) / 2
    seen = [min(max(green / max(mean, 1e-6), GAIN_LIMITS[0]), GAIN_LIMITS[1]) for mean in (red, green, blue)]
    prior = (1.0, 1.0, 1.0) if seen[0] * seen[2] < BALANCED_BELOW else TYPICAL_GAINS
    result = [float(s**GREY_WORLD_TRUST * p ** (1 - GREY_WORLD_TRUST)) for s, p in zip(seen, prior, strict=True)]
    return result[0], result[1], result[2]


def color_matrix(frame: RawFrame) -> tuple[NDArray[np.float64], str]:
    """Matrix [3, 3] from white-balanced camera RGB to linear sRGB and its origin; a typical camera's when unknown."""
    if frame.matrix is not None:
        return frame.matrix, frame.origins.get("matrix", "argument")
    return TYPICAL_MATRIX, "default: a typical camera's"


def cell_mix(matrix: Array) -> Float32:
    """The camera matrix on a Bayer cell: float32 [4, 4] so that `cells @ mix` maps (R, Gr, Gb, B) cells.

    Red and blue see the mean of the two greens; each green keeps its own detail.
    """
    m = np.asarray(matrix, np.float64)
    rows = [
        [m[0, 0], m[0, 1] / 2, m[0, 1] / 2, m[0, 2]],
        [m[1, 0], m[1, 1], 0.0, m[1, 2]],
        [m[1, 0], 0.0, m[1, 1], m[1, 2]],
        [m[2, 0], m[2, 1] / 2, m[2, 1] / 2, m[2, 2]],
    ]
    return np.array(rows, np.float32).T.copy()


def linear_luts(frame: RawFrame, gains: tuple[float, float, float], exposure: float = 1.0) -> Float32:
    """float32 [4, 65536]: raw count of plane R, Gr, Gb, B -> balanced linear value in [0, 1]."""
    return _linear_luts(frame.black, frame.white, gains, exposure)


def _linear_luts(
    black: Four, white: Four, gains: tuple[float, float, float], exposure: float, length: int = CODES + 1
) -> Float32:
    counts = np.arange(length, dtype=np.float64)
    plane_gains = (gains[0], gains[1], gains[1], gains[2])
    luts = np.empty((4, length), np.float32)
    for i in range(4):
        scale = exposure * plane_gains[i] / (white[i] - black[i])
        luts[i] = np.clip((counts - black[i]) * scale, 0.0, 1.0)
    return luts


def mix_and_compand(cells: Array, mix: Float32 | None, exponent: float = 1 / GAMMA) -> Float32:
    """Balanced linear cells [..., 4] -> companded float32 [..., 4]; `mix` of `cell_mix`, None for camera colour."""
    if mix is not None:
        cells = cells @ mix
    return compand(cells, exponent)


def _sample_cells(frame: RawFrame, gains: tuple[float, float, float]) -> Float32:
    """Balanced linear cells [n, 4] on a regular grid of at most 256 x 256 cells of the frame."""
    oy, ox = RED_AT[frame.cfa]
    h, w = (frame.height - oy) // 2, (frame.width - ox) // 2
    sy, sx = -(-h // 256), -(-w // 256)
    luts = linear_luts(frame, gains)
    cells = np.empty((len(range(0, h, sy)), len(range(0, w, sx)), 4), np.float32)
    for i, (dy, dx) in enumerate(PLANE_AT):
        counts = frame.mosaic[oy + dy : oy + 2 * h : 2, ox + dx : ox + 2 * w : 2][::sy, ::sx]
        cells[..., i] = luts[i][counts]
    return cells.reshape(-1, 4)


class Ingest:
    """Network input of one frame, tile by tile, as one ISP spec wants it.

    `height`, `width`: size of the virtual mosaic in packed pixels. `crop`: row and column of the frame's first
    pixel in the virtual mosaic, in raw pixels. `gains`, `matrix`, `exposure`: the values used.

    Integer input with a camera matrix takes two look-ups a pixel and no float: the table of a plane holds what a count
    adds to all four mixed planes, as four 16-bit fields of one 64-bit word, so three additions mix a cell; the second
    table clips, compands and quantises a field. Its step, about 3e-5 of the linear range, is below the step of a
    14-bit sensor; it moves the 8-bit code of about one value in a hundred, near black, mostly by one.
    """

    def __init__(self, frame: RawFrame, spec: IspSpec, exposure_ev: float = 0.0) -> None:
        self.mosaic = frame.mosaic
        self.gains, _ = balanced_gains(frame)
        self.exposure = 2.0**exposure_ev
        self.matrix = color_matrix(frame)[0] if spec.color_input == "srgb" else None
        self.crop = RED_AT[frame.cfa]
        self.height = (frame.height + self.crop[0] + 1) // 2
        self.width = (frame.width + self.crop[1] + 1) // 2
        self._mix = None if self.matrix is None else cell_mix(self.matrix)
        self._exponent = spec.companding
        self._words: Array | None = None
        if self._mix is None:  # everything folds into one table per plane
            luts = linear_luts(frame, self.gains, self.exposure)
            self._luts: Array = quantise(compand(luts, self._exponent), spec.input)
        elif spec.input.dtype == "float32":
            self._luts = linear_luts(frame, self.gains, self.exposure)
        else:
            self._words, self._luts = _words_and_codes(
                frame.black,
                frame.white,
                self.gains,
                self.exposure,
                tuple(self._mix.reshape(-1).tolist()),
                self._exponent,
                spec.input,
            )

    def fill(self, out: Array, top: int, left: int) -> None:
        """Write packed pixels [top, top+th) x [left, left+tw) into `out` [th, tw, 4] of the spec's input dtype.

        Any part outside the virtual mosaic is its reflection-101.
        """
        height, width = out.shape[:2]
        rows = min(max(1, STRIPE // width), height)
        scratch = _Scratch(rows, width)
        fill = self._fill_by_values if self._words is None else self._fill_by_words
        columns = _runs(2 * left - self.crop[1], 2 * width, self.mosaic.shape[1])
        for row in range(0, height, rows):
            stripe = out[row : row + rows]
            lines = _runs(2 * (top + row) - self.crop[0], 2 * len(stripe), self.mosaic.shape[0])
            counts = self._counts(lines, columns, scratch.counts[: 2 * len(stripe)])
            # A cell's four counts, plane by plane, as what look-ups take without converting it first.
            index = scratch.index[:, : len(stripe)]
            by_plane = counts.reshape(len(stripe), 2, width, 2).transpose(1, 3, 0, 2)
            np.copyto(index.reshape(2, 2, len(stripe), width), by_plane)
            fill(stripe, index, scratch)

    def _fill_by_words(self, out: Array, index: Array, scratch: _Scratch) -> None:
        """Without float and without allocation; `mode="clip"` spares a test of every index, none is out of range."""
        assert self._words is not None
        mixed, word = scratch.mixed[: len(out)], scratch.word[: len(out)]
        self._words[0].take(index[0], out=mixed, mode="clip")
        for i in (1, 2, 3):
            self._words[i].take(index[i], out=word, mode="clip")
            np.add(mixed, word, out=mixed)
        fields = scratch.index.reshape(-1)[: out.size].reshape(out.shape)  # the counts are no longer needed
        np.copyto(fields, mixed.view(np.uint16).reshape(out.shape))
        self._luts.take(fields, out=out, mode="clip")

    def _fill_by_values(self, out: Array, index: Array, scratch: _Scratch) -> None:
        target = out if self._mix is None else np.empty(out.shape, np.float32)
        for i in range(4):
            target[..., i] = self._luts[i].take(index[i], mode="clip")
        if self._mix is not None:
            out[...] = compand((target.reshape(-1, 4) @ self._mix).reshape(out.shape), self._exponent)

    def _counts(self, lines: Runs, columns: Runs, scratch: Array) -> Array:
        """The virtual mosaic there: a view where it lies in the frame, otherwise a copy in `scratch`."""
        if len(lines) == len(columns) == 1:
            return self.mosaic[lines[0][1]][:, columns[0][1]]
        for ys, from_ys in lines:
            for xs, from_xs in columns:
                scratch[ys, xs] = self.mosaic[from_ys][:, from_xs]
        return scratch

    def trimmed(self) -> Ingest:
        """The same ingest with tables no longer than the frame's largest count, for keeping many in memory."""
        assert self._words is None, "made for float specs"
        copied = copy.copy(self)
        copied._luts = self._luts[:, : int(self.mosaic.max()) + 1].copy()
        return copied

    def turned(self, turn: int) -> Ingest:
        """The ingest of the flipped or turned frame, sharing its memory; the CFA phase follows.

        Bit 0 of `turn` flips rows, bit 1 flips columns, bit 2 transposes first (so all eight are reached).
        """
        assert self._words is None, "made for float specs"
        copied = copy.copy(self)
        mosaic, (red_row, red_col), luts = self.mosaic, self.crop, self._luts
        if turn & 4:  # the green on the red row becomes the green on the blue row
            mosaic, red_row, red_col, luts = mosaic.T, red_col, red_row, luts[[0, 2, 1, 3]]
        if turn & 1:
            mosaic, red_row = mosaic[::-1], (mosaic.shape[0] - 1 - red_row) % 2
        if turn & 2:
            mosaic, red_col = mosaic[:, ::-1], (mosaic.shape[1] - 1 - red_col) % 2
        copied.mosaic, copied.crop, copied._luts = mosaic, (red_row, red_col), luts
        copied.height = (mosaic.shape[0] + red_row + 1) // 2
        copied.width = (mosaic.shape[1] + red_col + 1) // 2
        return copied


def _runs(start: int, count: int, size: int) -> Runs:
    """Where in `count` outputs, and from which inputs of an axis of `size`, `start`, `start + 1`, ... reflected come.

    Three runs at most, before, inside and after the axis; slices, so that only a frame smaller than a halo is gathered.
    """
    end = start + count
    if start <= -size or end > 2 * size - 1:
        return [(slice(0, count), reflect(np.arange(start, end), size))]
    before, inside = min(max(-start, 0), count), min(max(size - start, 0), count)
    runs: Runs = []
    if before > 0:
        runs.append((slice(0, before), slice(-start, -start - before, -1)))
    if inside > before:
        runs.append((slice(before, inside), slice(start + before, start + inside)))
    if count > inside:
        first = 2 * (size - 1) - (start + inside)
        stop = first - (count - inside)
        runs.append((slice(inside, count), slice(first, None if stop < 0 else stop, -1)))
    return runs


def quantise(companded: Array, spec: TensorSpec) -> Array:
    """Real values in [0, 1] as the dtype of a tensor: round(x / scale) + zero_point, saturated."""
    if spec.dtype == "float32":
        return np.asarray(companded, np.float32)
    limits = np.iinfo(spec.dtype)
    stored = np.rint(np.asarray(companded, np.float64) / spec.scale) + spec.zero_point
    saturated: Array = np.clip(stored, limits.min, limits.max).astype(spec.dtype)
    return saturated


def dequantise(stored: Array, spec: TensorSpec) -> Float32:
    """The inverse of `quantise`, float32."""
    if spec.dtype == "float32":
        return np.asarray(stored, np.float32)
    return (np.asarray(stored, np.float32) - np.float32(spec.zero_point)) * np.float32(spec.scale)


class _Scratch:
    """What `fill` works in, for stripes of at most so many rows."""

    def __init__(self, rows: int, width: int) -> None:
        self.counts = np.empty((2 * rows, 2 * width), np.uint16)
        self.index = np.empty((4, rows, width), np.intp)
        self.mixed = np.empty((rows, width), np.uint64)
        self.word = np.empty((rows, width), np.uint64)


@functools.lru_cache(maxsize=4)  # the frames of one camera share them
def _words_and_codes(
    black: Four,
    white: Four,
    gains: tuple[float, float, float],
    exposure: float,
    mix: tuple[float, ...],
    exponent: float,
    tensor: TensorSpec,
) -> tuple[Array, Array]:
    """Tables of `Ingest`: uint64 [4, n], count -> its share of four fields; [65536] field -> stored value.

    A field is `low + value * scale`, where all shares together lie in [low, high]. Shares are made positive one by
    one, so a field never borrows from its neighbour. Counts from n on say what n - 1 says: all planes are at 1.
    """
    weights = np.array(mix, np.float64).reshape(4, 4)
    below, above = np.minimum(weights, 0.0), np.maximum(weights, 0.0)
    low, high = float(-below.sum(axis=0).min()), float(above.sum(axis=0).max())
    scale = (CODES - 8) / (low + high)
    full = max(b + (w - b) / (exposure * min(gains)) for b, w in zip(black, white, strict=True))
    luts = _linear_luts(black, white, gains, exposure, int(min(max(full, 0.0), CODES - 1)) + 2).astype(np.float64)
    # Rounding: each of four shares is off by at most a half, so fields lie in 0..65535 with the 8 left free.
    missing = low + below.sum(axis=0)  # what the lowest field has and others lack
    words = np.empty((4, luts.shape[1], 4), np.uint16)
    for i in range(4):
        share = luts[i][:, None] * weights[i] - below[i] + (missing if i == 0 else 0.0)
        words[i] = np.rint(share * scale).astype(np.uint16)
    values = (np.arange(CODES + 1) - low * scale) / scale
    tables = words.view(np.uint64)[..., 0], quantise(compand(values, exponent), tensor)
    for table in tables:
        table.setflags(write=False)
    return tables
