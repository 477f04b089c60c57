"""Black level, white level and CFA phase as the raws themselves show them, and what contradicts a claim about them.

Works on histograms of counts per position in the 2x2 cell, gathered over a sample of the data set, and on the chroma
of pairs. A claim is contradicted only by what no ordinary scene explains; what merely looks odd is a note.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eguot_sdk.bayer import RED_AT
from eguot_sdk.errors import EguotError
from eguot_sdk.ingest import PLANE_AT

from .base import Dataset, Four, RawValues, raws_of, spread

SAMPLE = 48
"""Raws looked at, spread over a data set."""

COUNTS = 65536
DARKEST = 1e-4
"""Share of counts taken to lie at black level or below: the 0.01 percentile."""
USUAL_10_BIT = (58.0, 60.0, 61.0, 62.0)
"""Black of the 10-bit phone sensors in the field's data sets: R, Gr, Gb, B."""
ENOUGH = 8
"""Raws needed before the absence of dark pixels says anything."""
MOST_CELLS = 1 << 20
BLOCK = 16
"""Side of the blocks, in cells, over which chroma is averaged."""


@dataclass(slots=True)
class RawStatistics:
    """Counts of many mosaics by position in the cell: [0,0] [0,1] [1,0] [1,1] of the mosaic as it lies."""

    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((4, COUNTS), np.int64))
    unlike: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    """Mean difference between the two positions on the main diagonal, and on the other, summed over raws."""
    chroma: list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=list)
    """Per pair: log ratio of the two positions that are not green, for both readings, and log R/B of its picture."""
    raws: int = 0

    def add(self, mosaic: NDArray[np.uint16], truth: NDArray[np.uint8] | None = None) -> None:
        """Count one raw, and its picture where it has one."""
        height, width = (side // 2 * 2 for side in mosaic.shape)
        stride = 2 * max(1, math.isqrt(height * width // 4 // MOST_CELLS))
        cells = [mosaic[y:height:stride, x:width:stride].astype(np.int64) for y, x in PLANE_AT]
        for position, values in enumerate(cells):
            self.histogram[position] += np.bincount(values.ravel(), minlength=COUNTS)
        floor = min(float(values.min()) for values in cells)
        a, b, c, d = (_blocks(values.astype(np.float64) - floor, 8) for values in cells)  # means, or noise would count
        scale = max(float(np.mean([x.mean() for x in (a, b, c, d)])), 1.0)
        self.unlike += [np.abs(a - d).mean() / scale, np.abs(b - c).mean() / scale]
        self.raws += 1
        if truth is not None and truth.shape[:2] == mosaic.shape:
            self.chroma.append(_chroma(mosaic[:height, :width], truth[:height, :width]))

    def darkest(self) -> NDArray[np.float64]:
        """Count at the 0.01 percentile of each position, [4]."""
        below = np.cumsum(self.histogram, axis=1) / self.histogram.sum(axis=1, keepdims=True)
        return np.argmax(below > DARKEST, axis=1).astype(np.float64)

    def highest(self) -> int:
        """The highest count."""
        return int(np.nonzero(self.histogram.sum(axis=0))[0][-1])

    def clips_at(self) -> int | None:
        """The count at which the sensor clips: the highest, where far more pixels have it than those just below."""
        total, high = self.histogram.sum(axis=0), self.highest()
        low = int(high * 0.95)
        pile = total[high] + (total[high - 1] if high else 0)
        usual = total[low : max(high - 1, low + 1)].mean()
        return high if pile > 2e-4 * total.sum() and pile > 16 * max(usual, 1.0) else None

    def white_balance(self, values: RawValues) -> tuple[float, float, float]:
        """Gains R, G, B that make the mean of all unclipped counts grey; 1, 1, 1 where there are none."""
        means = []
        for position, black in zip(_positions(values.cfa), values.black, strict=True):
            counts = self.histogram[position, : int(0.95 * values.white)]
            light = np.maximum(np.arange(len(counts)) - black, 0)
            means.append(float((counts * light).sum() / max(counts.sum(), 1)))
        if min(means) <= 0:
            return (1.0, 1.0, 1.0)
        green = (means[1] + means[2]) / 2
        return (green / means[0], 1.0, green / means[3])

    def greens_on(self) -> int | None:
        """0: the greens lie on the main diagonal of the cell, 1: on the other; None: the data do not tell."""
        main, other = self.unlike
        if max(main, other) < 1.5 * min(main, other) + 1e-9:
            return None
        return 0 if main < other else 1

    def red_first(self, greens: int) -> tuple[float, bool | None]:
        """Correlation of raw chroma with picture chroma if the first non-green position is red, and the verdict."""
        if not self.chroma:
            return 0.0, None
        raw = np.concatenate([c[greens] - c[greens].mean() for c in self.chroma])
        picture = np.concatenate([c[2] - c[2].mean() for c in self.chroma])
        if len(raw) < 32 or min(raw.std(), picture.std()) < 1e-3:
            return 0.0, None
        correlation = float(np.corrcoef(raw, picture)[0, 1])
        return correlation, None if abs(correlation) < 0.3 else correlation > 0

    def phase(self) -> str | None:
        """The CFA phase, where pairs and chroma tell it."""
        greens = self.greens_on()
        if greens is None:
            return None
        _, first = self.red_first(greens)
        if first is None:
            return None
        return {(0, True): "GRBG", (0, False): "GBRG", (1, True): "RGGB", (1, False): "BGGR"}[greens, first]


def _chroma(
    mosaic: NDArray[np.uint16], truth: NDArray[np.uint8]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Block means of log ratios: positions 01/10 and 00/11 of the raw, and R/B of the picture made linear."""
    floor = float(np.quantile(mosaic, 0.001))
    a, b, c, d = (_blocks(mosaic[y::2, x::2].astype(np.float64) - floor) for y, x in PLANE_AT)
    low = 0.02 * max(float(a.mean() + d.mean()) / 2, 1.0)
    linear = _blocks((truth[::2, ::2].astype(np.float64) / 255) ** 2.2)
    first = np.log((np.maximum(b, 0) + low) / (np.maximum(c, 0) + low))
    second = np.log((np.maximum(a, 0) + low) / (np.maximum(d, 0) + low))
    return first.ravel(), second.ravel(), np.log((linear[..., 0] + 0.02) / (linear[..., 2] + 0.02)).ravel()


def _blocks(image: NDArray[np.float64], side: int = BLOCK) -> NDArray[np.float64]:
    """Means over blocks of side x side."""
    side = min(side, *image.shape[:2])
    h, w = (n // side * side for n in image.shape[:2])
    shape = (h // side, side, w // side, side, *image.shape[2:])
    return np.asarray(image[:h, :w].reshape(shape).mean(axis=(1, 3)))


def detect(statistics: RawStatistics, cfa: str) -> RawValues:
    """Levels from the data for a known phase: white is a full scale of 8 to 16 bits, black the darkest counts.

    Where the data hold no dark pixel the darkest count says nothing, and black is 0.
    """
    bits = next((b for b in (8, 10, 12, 14) if statistics.highest() < 1 << b), 16)
    white = float((1 << bits) - 1)
    darkest = statistics.darkest()
    at = _positions(cfa)
    black: Four = (darkest[at[0]], darkest[at[1]], darkest[at[2]], darkest[at[3]])
    if bits == 10 and all(abs(b - u) <= 6 for b, u in zip(black, USUAL_10_BIT, strict=True)):
        black = USUAL_10_BIT
    elif max(black) > 0.1 * white:
        black = (0.0, 0.0, 0.0, 0.0)
    return RawValues(cfa, tuple(float(b) for b in black), white, "detected")  # type: ignore[arg-type]


def contradictions(statistics: RawStatistics, values: RawValues) -> tuple[list[str], list[str]]:
    """What of the data says that the values are wrong, and what merely looks odd; one line each."""
    wrong: list[str] = []
    odd: list[str] = []
    total = statistics.histogram.sum()
    over = statistics.histogram[:, int(values.white) + 1 :].sum() / total
    if over > 1e-5:
        high = statistics.highest()
        line = f"white is {values.white:g} ({values.origin}), but {over:.2%} of the counts are above it, up to {high}"
        (wrong if high > 1.01 * values.white else odd).append(line)
    clips = statistics.clips_at()
    if clips is not None and clips < 0.97 * values.white:
        wrong.append(f"white is {values.white:g} ({values.origin}), but counts pile up and end at {clips}")
    darkest = statistics.darkest()
    for plane, position, black in zip(("R", "Gr", "Gb", "B"), _positions(values.cfa), values.black, strict=True):
        counts = statistics.histogram[position]
        below = counts[: max(0, int(black - 0.01 * values.white))].sum() / counts.sum()
        if below > 0.05:
            wrong.append(
                f"black of {plane} is {black:g} ({values.origin}), but {below:.0%} of its counts are far below"
            )
        elif darkest[position] > black + 0.03 * values.white:
            line = f"black of {plane} is {black:g} ({values.origin}), but no count is below {darkest[position]:g}"
            (wrong if statistics.raws >= ENOUGH else odd).append(line)
    return [*wrong, *cfa_contradictions(statistics, values)], odd


def cfa_contradictions(statistics: RawStatistics, values: RawValues) -> list[str]:
    """What of the data says that the CFA phase is wrong."""
    greens = statistics.greens_on()
    claimed = 0 if values.cfa[0] == "G" else 1
    where = ("[0,0] and [1,1]", "[0,1] and [1,0]")
    if greens is not None and greens != claimed:
        return [f"cfa is {values.cfa} ({values.origin}), but the alike positions, the greens, are {where[greens]}"]
    correlation, red_first = statistics.red_first(claimed)
    if red_first is not None and red_first != (values.cfa in ("RGGB", "GRBG")):
        text = f"the pictures say that red and blue are the other way round (correlation {abs(correlation):.2f})"
        return [f"cfa is {values.cfa} ({values.origin}), but {text}"]
    return []


def plane_positions(cfa: str) -> dict[str, int]:
    """Plane name -> index into the histograms."""
    return dict(zip(("R", "Gr", "Gb", "B"), _positions(cfa), strict=True))


def _positions(cfa: str) -> list[int]:
    """Index into [0,0] [0,1] [1,0] [1,1] of R, Gr, Gb, B."""
    row, col = RED_AT[cfa]
    return [2 * ((row + dy) % 2) + (col + dx) % 2 for dy, dx in PLANE_AT]


def check_values(dataset: Dataset) -> list[str]:
    """What a sample says against the levels and CFA that all raws are given; nothing where they carry their own."""
    if dataset.values is None:
        return []
    statistics = RawStatistics()
    for item in spread(raws_of(dataset.items()), SAMPLE):
        with contextlib.suppress(EguotError):  # damaged files are told elsewhere
            statistics.add(item.frame().mosaic, item.truth() if item.paired else None)
    return contradictions(statistics, dataset.values)[0] if statistics.raws else []
