"""Developed pictures to files: JPEG, PNG and TIFF, with an sRGB profile and EXIF, and the turn to upright.

Pictures are uint8 or uint16 [H, W, 3], sRGB, full range. A file appears under its name only when it is whole: it is
written beside, synced and renamed, the folder is synced, and nothing is left behind when that fails.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import os
import platform
import re
import secrets
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import OutputError, UsageError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".tif": "tiff", ".tiff": "tiff"}
MAX_JPEG_SIDE = 65500
JPEG_QUALITY = 95
PNG_BAND_ROWS = 64
JPEG_BAND_PIXELS = 1 << 20
SQUARED_ROWS = 32
SQUARE_ENOUGH = 0.005
"""Pixels whose aspect is so near to 1 are left as they are: LibRaw's own threshold."""

LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<place>[0-9a-f]{8})-(?P<process>\d{1,9})-[0-9a-f]{12}\.part", re.DOTALL)
ABANDONED_S = 24 * 3600
"""Age of a part of another machine or container beyond which nobody writes to it any more."""

# What file systems say that cannot sync a folder, or not one that may only be written to.
REFUSALS = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF)

Picture = NDArray[np.uint8] | NDArray[np.uint16]
Exif = Mapping[str, str | int | float]

# EXIF name -> tag; the first group lies in the main IFD, the second in the EXIF IFD.
MAIN_TAGS = {"Make": 271, "Model": 272, "DateTime": 306, "Artist": 315, "Copyright": 33432}
EXIF_TAGS = {"ExposureTime": 33434, "FNumber": 33437, "ISO": 34855, "FocalLength": 37386, "LensModel": 42036}
DATE_TIME_ORIGINAL, ORIENTATION, COLOR_SPACE, EXIF_IFD = 36867, 274, 40961, 34665


def write_image(path: str | Path, rgb: Picture, *, exif: Exif | None = None, quality: int = JPEG_QUALITY) -> Path:
    """Write uint8 or uint16 [H, W, 3] sRGB to `path`; the suffix chooses .jpg .jpeg .png .tif .tiff.

    `exif`: values by EXIF name (`RawFrame.exif`); names it does not know are left out, orientation is always 1.
    `quality`: of JPEG, 1 to 100, colour at full resolution. Raises UsageError for a picture or suffix that does not
    fit and OutputError where the file cannot be written.
    """
    path = Path(path)
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{path}: the suffix must be one of {', '.join(SUFFIXES)}, not {path.suffix!r}")
    _check_picture(rgb)
    if kind == "jpg" and rgb.dtype != np.uint8:
        raise UsageError(f"{path}: JPEG has 8 bits; write 16 bits as .png or .tiff")
    if kind == "jpg" and not 1 <= quality <= 100:
        raise UsageError(f"JPEG quality must be 1 to 100, not {quality}")
    if kind == "jpg" and max(rgb.shape[:2]) > MAX_JPEG_SIDE:
        raise UsageError(f"{path}: JPEG holds at most {MAX_JPEG_SIDE} pixels a side; write .png or .tiff")
    with written_beside(path) as file:
        if kind == "tiff":
            _write_tiff(file, rgb, exif or {})
        elif kind == "png":
            _write_png(file, rgb, exif or {})
        else:
            _write_jpeg(file, rgb, exif or {}, quality)
    return path


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that becomes `path` when the block ends well and vanishes when it does not. Raises OutputError."""
    beside = path.with_name(f".{_start_of_name(path)}.{_place()}-{os.getpid()}-{secrets.token_hex(6)}.part")
    try:
        try:
            with beside.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
            _sync_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        # NumPy writes by itself and says only how much it got rid of.
        reason = error.strerror or "not all of it: the disk may be full"
        raise OutputError(f"{path}: cannot be written ({reason})") from error


def _start_of_name(path: Path) -> str:
    """So much of a file's name that a name made from it has less than the 255 bytes that file systems allow."""
    return path.name.encode(errors="surrogateescape")[:100].decode(errors="ignore")


