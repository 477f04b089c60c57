"""What a raw is: one Bayer mosaic with the few values needed to develop it.

`RawFrame` checks itself, so whoever holds one may rely on it; `read_raw` makes one from a camera file. Levels are
raw counts in the order R, Gr, Gb, B, where Gr is the green on the red row. Nothing here changes a count: black is
not subtracted, white balance and matrix are carried along. Demosaicing and defaults for absent values are elsewhere.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import libraw
from .bayer import CFA_PHASES
from .ciff import read_ciff
from .colour import dng_matrix
from .dng import RawTags, camera_matrix, read_raw_tags, tag_exif
from .errors import CorruptRaw, RawError, UnsupportedRaw, UsageError
from .paths import kind_of
from .shading import GainMaps, ShadingError, read_gain_maps
from .tiff import Tiff, read_tiff

# Suffixes by which a folder's raws are known; a file that is named may have any.
RAW_SUFFIXES = frozenset(
    f".{suffix}"
    for line in (
        "3fr ari arw bay cap cr2 cr3 crw cs1 dc2 dcr dcs dng drf eip erf fff gpr iiq k25 kdc mdc mef mos mrw nef nrw",
        "orf pef ptx pxn qtk raf raw rw2 rwl rwz sr2 srf srw x3f",
    )
    for suffix in line.split()
)
MIN_SIDE = 4
MAX_PIXELS = 400_000_000
MAX_FILE_BYTES = 2**30
# Tags hold fractions where LibRaw keeps whole counts, and LibRaw averages patterns by its own rounding.
LEVEL_TOLERANCE = 2.0
# Gains of red and blue over green that no light and no sensor give.
ABSURD_BELOW, ABSURD_ABOVE = 0.05, 20.0
GAIN_RATIO = 1e6
"""Gains over green beyond which, or below the inverse of which, a white balance is taken for none."""
ASPECTS = 0.25, 4.0
"""Of pixels; those of real cameras lie between 0.5 and 1.6."""

Four = tuple[float, float, float, float]
Three = tuple[float, float, float]
BytesLike = bytes | bytearray | memoryview


@dataclass(frozen=True, eq=False, kw_only=True)
class RawFrame:
    """One Bayer picture as the sensor wrote it, checked. `from_array` makes one from plain values."""

    mosaic: NDArray[np.uint16] = field(repr=False)
    """uint16 [H, W] raw counts of the visible area, read-only; the pixels of a row lie side by side."""
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
    gain_maps: GainMaps | None = None
    """Lens shading of R, Gr, Gb, B, for `shading.evened`; None: the file has none."""
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
        _check_cfa(self.cfa)
        _check_levels(self.black, self.white)
        if self.white_balance is not None:
            _known_balance(self.white_balance)
        if self.gain_maps is not None and len(self.gain_maps) != 4:
            raise RawError(f"gain maps are of R, Gr, Gb and B, not {len(self.gain_maps)}")
        if self.matrix is not None:
            _check_matrix(self.matrix)
        if self.orientation not in range(1, 9):
            raise RawError(f"the orientation must be an EXIF one, 1 to 8, not {self.orientation!r}")
        if not ASPECTS[0] <= self.pixel_aspect <= ASPECTS[1]:
            raise RawError(f"the pixel aspect must be between {ASPECTS[0]} and {ASPECTS[1]}, not {self.pixel_aspect!r}")
        if self.mosaic.size * max(self.pixel_aspect, 1 / self.pixel_aspect) > MAX_PIXELS:
            raise RawError(f"with square pixels it would have more than {MAX_PIXELS // 10**6} megapixels")

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

    def with_mosaic(self, mosaic: NDArray[Any]) -> RawFrame:
        """The next frame of the same camera: everything but the mosaic, which is not copied where it is uint16 [H, W]
        with the pixels of a row side by side. Do not write to it while the frame is in use. Raises RawError.
        """
        array = np.asarray(mosaic)
        if self.gain_maps is not None and array.shape != self.mosaic.shape:
            raise RawError(
                f"a mosaic of {list(array.shape)} for a camera whose lens shading is known for "
                f"{list(self.mosaic.shape)}: give whole frames, or `dataclasses.replace(frame, gain_maps=None)`"
            )
        if array.ndim == 2 and array.dtype == np.uint16 and array.strides[1] == 2 <= array.strides[0]:
            view = array.view()
            view.setflags(write=False)
        else:
            view = _as_mosaic(array)
        return dataclasses.replace(self, mosaic=view)


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Values to use in the place of what a file says; None: the file's. They are kept as a RawFrame keeps them.

    Raises RawError where they make no sense.
    """

    cfa: str | None = None
    """Phase of the visible area: RGGB GRBG GBRG BGGR."""
    black: float | Sequence[float] | None = None
    """Raw counts, one number or four: R, Gr, Gb, B."""
    white: float | Sequence[float] | None = None
    white_balance: Sequence[float] | Literal["auto"] | None = None
    """Gains R, G, B at any scale, or `auto`: estimated from the picture."""

    def __post_init__(self) -> None:
        if self.cfa is not None:
            _check_cfa(self.cfa)
        for name in ("black", "white"):
            if (level := getattr(self, name)) is not None:
                object.__setattr__(self, name, _four(name, level))
        gains = self.white_balance
        if gains is None or (isinstance(gains, str) and gains == "auto"):
            return
        object.__setattr__(self, "white_balance", _known_balance(gains))

    def apply(self, frame: RawFrame) -> RawFrame:
        """The frame with these values. Raises RawError where they make no sense.

        With another `cfa`, levels and gain maps stay with the pixels they belong to, and so change colours.
        """
        changes: dict[str, Any] = {}
        if self.cfa is not None and self.cfa != frame.cfa:
            for name in ("black", "white", "gain_maps"):
                if (values := getattr(frame, name)) is not None:
                    changes[name] = _rephased(values, frame.cfa, self.cfa)
        given: dict[str, Any] = {
            name: value for name in ("cfa", "black", "white") if (value := getattr(self, name)) is not None
        }
        changes |= given
        origins = dict.fromkeys(given, "argument")
        if self.white_balance == "auto":
            changes["white_balance"], origins["white_balance"] = None, "left out on request"
        elif self.white_balance is not None:
            changes["white_balance"], origins["white_balance"] = self.white_balance, "argument"
        if not changes:
            return frame
        return dataclasses.replace(frame, **changes, origins={**frame.origins, **origins})


