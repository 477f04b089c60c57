"""What a raw is: one Bayer mosaic with the few values needed to develop it.

`RawFrame` checks itself, so whoever holds one may rely on it; `read_raw` makes one from a camera file. Levels are
raw counts in the order R, Gr, Gb, B, where Gr is the green on the red row. Nothing here changes a count: black is
not subtracted, white balance and matrix are carried along. Demosaicing and defaults for absent values are elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import RawError

CFA_PHASES = ("RGGB", "GRBG", "GBRG", "BGGR")
MIN_SIDE = 4
MAX_PIXELS = 400_000_000

Four = tuple[float, float, float, float]
Three = tuple[float, float, float]


@dataclass(frozen=True, eq=False, kw_only=True)
class RawFrame:
    """One Bayer picture as the sensor wrote it, checked. `from_array` makes one from plain values."""

    mosaic: NDArray[np.uint16] = field(repr=False)
    """uint16 [H, W] raw counts of the visible area, C order, read-only."""
    cfa: str
    """Colours at [0,0] [0,1] [1,0] [1,1]: one of RGGB GRBG GBRG BGGR."""
    black: Four
    """Raw counts of R, Gr, Gb, B without light."""
    white: Four
    """Raw counts of R, Gr, Gb, B where the sensor clips."""
    white_balance: Three | None = None
    """Gains R, G, B scaled so that G = 1; None: unknown."""
    matrix: NDArray[np.float64] | None = None
    """[3, 3] from white-balanced camera RGB to linear sRGB, rows usually sum to 1; None: unknown."""
    orientation: int = 1
    """EXIF orientation 1..8 of the mosaic."""
    pixel_aspect: float = 1.0
    """Width of a pixel over its height."""
    exif: Mapping[str, str | int | float] = field(default_factory=dict)
    """EXIF names such as Make, Model, DateTime, ExposureTime, FNumber, ISO, FocalLength."""
    source: str | None = None
    """File name for messages; None: made in memory."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Name of a value -> where it came from: "tag BlackLevel", "LibRaw", "argument", "absent"."""

    def __post_init__(self) -> None:
        _check_mosaic(self.mosaic)
        if self.cfa not in CFA_PHASES:
            raise RawError(f"the CFA phase must be one of {', '.join(CFA_PHASES)}, not {self.cfa!r}")
        _check_levels(self.black, self.white)
        if self.matrix is not None:
            _check_matrix(self.matrix)
        if self.orientation not in range(1, 9):
            raise RawError(f"the orientation must be an EXIF one, 1 to 8, not {self.orientation!r}")
        if not 0.1 <= self.pixel_aspect <= 10.0:
            raise RawError(f"the pixel aspect must be between 0.1 and 10, not {self.pixel_aspect!r}")

    @property
    def height(self) -> int:
        """Rows of the mosaic."""
        return int(self.mosaic.shape[0])

    @property
    def width(self) -> int:
        """Columns of the mosaic."""
        return int(self.mosaic.shape[1])

    @classmethod
    def from_array(
        cls,
        mosaic: NDArray[Any],
        *,
        cfa: str,
        black: float | Sequence[float],
        white: float | Sequence[float],
        white_balance: Sequence[float] | None = None,
        matrix: ArrayLike | None = None,
        orientation: int = 1,
    ) -> RawFrame:
        """A frame from an array, for a camera pipeline without files; the array is copied.

        `mosaic`: integers [H, W] in 0..65535, at least 4 x 4. `black`, `white`: raw counts, one number or four
        (R, Gr, Gb, B). `white_balance`: three or four numbers R, G, B[, G2] at any scale; one that is not positive
        means unknown. `matrix`: [3, 3] white-balanced camera RGB to linear sRGB. Raises RawError.
        """
        balance = scaled_balance(white_balance)
        return cls(
            mosaic=_as_mosaic(mosaic),
            cfa=cfa,
            black=_four("black", black),
            white=_four("white", white),
            white_balance=balance,
            matrix=None if matrix is None else _as_matrix(matrix),
            orientation=orientation,
            origins={
                "mosaic": "argument",
                "cfa": "argument",
                "black": "argument",
                "white": "argument",
                "white_balance": "argument" if balance else "absent",
                "matrix": "absent" if matrix is None else "argument",
                "orientation": "argument",
                "pixel_aspect": "default: square",
            },
        )


