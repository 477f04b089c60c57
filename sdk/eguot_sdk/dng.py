"""What the tags of a TIFF or DNG promise about its raw picture, and the refusals that need no decoding.

A DNG is held to its tags: what is not a whole 2x2 Bayer mosaic of at most 16 bits is refused by name. Other camera
formats that are TIFF inside use the tags loosely, so there only the place of the pixel data is checked.
Colours are the tags' numbers 0 = red, 1 = green, 2 = blue; positions are relative to the active area.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .bayer import CFA_PHASES
from .errors import CorruptRaw, UnsupportedRaw
from .tiff import Ifd, Tiff

COLOUR_LETTERS = "RGBCMYW"
COMPRESSIONS = {1: "uncompressed", 7: "lossless JPEG", 8: "deflate", 34892: "lossy JPEG", 9: "VC-5"}
JPEG_XL = 52546
LIBRAW_MIN_SIDE = 22
# No mosaic compresses below this; the smallest seen in use is a Kodak DC120 with 0.09 bytes per pixel.
MIN_BYTES_PER_PIXEL = 0.01
DAYLIGHT = (21, 20, 23, 22, 1, 4, 9, 10, 11)  # EXIF light sources: D65, D55, D50, D75, then the vaguer ones

DCRAW_SRGB_TO_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
"""dcraw's digits. Those of the standard, which `metrics` has, differ by less than 1e-4; they would change pictures."""


@dataclass(frozen=True, kw_only=True)
class RawTags:
    """What tags say about the raw picture; None or empty: they do not say."""

    origin: tuple[int, int] = (0, 0)
    """Row and column where the active area begins."""
    cfa: str | None = None
    """CFA phase at that origin."""
    black: tuple[float, float, float, float] | None = None
    """Black at [0,0] [0,1] [1,0] [1,1] from that origin."""
    white: float | None = None
    opcodes: bytes = b""
    """OpcodeList2."""
    area: tuple[int, int] | None = None
    """Height and width of the active area."""
    whole: bool = False
    """True where the pixel data is uncompressed and its full size lies inside the file."""


def read_raw_tags(tiff: Tiff, *, without: Collection[str] = ()) -> RawTags:
    """Check the tags and return what they promise. Raises UnsupportedRaw or CorruptRaw.

    `without`: of `black` and `white`, those whose tags are not looked at.
    """
    ifd = tiff.raw_ifd()
    if ifd is None:
        return RawTags()
    photometric = ifd.whole("PhotometricInterpretation", -1)
    if not tiff.is_dng:
        _check_place(ifd, tiff)
        return RawTags()
    _check_kind(ifd, photometric)
    width, height = _check_size(ifd)
    bits = _check_samples(ifd)
    cfa = _cfa(ifd)
    stored = _check_place(ifd, tiff)
    compression = ifd.whole("Compression", 1)
    if compression == 1 and stored is not None and stored < (width * bits + 7) // 8 * height:
        raise CorruptRaw(
            f"the tags claim {width} x {height} pixels of {bits} bits, but only {stored} bytes of pixel data: "
            "the file is damaged, copy it again from the camera"
        )
    if stored is not None and stored < MIN_BYTES_PER_PIXEL * width * height:
        raise CorruptRaw(
            f"the tags claim {width} x {height} pixels in {stored} bytes of pixel data, which cannot be: "
            "the pixels were stripped, get the original file"
        )
    black, white = _levels(ifd, without)
    top, left, bottom, right = _active_area(ifd, height, width)
    codes = ifd.wholes("OpcodeList2")
    return RawTags(
        origin=(top, left),
        cfa=cfa,
        black=black,
        white=white,
        opcodes=bytes(codes) if all(0 <= v < 256 for v in codes) else b"",
        area=(bottom - top, right - left),
        whole=compression == 1 and stored is not None,
    )


def _active_area(ifd: Ifd, height: int, width: int) -> tuple[int, int, int, int]:
    area = ifd.wholes("ActiveArea")
    if len(area) == 4 and all(0 <= v < 1 << 20 for v in area) and area[0] < area[2] and area[1] < area[3]:
        return area[0], area[1], area[2], area[3]
    return 0, 0, height, width