AS_IN_FILE = Overrides()


def read_raw(
    source: str | os.PathLike[str] | BytesLike | BinaryIO, *, overrides: Overrides = AS_IN_FILE, copy: bool = True
) -> RawFrame:
    """Read a camera's raw file: its visible Bayer mosaic with levels, colour and orientation.

    `source`: a path, the bytes of a file (also as bytearray or memoryview), or an open binary file. `overrides`:
    values that a file lacks or gets wrong; those of the file are then not even checked. `copy` False saves a copy of
    the mosaic by leaving it in LibRaw's memory, and keeps the file open for as long as the frame lives. Raises
    UnsupportedRaw for a whole file that is no Bayer mosaic, CorruptRaw for a damaged one, RawError for one that cannot
    be opened. The message begins with the name of the file.
    """
    with _opened(source) as (stream, decodable, name):
        try:
            return _read(stream, decodable, name, overrides, copy)
        except RawError as error:
            error.__traceback__ = None  # it leads to the picture, and whoever keeps the error would keep the file open
            raise type(error)(f"{name}: {error}") from error.__cause__


@contextmanager
def _opened(source: str | os.PathLike[str] | BytesLike | BinaryIO) -> Iterator[tuple[BinaryIO, Path | BinaryIO, str]]:
    """A seekable stream for tags, what LibRaw opens, and a name for messages."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if (kind := kind_of(path, RawError)) != "file":
            raise RawError(f"{path}: {'a folder' if kind else 'no such file'}; expected a raw file")
        try:
            stream: BinaryIO = path.open("rb")
        except OSError as error:
            raise RawError(f"{path}: cannot be opened ({error.strerror})") from error
        # rawpy opens a name by its UTF-8, which on disk may be another.
        same = os.fsencode(path) == str(path).encode("utf-8", "surrogatepass")
        with stream:
            yield stream, path if same else stream, str(path)
        return
    name = str(getattr(source, "name", "raw data"))
    if isinstance(source, bytes | bytearray | memoryview):
        data: BytesLike = source
    elif isinstance(source, io.TextIOBase):
        raise UsageError(f"{name}: a file opened for text; open it with 'rb'")
    elif hasattr(source, "read"):
        data = source.read(MAX_FILE_BYTES + 1)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise UsageError(f"{name}: reading it gives {type(data).__name__}, no bytes; open it with 'rb'")
    else:
        raise UsageError(f"expected a path, bytes or an open binary file, not {type(source).__name__}")
    buffer = io.BytesIO(data)
    yield buffer, buffer, name


def _read(stream: BinaryIO, decodable: Path | BinaryIO, name: str, overrides: Overrides, copy: bool) -> RawFrame:
    file_bytes = stream.seek(0, os.SEEK_END)
    if file_bytes > MAX_FILE_BYTES:
        raise RawError(f"a file of {file_bytes} bytes; at most {MAX_FILE_BYTES} are read")
    stream.seek(0)
    kind = _kind(stream.read(64))
    if kind is not None and kind.endswith("Foveon"):
        raise UnsupportedRaw("a Foveon X3F raw, which has no Bayer mosaic: develop it with another program")
    tiff = read_tiff(stream)
    if tiff is not None and not any(ifd.tags for ifd in tiff.ifds):
        raise CorruptRaw("a TIFF header without a picture: it is cut short, copy it again from the camera")
    levels: dict[str, Any] = {
        name: value for name in ("black", "white") if (value := getattr(overrides, name)) is not None
    }
    tags = read_raw_tags(tiff, without=levels) if tiff else RawTags()
    try:
        picture = libraw.decode(decodable, file_bytes=file_bytes, max_pixels=MAX_PIXELS, copy=copy)
    except RawError as error:
        if kind is not None:
            raise UnsupportedRaw(f"{kind}, not a camera raw: give the raw file of the camera") from error
        raise
    if overrides.cfa is not None:
        tags, picture = dataclasses.replace(tags, cfa=None), _with_phase(picture, overrides.cfa)
    # Before the frame is made, for the levels of the file may be such that it cannot be.
    picture = dataclasses.replace(picture, **levels)
    _compare(picture, tags)
    if not tags.whole:
        _check_filled(picture)
    exif = tag_exif(tiff) if tiff else read_ciff(stream)
    if tiff is None or not tiff.is_dng:
        exif = picture.exif | exif
    try:
        frame = _frame(picture, tags, tiff, exif, name)
    except RawError as error:
        if levels:
            raise
        raise CorruptRaw(f"{error}; the file is damaged, get the original") from error
    return overrides.apply(frame)


def _kind(head: bytes) -> str | None:
    """What a file that is no raw looks like from its first bytes; None: nothing known."""
    if not head:
        return "an empty file"
    for magic, kind in (
        (b"\xff\xd8\xff", "a JPEG picture"),
        (b"\x89PNG", "a PNG picture"),
        (b"GIF8", "a GIF picture"),
        (b"FOVb", "Foveon"),
        (b"%PDF", "a PDF document"),
        (b"PK\x03\x04", "a ZIP archive"),
    ):
        if head.startswith(magic):
            return kind
    if all(9 <= b <= 13 or 32 <= b < 127 for b in head):
        return "a text file"
    return None


def _compare(picture: libraw.LibRawPicture, tags: RawTags) -> None:
    """Refuse a file whose tags contradict what LibRaw made of it."""
    cfa = None if tags.cfa is None else "".join(_shifted(tags.cfa, picture, tags))
    if cfa not in (None, picture.cfa):
        _refuse("CFAPattern", cfa, picture.cfa)
    # As sets: LibRaw moves an odd active area to even rows and columns but leaves the pattern of blacks behind.
    if tags.black is not None and _apart(sorted(tags.black), sorted(picture.black)):
        _refuse("BlackLevel", _list(tags.black), _list(picture.black))
    if tags.white is not None and _apart([tags.white] * 4, picture.white):
        _refuse("WhiteLevel", f"{tags.white:g}", _list(picture.white))


def _refuse(tag: str, said: str | None, found: str) -> NoReturn:
    raise CorruptRaw(f"the tag {tag} says {said} but LibRaw {found}: the file contradicts itself, get the original")


def _apart(left: Sequence[float], right: Sequence[float]) -> bool:
    return any(abs(a - b) > LEVEL_TOLERANCE for a, b in zip(left, right, strict=True))


def _list(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else ", ".join(f"{v:g}" for v in values)


def _shifted(cell: Sequence[Any], picture: libraw.LibRawPicture, tags: RawTags) -> list[Any]:
    """A 2x2 pattern that begins at the active area, as it is seen from the visible area."""
    dy, dx = picture.margin[0] - tags.origin[0], picture.margin[1] - tags.origin[1]
    return [cell[2 * ((y + dy) % 2) + (x + dx) % 2] for y in (0, 1) for x in (0, 1)]


def _check_filled(picture: libraw.LibRawPicture) -> None:
    """Refuse a mosaic that ends in zeros, which is what decoders leave where data ran out.

    A sensor with a black level above zero gives no zeros; one without gives noise, so not whole rows of them.
    """
    rows = max(picture.mosaic.shape[0] // 16, 2)
    tail = picture.mosaic[-rows:]
    share = float(np.mean(tail == 0))
    if share > (0.5 if min(picture.black) >= 4 else 0.999):
        raise CorruptRaw(
            f"{share:.0%} of its last {rows} rows are exactly zero: pixel data is missing, copy the file again"
        )


def _frame(
    picture: libraw.LibRawPicture,
    tags: RawTags,
    tiff: Tiff | None,
    exif: Mapping[str, str | int | float],
    name: str,
) -> RawFrame:
    origins = {"mosaic": "LibRaw", "cfa": "LibRaw", "black": "LibRaw", "white": picture.white_origin}
    origins |= {"orientation": "LibRaw", "pixel_aspect": "LibRaw"}
    black, white = picture.black, picture.white
    if tags.cfa is not None:
        origins["cfa"] = "tag CFAPattern, LibRaw agrees"
    if tags.black is not None:
        black = _by_plane(_shifted(tags.black, picture, tags), picture.cfa)
        origins["black"] = "tag BlackLevel, LibRaw agrees"
    if tags.white is not None:
        white = (tags.white,) * 4
        origins["white"] = "tag WhiteLevel, LibRaw agrees"
    balance, origins["white_balance"] = _balance(picture, tiff)
    matrix, origins["matrix"] = _matrix(picture, tiff, balance)
    gain_maps, origins["gain_maps"] = _gain_maps(picture, tags)
    return RawFrame(
        mosaic=picture.mosaic,
        cfa=picture.cfa,
        black=black,
        white=white,
        white_balance=balance,
        matrix=matrix,
        gain_maps=gain_maps,
        orientation=picture.orientation,
        pixel_aspect=picture.pixel_aspect,
        exif=exif,
        source=name,
        origins=origins,
    )


def _rephased(values: Sequence[Any], before: str, now: str) -> tuple[Any, ...]:
    """Values of R, Gr, Gb, B by one phase -> those of the same pixels, named by another."""
    moved = before.index("R") ^ now.index("R")
    return tuple(values[plane ^ moved] for plane in range(4))


def _with_phase(picture: libraw.LibRawPicture, cfa: str) -> libraw.LibRawPicture:
    black, white = (_rephased(levels, picture.cfa, cfa) for levels in (picture.black, picture.white))
    return dataclasses.replace(picture, cfa=cfa, black=black, white=white)


def _by_plane(cell: Sequence[float], cfa: str) -> Four:
    """Values at [0,0] [0,1] [1,0] [1,1] -> values of R, Gr, Gb, B."""
    red = cfa.index("R")
    return cell[red], cell[red ^ 1], cell[red ^ 2], cell[red ^ 3]


def _balance(picture: libraw.LibRawPicture, tiff: Tiff | None) -> tuple[Three | None, str]:
    is_dng = tiff is not None and tiff.is_dng
    balance = scaled_balance(picture.gains)
    if balance is None:
        return None, "absent"
    if not is_dng and balance == (1.0, 1.0, 1.0):
        return None, "absent (LibRaw says 1, 1, 1, its word for unknown)"
    if not ABSURD_BELOW <= min(balance) <= max(balance) <= ABSURD_ABOVE:
        return None, f"absurd ({balance[0]:.3g}, 1, {balance[2]:.3g}), not used"
    return balance, "tag AsShotNeutral" if is_dng else "LibRaw"


def _matrix(
    picture: libraw.LibRawPicture, tiff: Tiff | None, balance: Three | None
) -> tuple[NDArray[np.float64] | None, str]:
    """The file's own matrix where it has one that makes sense, else the one LibRaw knows for the camera."""
    found = dng_matrix(tiff, balance) if tiff is not None and tiff.is_dng else None
    if found is None and picture.xyz_to_camera is not None:
        matrix = camera_matrix(picture.xyz_to_camera)
        found = None if matrix is None else (matrix, "LibRaw's table of cameras")
    if found is None:
        return None, "absent"
    found[0].setflags(write=False)
    return found


