"""What LibRaw (through rawpy) says about a raw file: pixels, pattern, levels, colour, orientation.

LibRaw opens much that is damaged or no mosaic without complaint, so this module refuses what it can see and
`raw.py` compares the rest with the file's own tags. Levels are brought from LibRaw's colour index to R, Gr, Gb, B.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .bayer import CFA_PHASES
from .dng import MIN_BYTES_PER_PIXEL
from .errors import CorruptRaw, MissingDependency, RawError, UnsupportedRaw

# LibRaw's flip is a set of bits (transpose 4, rows 2, columns 1); EXIF numbers the same eight cases 1..8.
ORIENTATION = {0: 1, 1: 2, 3: 3, 2: 4, 4: 5, 6: 6, 7: 7, 5: 8}


@dataclass(frozen=True, kw_only=True)
class LibRawPicture:
    """A decoded Bayer picture with LibRaw's values for it; four-tuples are in the order R, Gr, Gb, B."""

    mosaic: NDArray[np.uint16]
    margin: tuple[int, int]
    """Row and column of the visible area in the full sensor area."""
    cfa: str
    black: tuple[float, float, float, float]
    white: tuple[float, float, float, float]
    white_origin: str
    gains: tuple[float, float, float]
    """As-shot white balance R, G, B at any scale; not positive: unknown."""
    xyz_to_camera: NDArray[np.float64] | None
    orientation: int
    pixel_aspect: float
    exif: dict[str, str | int | float] = field(default_factory=dict)


def decode(source: Path | BinaryIO, *, file_bytes: int, max_pixels: int, copy: bool = True) -> LibRawPicture:
    """Decode a file by its path or an open stream. Raises UnsupportedRaw, CorruptRaw or RawError, without its name.

    `copy` False: the mosaic is a view of LibRaw's own memory, which it keeps alive together with the open file.
    """
    with _opened(source, close=copy) as raw:
        sizes = raw.sizes
        pixels = sizes.raw_height * sizes.raw_width
        if pixels * MIN_BYTES_PER_PIXEL > file_bytes:
            raise CorruptRaw(
                f"it claims {sizes.raw_width} x {sizes.raw_height} pixels in a file of {file_bytes} bytes, "
                "which cannot be: the pixels were stripped or the file is damaged, get the original"
            )
        if pixels > max_pixels:
            raise RawError(
                f"{sizes.raw_width} x {sizes.raw_height} pixels, more than the {max_pixels // 10**6} megapixels allowed"
            )
        raw.unpack()
        return _picture(raw, copy)


@contextmanager
def _opened(source: Path | BinaryIO, *, close: bool) -> Iterator[Any]:
    try:
        import rawpy
    except ImportError as error:
        raise MissingDependency("rawpy", needed_for="reading raw files", pip="rawpy") from error
    raw, whole = rawpy.RawPy(), False
    try:
        if isinstance(source, Path):
            raw.open_file(str(source))
        else:
            source.seek(0)
            raw.open_buffer(source)
        yield raw
        whole = True
    except (rawpy.LibRawTooBigError, rawpy.LibRawUnsufficientMemoryError, MemoryError) as error:
        raise RawError(
            "it claims a picture too big for LibRaw's memory limit: the file is damaged or too large"
        ) from error
    except (rawpy.LibRawFileUnsupportedError, rawpy.NotSupportedError) as error:
        raise UnsupportedRaw(
            "LibRaw finds no raw picture of a camera it knows: the file is cut short (copy it again), or no raw"
        ) from error
    except rawpy.LibRawIOError as error:
        raise CorruptRaw(
            "LibRaw met the end of the file too early: it is cut short (copy it again from the camera), or no raw"
        ) from error
    except (rawpy.LibRawDataError, rawpy.LibRawError) as error:
        raise CorruptRaw(
            "LibRaw could not decode its pixel data: the file is damaged, copy it again from the camera"
        ) from error
    finally:
        if close or not whole:  # an error that somebody keeps would keep it open
            raw.close()