def _sync_folder(folder: Path) -> None:
    """See to it that a new name in a folder outlasts a loss of power, where the system and the file system can."""
    if os.name != "posix":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Delete what `written_beside` left of these paths in processes that were killed; what cannot be deleted stays.

    Of processes elsewhere, on another machine that shares the folder, in another container or before this machine was
    started, only what is a day old.
    """
    names: dict[Path, set[str]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add(_start_of_name(path))
    for folder, expected in names.items():
        with contextlib.suppress(OSError):
            for part in folder.glob(".*.part"):
                found = LEFTOVER.fullmatch(part.name)
                if not found or found["name"] not in expected:
                    continue
                with contextlib.suppress(OSError):
                    here = found["place"] == _place()
                    if not (_runs(int(found["process"])) if here else time.time() - part.stat().st_mtime < ABANDONED_S):
                        part.unlink()


@functools.cache
def _place() -> str:
    """Eight hex digits that name where numbers of processes mean the same: this start of this machine or container.

    With the start, for names and identities of machines are copied with their images.
    """
    facts = [platform.node()]
    with contextlib.suppress(OSError):
        facts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(facts).encode(errors="replace")).hexdigest()[:8]


def _runs(process: int) -> bool:
    if os.name != "posix":  # there os.kill(.., 0) sends Ctrl-C, and a file that is open cannot be deleted anyway
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def to_square_pixels(rgb: Picture, pixel_aspect: float) -> Picture:
    """Resample [H, W, 3] whose pixels are `pixel_aspect` times as wide as high to square ones, as LibRaw does.

    The finer axis is stretched, linearly.
    """
    if abs(pixel_aspect - 1.0) < SQUARE_ENOUGH:
        return rgb
    height, width = square_size(rgb.shape[0], rgb.shape[1], pixel_aspect)
    square: Picture = np.empty((height, width, 3), rgb.dtype)
    # Along the rows of both, whichever axis it is; a band at a time, for the floats are larger than the picture.
    lines, out = (rgb, square) if pixel_aspect > 1 else (rgb.swapaxes(0, 1), square.swapaxes(0, 1))
    place = np.arange(out.shape[1]) / (pixel_aspect if pixel_aspect > 1 else 1 / pixel_aspect)
    low = np.minimum(place.astype(np.intp), lines.shape[1] - 1)
    high = np.minimum(low + 1, lines.shape[1] - 1)
    weight = (place - low).astype(np.float32)[None, :, None]
    for top in range(0, len(lines), SQUARED_ROWS):
        below, above = (lines[top : top + SQUARED_ROWS, index] for index in (low, high))
        mixed = below + (above.astype(np.float32) - below) * weight
        out[top : top + SQUARED_ROWS] = np.floor(mixed + 0.5).astype(rgb.dtype)
    return square


def square_size(height: int, width: int, pixel_aspect: float) -> tuple[int, int]:
    """Height and width of what `to_square_pixels` makes; they round as LibRaw's do (Kodak DC120: 848 to 1301)."""
    if abs(pixel_aspect - 1.0) < SQUARE_ENOUGH:
        return height, width
    if pixel_aspect > 1:
        return height, int(width * pixel_aspect + 0.5)
    return int(height * (1 / pixel_aspect) + 0.5), width