def _check_kind(ifd: Ifd, photometric: int) -> None:
    compression = ifd.whole("Compression", 1)
    if photometric == 34892 and ifd.whole("SamplesPerPixel", 1) > 1:
        raise UnsupportedRaw(
            "a linear DNG, which is already demosaiced: use the camera's own raw, with its Bayer mosaic"
        )
    if photometric != 32803:
        raise UnsupportedRaw("a monochrome DNG without a colour filter array: develop it with another program")
    if compression == JPEG_XL:
        raise UnsupportedRaw(
            "a DNG compressed with JPEG XL, which LibRaw cannot read: save it uncompressed or lossless"
        )
    if compression not in COMPRESSIONS:
        raise UnsupportedRaw(f"a DNG with unknown compression {compression}: save it uncompressed or as lossless JPEG")


def _check_size(ifd: Ifd) -> tuple[int, int]:
    width, height = ifd.whole("ImageWidth", 0), ifd.whole("ImageLength", 0)
    if width < 1 or height < 1:
        raise CorruptRaw(f"the tags claim a picture of {width} x {height} pixels: the file is damaged, copy it again")
    if min(width, height) < LIBRAW_MIN_SIDE:
        raise UnsupportedRaw(
            f"a DNG of {width} x {height} pixels: LibRaw reads at least {LIBRAW_MIN_SIDE} x {LIBRAW_MIN_SIDE}"
        )
    return width, height


def _check_samples(ifd: Ifd) -> int:
    bits, samples = ifd.whole("BitsPerSample", 1), ifd.whole("SamplesPerPixel", 1)
    if ifd.whole("SampleFormat", 1) == 3:
        raise UnsupportedRaw(f"a DNG with {bits}-bit floating point samples: save it with integers of 8 to 16 bits")
    if not 8 <= bits <= 16:
        raise UnsupportedRaw(f"a DNG with {bits} bits per sample: save it with 8 to 16")
    if samples != 1:
        raise UnsupportedRaw(
            f"a DNG with {samples} samples per pixel: a Bayer mosaic has one, use the camera's own raw"
        )
    return bits


def _cfa(ifd: Ifd) -> str:
    dims = ifd.wholes("CFARepeatPatternDim")
    colours = "".join(COLOUR_LETTERS[v] if 0 <= v < len(COLOUR_LETTERS) else "?" for v in ifd.wholes("CFAPattern")[:64])
    if dims == (6, 6):
        raise UnsupportedRaw(
            "a 6 x 6 colour filter array (X-Trans), not a Bayer mosaic: develop it with another program"
        )
    if dims != (2, 2) or len(colours) != 4:
        shape = " x ".join(map(str, dims)) or "nameless"
        raise UnsupportedRaw(
            f"a {shape} colour filter array, not a 2 x 2 Bayer mosaic: develop it with another program"
        )
    if ifd.whole("CFALayout", 1) != 1:
        raise UnsupportedRaw(
            "a colour filter array with staggered rows, not a Bayer mosaic: develop it with another program"
        )
    if colours not in CFA_PHASES:
        raise UnsupportedRaw(
            f"a colour filter array of {' '.join(colours)}, but a Bayer mosaic is RGGB, GRBG, GBRG or BGGR: "
            "develop it with another program"
        )
    return colours


def _levels(ifd: Ifd, without: Collection[str]) -> tuple[tuple[float, float, float, float] | None, float | None]:
    whites = () if "white" in without else ifd.numbers("WhiteLevel")
    white = float(whites[0]) if whites else None
    if white is not None and not 0 < white < 2**20:
        raise CorruptRaw(f"the tag WhiteLevel is {white:g}: the file is damaged or badly made, get the original")
    black = None if "black" in without else _black(ifd)
    if black is not None and white is not None and max(black) >= white:
        raise CorruptRaw(
            f"the tag BlackLevel is {max(black):g}, which is not below WhiteLevel {white:g}: "
            "the file is damaged or badly made, get the original"
        )
    return black, white