def _gain_maps(picture: libraw.LibRawPicture, tags: RawTags) -> tuple[GainMaps | None, str]:
    """The lens shading of a DNG; damaged maps cost the correction, not the picture."""
    if not tags.opcodes or tags.area is None:
        return None, "absent"
    origin = (tags.origin[0] - picture.margin[0], tags.origin[1] - picture.margin[1])
    try:
        maps = read_gain_maps(tags.opcodes, cfa=picture.cfa, origin=origin, area=(*origin, *tags.area))
    except ShadingError as error:
        return None, f"tag OpcodeList2, not used: {error}"
    return maps, "tag OpcodeList2" if maps else "absent"


def scaled_balance(gains: Sequence[float] | None) -> Three | None:
    """Gains R, G, B[, G2] at any scale -> R, G, B with G = 1; None where one of R, G, B is not a positive number."""
    if gains is None:
        return None
    try:
        values = [float(g) for g in gains]
    except (TypeError, ValueError, OverflowError) as error:
        raise RawError(f"the white balance must be three or four numbers R, G, B[, G2], not {gains!r:.80}") from error
    if len(values) not in (3, 4):
        raise RawError(f"the white balance must be three or four numbers R, G, B[, G2], not {len(values)}")
    if not all(math.isfinite(v) and v > 0 for v in values[:3]):
        return None
    red, blue = values[0] / values[1], values[2] / values[1]
    if not all(1 / GAIN_RATIO < v < GAIN_RATIO for v in (red, blue)):
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
    except (TypeError, ValueError, OverflowError) as error:
        raise RawError(f"the camera matrix must be 3 x 3 numbers, not {matrix!r:.80}") from error
    copy.setflags(write=False)
    return copy