def upright(rgb: Picture, orientation: int) -> Picture:
    """[H, W, 3] as the sensor lay -> as the eye saw it, for EXIF orientation 1..8. A view, not a copy."""
    if orientation not in range(1, 9):
        raise UsageError(f"the orientation must be an EXIF one, 1 to 8, not {orientation!r}")
    if orientation >= 5:
        rgb = np.swapaxes(rgb, 0, 1)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return rgb[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def lying(picture: Picture, orientation: int) -> Picture:
    """The inverse of `upright`, as a view: what is written into it appears upright in `picture`."""
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    rgb = picture[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    return np.swapaxes(rgb, 0, 1) if orientation >= 5 else rgb


def turned_by_loading(image: Image.Image) -> int:
    """Load a Pillow image; returns the EXIF orientation that Pillow applied to its pixels by itself, of a TIFF, else 1.

    Open such images from a file object: of a path Pillow maps plain TIFFs into memory with their sides swapped.
    """
    before = image.getexif().get(ORIENTATION, 1)
    image.load()
    return before if before in range(2, 9) and image.getexif().get(ORIENTATION, 1) != before else 1


def _check_picture(rgb: Picture) -> None:
    if not isinstance(rgb, np.ndarray) or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise UsageError(f"a picture is [H, W, 3], not {getattr(rgb, 'shape', type(rgb).__name__)}")
    if rgb.dtype not in (np.uint8, np.uint16):
        raise UsageError(f"a picture is uint8 or uint16, not {rgb.dtype}")


@functools.cache
def srgb_profile() -> bytes:
    """An sRGB ICC profile, the same bytes every time."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = struct.pack(">6H", 2020, 1, 1, 0, 0, 0)  # the time of making, which would differ at every run
    profile[84:100] = bytes(16)  # a digest of the rest; zero: not computed
    return bytes(profile)


def _exif_block(values: Exif) -> Any:
    """Pillow's Exif object with the values we know, upright, sRGB."""
    from PIL import Image

    block = Image.Exif()
    block[ORIENTATION] = 1
    details: dict[int, Any] = {COLOR_SPACE: 1}
    for tags, target in ((MAIN_TAGS, block), (EXIF_TAGS, details)):
        for name, tag in tags.items():
            value = values.get(name)
            if value not in (None, ""):
                target[tag] = _exif_value(name, value)
    if values.get("DateTime"):
        details[DATE_TIME_ORIGINAL] = _exif_value("DateTime", values["DateTime"])
    block[EXIF_IFD] = details  # what `get_ifd` gives is written by newer versions of Pillow only
    return block


def _exif_value(name: str, value: Any) -> Any:
    from PIL.TiffImagePlugin import IFDRational

    if isinstance(value, str):
        return value.encode("ascii", "replace").decode("ascii")
    if name == "ISO":
        return max(0, min(int(value), 65535))
    fraction = Fraction(max(0.0, min(float(value), 4e9))).limit_denominator(1_000_000 if value < 4000 else 1)
    return IFDRational(fraction.numerator, fraction.denominator)


def _write_jpeg(file: IO[bytes], rgb: Picture, exif: Exif, quality: int) -> None:
    """Bands that Pillow encodes one by one, joined by restart markers (T.81, E.1.4): the pixels are those of one scan.

    Pillow would copy the whole picture, at 4 bytes a pixel. A restart forgets what came before, as a new file does, and
    the tables are the same in each band, so only the height and the distance between restarts must be written in.
    """
    from PIL import Image

    height, width = rgb.shape[:2]
    blocks = -(-width // 8)
    band = 8 * max(min(JPEG_BAND_PIXELS // (64 * blocks), 65535 // blocks), 1)
    extra: dict[str, Any] = {"exif": _exif_block(exif).tobytes(), "icc_profile": srgb_profile()}
    for number, top in enumerate(range(0, height, band)):
        encoded = io.BytesIO()
        rows = Image.fromarray(np.ascontiguousarray(rgb[top : top + band]))
        rows.save(encoded, "JPEG", quality=quality, subsampling=0, **(extra if number == 0 else {}))
        data = encoded.getvalue()
        frame, scan = _segment(data, b"\xff\xc0"), _segment(data, b"\xff\xda")
        if number == 0:
            file.write(data[: frame + 5] + struct.pack(">H", height) + data[frame + 7 : scan])
            if band < height:
                file.write(struct.pack(">3H", 0xFFDD, 4, band // 8 * blocks))
            file.write(data[scan:-2])
        else:
            file.write(struct.pack(">H", 0xFFD0 + (number - 1) % 8))
            file.write(data[scan + 2 + int.from_bytes(data[scan + 2 : scan + 4]) : -2])
    file.write(b"\xff\xd9")


def _segment(jpeg: bytes, marker: bytes) -> int:
    """Where the first segment of a kind begins."""
    at = 2
    while jpeg[at : at + 2] != marker:
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    return at


def _write_png(file: IO[bytes], rgb: Picture, exif: Exif) -> None:
    """An RGB PNG of 8 or 16 bits, band by band: Pillow has no 16 bits and would copy the picture, at 4 bytes a pixel.

    Each byte is stored as its difference to the mean of those above and to the left.
    """

    def chunk(kind: bytes, data: bytes) -> None:
        file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

    height, width = rgb.shape[:2]
    depth = rgb.dtype.itemsize
    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * depth, 2, 0, 0, 0))
    chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(srgb_profile()))
    chunk(b"eXIf", _exif_block(exif).tobytes().removeprefix(b"Exif\0\0"))
    squeeze = zlib.compressobj(4)
    last = np.zeros((1, 3 * depth * width), np.uint8)
    for top in range(0, height, PNG_BAND_ROWS):
        rows = np.ascontiguousarray(rgb[top : top + PNG_BAND_ROWS], f">u{depth}").reshape(-1, 3 * width).view(np.uint8)
        above, left = np.concatenate([last, rows[:-1]]), np.zeros_like(rows)
        left[:, 3 * depth :] = rows[:, : -3 * depth]
        last = rows[-1:]
        filtered = np.full((rows.shape[0], rows.shape[1] + 1), 3, np.uint8)  # 3: filter "average"
        filtered[:, 1:] = rows - ((above >> 1) + (left >> 1) + (above & left & 1))
        data = squeeze.compress(filtered.tobytes())
        if data:
            chunk(b"IDAT", data)
    chunk(b"IDAT", squeeze.flush())
    chunk(b"IEND", b"")


def _write_tiff(file: IO[bytes], rgb: Picture, exif: Exif) -> None:
    """An uncompressed TIFF; EXIF values lie in its main IFD, as in TIFF/EP."""
    import tifffile

    extra: list[tuple[int, int, int, Any, bool]] = [(ORIENTATION, 3, 1, 1, True)]
    for name, tag in {**MAIN_TAGS, **EXIF_TAGS}.items():
        value = exif.get(name)
        if value in (None, "") or name == "DateTime":
            continue
        value = _exif_value(name, value)
        if isinstance(value, str):
            extra.append((tag, 2, 0, value, True))
        elif isinstance(value, int):
            extra.append((tag, 3, 1, value, True))
        else:
            extra.append((tag, 5, 1, (value.numerator, value.denominator), True))
    taken = exif.get("DateTime")
    if isinstance(taken, str) and len(taken) == 19:
        extra.append((306, 2, 0, _exif_value("DateTime", taken), True))
    tifffile.imwrite(
        file,
        rgb,
        photometric="rgb",
        iccprofile=srgb_profile(),
        extratags=extra,
        metadata=None,
        software=False,
        rowsperstrip=256,
    )