def _picture(raw: Any, copy: bool) -> LibRawPicture:
    cfa, index = _pattern(raw)
    sizes = raw.sizes
    black_by_colour = [float(v) for v in raw.black_level_per_channel]
    r, gr, gb, b = index
    black = (black_by_colour[r], black_by_colour[gr], black_by_colour[gb], black_by_colour[b])
    white, white_origin = _white(raw, index, black)
    mosaic = raw.raw_image_visible
    if copy:
        mosaic = np.array(mosaic, dtype=np.uint16, order="C")
    mosaic.setflags(write=False)
    xyz = np.array(raw.rgb_xyz_matrix, np.float64)[:3]
    gains = [float(v) for v in raw.camera_whitebalance[:3]]
    return LibRawPicture(
        mosaic=mosaic,
        margin=(int(sizes.top_margin), int(sizes.left_margin)),
        cfa=cfa,
        black=black,
        white=white,
        white_origin=white_origin,
        gains=(gains[0], gains[1], gains[2]),
        xyz_to_camera=xyz if xyz.any() else None,
        orientation=ORIENTATION.get(int(sizes.flip), 1),
        pixel_aspect=float(sizes.pixel_aspect),
        exif=_exif(raw),
    )


def _pattern(raw: Any) -> tuple[str, tuple[int, int, int, int]]:
    """CFA phase of the visible area, and LibRaw's colour index of R, Gr, Gb, B."""
    try:
        pattern = raw.raw_pattern if raw.raw_type.name == "Flat" else None
    except NotImplementedError as error:  # how rawpy says that LibRaw's bit pattern is none of the usual ones
        raise UnsupportedRaw(
            f"a colour filter array that rawpy does not know ({error}): develop it with another program"
        ) from error
    if pattern is None:
        raise UnsupportedRaw(
            "it holds full colour for every pixel, no Bayer mosaic: use the camera's raw before demosaicing"
        )
    if pattern.shape == (6, 6):
        raise UnsupportedRaw(
            "a 6 x 6 colour filter array (X-Trans), not a Bayer mosaic: develop it with another program"
        )
    if pattern.shape != (2, 2) or pattern.max() > 3:
        raise UnsupportedRaw(
            f"no Bayer colour filter array (LibRaw's pattern is {pattern.tolist()}): develop it with another program"
        )
    letters = raw.color_desc.decode("ascii", "replace")
    cfa = "".join(letters[i] for i in pattern.reshape(-1))
    if cfa not in CFA_PHASES:
        raise UnsupportedRaw(f"a colour filter array of {' '.join(cfa)}: a Bayer mosaic is RGGB, GRBG, GBRG or BGGR")
    y, x = divmod(cfa.index("R"), 2)
    return cfa, (
        int(pattern[y, x]),
        int(pattern[y, 1 - x]),
        int(pattern[1 - y, x]),
        int(pattern[1 - y, 1 - x]),
    )


def _white(
    raw: Any, index: tuple[int, int, int, int], black: tuple[float, float, float, float]
) -> tuple[tuple[float, float, float, float], str]:
    """White levels: the camera's own per channel where they are plausible, else LibRaw's one for all."""
    white = float(raw.white_level)
    own = raw.camera_white_level_per_channel
    if own is not None:
        r, gr, gb, b = (float(own[i]) for i in index)
        # Makernotes also hold linearity limits far below clipping; those are not white.
        if all(0.75 * (white - k) <= w - k <= white - k for w, k in zip((r, gr, gb, b), black, strict=True)):
            return (r, gr, gb, b), "LibRaw, per channel"
    return (white, white, white, white), "LibRaw"


def _exif(raw: Any) -> dict[str, str | int | float]:
    """What LibRaw found; without the time, which it shifts by the time zone of this machine in some formats."""
    result: dict[str, str | int | float] = {}
    other, lens = getattr(raw, "other", None), getattr(raw, "lens", None)  # absent before rawpy 0.27
    for name, field_name in (
        ("ExposureTime", "shutter_speed"),
        ("FNumber", "aperture"),
        ("ISO", "iso_speed"),
        ("FocalLength", "focal_length"),
    ):
        value = getattr(other, field_name, 0.0)
        if 0 < value < 1e9:
            result[name] = round(value) if name == "ISO" else float(f"{value:.6g}")
    model = getattr(lens, "model", "").strip()
    if model and model.isprintable():
        result["LensModel"] = model
    return result