def scaled_balance(gains: Sequence[float] | None) -> Three | None:
    """Gains R, G, B[, G2] at any scale -> R, G, B with G = 1; None where one of R, G, B is not a positive number."""
    if gains is None:
        return None
    try:
        values = [float(g) for g in gains]
    except (TypeError, ValueError) as error:
        raise RawError(f"the white balance must be three or four numbers R, G, B[, G2], not {gains!r:.80}") from error
    if len(values) not in (3, 4):
        raise RawError(f"the white balance must be three or four numbers R, G, B[, G2], not {len(values)}")
    if not all(math.isfinite(v) and v > 0 for v in values[:3]):
        return None
    red, blue = values[0] / values[1], values[2] / values[1]
    if not all(1e-6 < v < 1e6 for v in (red, blue)):
        return None
    return red, 1.0, blue


def _as_mosaic(mosaic: NDArray[Any]) -> NDArray[np.uint16]:
    array = np.asarray(mosaic)
    if array.ndim != 2:
        raise RawError(f"a mosaic has two axes [H, W], not shape {array.shape}: one raw count per pixel")
    _check_size(array.shape[0], array.shape[1])
    if array.dtype.kind not in "iu":
        raise RawError(
            f"a mosaic holds raw counts as integers in 0..65535, not {array.dtype}: round and convert it first"
        )
    if array.dtype != np.uint16:
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 65535:
            raise RawError(f"a mosaic holds raw counts in 0..65535; this one holds {low}..{high}")
    copy = np.array(array, dtype=np.uint16, order="C")
    copy.setflags(write=False)
    return copy


def _as_matrix(matrix: ArrayLike) -> NDArray[np.float64]:
    try:
        copy = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RawError(f"the camera matrix must be 3 x 3 numbers, not {matrix!r:.80}") from error
    copy.setflags(write=False)
    return copy


def _four(name: str, level: float | Sequence[float]) -> Four:
    try:
        values = np.array(level, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise RawError(f"the {name} level must be one number or four (R, Gr, Gb, B), not {level!r:.80}") from error
    if values.size not in (1, 4):
        raise RawError(f"the {name} level must be one number or four (R, Gr, Gb, B), not {values.size}")
    r, gr, gb, b = (float(v) for v in np.broadcast_to(values, 4))
    return r, gr, gb, b


def _check_mosaic(mosaic: NDArray[np.uint16]) -> None:
    if mosaic.ndim != 2 or mosaic.dtype != np.uint16:
        raise RawError(
            f"a mosaic is uint16 [H, W], not {mosaic.dtype} of shape {mosaic.shape}: use RawFrame.from_array"
        )
    _check_size(mosaic.shape[0], mosaic.shape[1])
    if mosaic.flags.writeable or not mosaic.flags.c_contiguous:
        raise RawError("a mosaic must be in C order and read-only: use RawFrame.from_array, which copies")


def _check_size(height: int, width: int) -> None:
    if height < MIN_SIDE or width < MIN_SIDE:
        raise RawError(f"a mosaic must be at least {MIN_SIDE} x {MIN_SIDE} pixels, this one is {width} x {height}")
    if height * width > MAX_PIXELS:
        raise RawError(f"a mosaic may have at most {MAX_PIXELS // 10**6} megapixels, this one is {width} x {height}")


def _check_levels(black: Four, white: Four) -> None:
    if not all(math.isfinite(v) and abs(v) < 2**20 for v in (*black, *white)):
        raise RawError(f"black and white levels must be raw counts, not black {list(black)} and white {list(white)}")
    if any(w - b < 1 for b, w in zip(black, white, strict=True)):
        raise RawError(
            f"the white level must lie above black by at least one count: black {list(black)}, white {list(white)}"
        )


def _check_matrix(matrix: NDArray[np.float64]) -> None:
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or np.abs(matrix).max() > 1e3:
        raise RawError(f"the camera matrix must be 3 x 3 numbers of ordinary size, not {matrix.tolist()!r:.120}")
    if abs(np.linalg.det(matrix)) < 1e-6:
        raise RawError("the camera matrix is singular: it would merge colours that differ")
    if (matrix.sum(axis=1) <= 0).any():
        raise RawError("each row of the camera matrix must sum to more than 0, so that white stays white")