def _four(name: str, level: float | Sequence[float]) -> Four:
    try:
        values = np.array(level, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise RawError(f"the {name} level must be one number or four (R, Gr, Gb, B), not {level!r:.80}") from error
    if values.size not in (1, 4):
        raise RawError(f"the {name} level must be one number or four (R, Gr, Gb, B), not {values.size}")
    r, gr, gb, b = (float(v) for v in np.broadcast_to(values, 4))
    return r, gr, gb, b


def _check_cfa(cfa: str) -> None:
    if cfa not in CFA_PHASES:
        raise RawError(f"the CFA phase must be one of {', '.join(CFA_PHASES)}, not {cfa!r}")


def _check_mosaic(mosaic: NDArray[np.uint16]) -> None:
    if mosaic.ndim != 2 or mosaic.dtype != np.uint16:
        raise RawError(
            f"a mosaic is uint16 [H, W], not {mosaic.dtype} of shape {mosaic.shape}: use RawFrame.from_array"
        )
    _check_size(mosaic.shape[0], mosaic.shape[1])
    row, pixel = mosaic.strides
    if mosaic.flags.writeable or pixel != 2 or row < 2 * mosaic.shape[1]:
        raise RawError("a mosaic must lie row by row and be read-only: use RawFrame.from_array, which copies")


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
            f"the white level must lie above black by at least one count: black {_list(black)}, white {_list(white)}"
        )


def _known_balance(gains: Sequence[float]) -> Three:
    balance = scaled_balance(gains)
    if balance is None:
        raise RawError(
            f"the white balance must be three gains above 0 and within {GAIN_RATIO:g} of one another, not {gains!r:.80}"
        )
    return balance


def _check_matrix(matrix: NDArray[np.float64]) -> None:
    if not isinstance(matrix, np.ndarray):
        raise RawError(f"the camera matrix must be an array [3, 3], not {matrix!r:.80}: use RawFrame.from_array")
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or np.abs(matrix).max() > 1e3:
        raise RawError(f"the camera matrix must be 3 x 3 numbers of ordinary size, not {matrix.tolist()!r:.120}")
    if abs(np.linalg.det(matrix)) < 1e-6:
        raise RawError("the camera matrix is singular: it would merge colours that differ")
    if (matrix.sum(axis=1) <= 0).any():
        raise RawError("each row of the camera matrix must sum to more than 0, so that white stays white")