def _black(ifd: Ifd) -> tuple[float, float, float, float] | None:
    """Black at the four places of a 2x2 cell: the repeat pattern averaged over like places, plus the mean deltas."""
    values = ifd.numbers("BlackLevel")
    if not values:
        return None
    dims = list(ifd.wholes("BlackLevelRepeatDim")) or [1, 1]
    if len(dims) != 2 or not all(1 <= d <= 64 for d in dims) or dims[0] * dims[1] > len(values):
        raise CorruptRaw(
            f"the tag BlackLevel has {len(values)} values for a pattern of {dims}: the file is damaged, copy it again"
        )
    if not all(math.isfinite(v) and abs(v) < 2**20 for v in values):
        raise CorruptRaw("the tag BlackLevel holds values that are no raw counts: the file is damaged, copy it again")
    grid = np.array(values[: dims[0] * dims[1]], np.float64).reshape(dims)
    grid = np.tile(grid, (2, 2))
    for name in ("BlackLevelDeltaH", "BlackLevelDeltaV"):
        deltas = [v for v in ifd.numbers(name) if math.isfinite(v)]
        grid += float(np.mean(deltas)) if deltas else 0.0
    a, b, c, d = (float(grid[y::2, x::2].mean()) for y in (0, 1) for x in (0, 1))
    return a, b, c, d


def _check_place(ifd: Ifd, tiff: Tiff) -> int | None:
    """Bytes of pixel data by the tags, all inside the file; None where the tags do not say."""
    for kind in ("Strip", "Tile"):
        offsets, counts = ifd.wholes(kind + "Offsets"), ifd.wholes(kind + "ByteCounts")
        if not offsets or len(offsets) != len(counts):
            continue
        end = max(o + c for o, c in zip(offsets, counts, strict=True))
        if end > tiff.file_bytes:
            raise CorruptRaw(
                f"cut short: its pixel data ends at byte {end}, but the file has only {tiff.file_bytes}: "
                "copy it again from the camera"
            )
        return sum(counts)
    return None


def camera_matrix(xyz_to_camera: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """[3, 3] XYZ to camera RGB, turned into white-balanced camera RGB to linear sRGB, whose rows sum to 1.

    None where the result makes no sense.
    """
    if xyz_to_camera.shape != (3, 3) or not np.isfinite(xyz_to_camera).all():
        return None
    camera = xyz_to_camera @ DCRAW_SRGB_TO_XYZ
    sums = camera.sum(axis=1, keepdims=True)
    if (sums < 1e-6).any():
        return None
    camera = camera / sums
    if abs(np.linalg.det(camera)) < 1e-3:
        return None
    matrix: NDArray[np.float64] = np.linalg.inv(camera)
    return matrix if np.abs(matrix).max() < 10 else None


def tag_matrix(tiff: Tiff) -> tuple[NDArray[np.float64], str] | None:
    """The camera matrix of a DNG (`camera_matrix`) and the tag it came from: of two, the one for daylight."""
    found: list[tuple[int, NDArray[np.float64], str]] = []
    names: tuple[Literal["1", "2"], ...] = ("2", "1")
    for number in names:
        value = tiff.find("ColorMatrix" + number)
        if value is None or isinstance(value, str) or len(value) != 9:
            continue
        matrix = camera_matrix(np.array(value, np.float64).reshape(3, 3))
        if matrix is not None:
            code = tiff.whole("CalibrationIlluminant" + number, 0)
            rank = DAYLIGHT.index(code) if code in DAYLIGHT else len(DAYLIGHT)
            found.append((rank, matrix, "tag ColorMatrix" + number))
    return min(found, key=lambda item: item[0])[1:] if found else None


def tag_exif(tiff: Tiff) -> dict[str, str | int | float]:
    """The EXIF values of a file by name, and BaselineExposure of a DNG; what is absent, zero or unreadable is not."""
    result: dict[str, str | int | float] = {}
    for name in ("Make", "Model", "LensModel", "Artist", "Copyright"):
        text = _text(tiff, name)
        if text:
            result[name] = text
    taken = _text(tiff, "DateTimeOriginal") or _text(tiff, "DateTime")
    if taken:
        result["DateTime"] = taken
    for name in ("ExposureTime", "FNumber", "ISO", "FocalLength"):
        value = tiff.find(name)
        if value and not isinstance(value, str) and math.isfinite(value[0]) and 0 < value[0] < 1e9:
            result[name] = int(value[0]) if name == "ISO" else float(value[0])
    stops = tiff.find("BaselineExposure")
    if stops and not isinstance(stops, str) and 0 < abs(stops[0]) <= 16:
        result["BaselineExposure"] = float(stops[0])
    return result


def _text(tiff: Tiff, name: str) -> str:
    value = tiff.find(name)
    return "".join(c for c in value if c.isprintable())[:200].strip() if isinstance(value, str) else ""
