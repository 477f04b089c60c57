"""A small reader of TIFF tags, for DNG and the camera formats that are TIFF inside.

It reads only the tags in `TAGS`, never pixels. Made for hostile files: every offset is checked against the end of
the file, an IFD is visited once, and numbers of IFDs, entries and values are bounded, so time and memory are too.
What cannot be read is left out; what that means is for the caller to judge. BigTIFF is not read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

MAX_IFDS = 64
MAX_ENTRIES = 4096
MAX_VALUES = 1 << 19

TAGS = {
    254: "NewSubfileType",
    256: "ImageWidth",
    257: "ImageLength",
    258: "BitsPerSample",
    259: "Compression",
    262: "PhotometricInterpretation",
    271: "Make",
    272: "Model",
    273: "StripOffsets",
    274: "Orientation",
    277: "SamplesPerPixel",
    279: "StripByteCounts",
    306: "DateTime",
    315: "Artist",
    324: "TileOffsets",
    325: "TileByteCounts",
    330: "SubIFDs",
    339: "SampleFormat",
    33421: "CFARepeatPatternDim",
    33422: "CFAPattern",
    33432: "Copyright",
    33434: "ExposureTime",
    33437: "FNumber",
    34665: "ExifIFD",
    34855: "ISO",
    36867: "DateTimeOriginal",
    37386: "FocalLength",
    42036: "LensModel",
    50706: "DNGVersion",
    50711: "CFALayout",
    50713: "BlackLevelRepeatDim",
    50714: "BlackLevel",
    50715: "BlackLevelDeltaH",
    50716: "BlackLevelDeltaV",
    50717: "WhiteLevel",
    50721: "ColorMatrix1",
    50722: "ColorMatrix2",
    50723: "CameraCalibration1",
    50724: "CameraCalibration2",
    50727: "AnalogBalance",
    50728: "AsShotNeutral",
    50730: "BaselineExposure",
    50778: "CalibrationIlluminant1",
    50779: "CalibrationIlluminant2",
    50829: "ActiveArea",
    50964: "ForwardMatrix1",
    50965: "ForwardMatrix2",
    51009: "OpcodeList2",
}

# Classic TIFF, and the two camera formats that are TIFF with another magic number (Panasonic RW2, Olympus ORF).
MAGICS = {42, 0x55, 0x4F52, 0x5352}
# TIFF type -> bytes per value and struct code; 2 is text, 5 and 10 are pairs of whole numbers.
TYPES = {
    1: (1, "B"),
    2: (1, "s"),
    3: (2, "H"),
    4: (4, "I"),
    5: (8, "I"),
    6: (1, "b"),
    7: (1, "B"),
    8: (2, "h"),
    9: (4, "i"),
    10: (8, "i"),
    11: (4, "f"),
    12: (8, "d"),
    13: (4, "I"),
}

Value = str | tuple[int, ...] | tuple[float, ...]


@dataclass(frozen=True)
class Ifd:
    """The known tags of one IFD by name: text as str, all else as a tuple of numbers (a rational n/0 is nan)."""

    tags: dict[str, Value]

    def numbers(self, name: str) -> tuple[float, ...]:
        """The values of a tag; empty where it is absent or text."""
        value = self.tags.get(name, ())
        return () if isinstance(value, str) else value

    def wholes(self, name: str) -> tuple[int, ...]:
        """The values of a tag as whole numbers; empty where it is absent, text, or has one that is not finite."""
        values = self.numbers(name)
        return tuple(map(int, values)) if all(abs(v) < 2**63 for v in values) else ()

    def whole(self, name: str, default: int) -> int:
        """The first of `wholes`; `default` where there is none."""
        return next(iter(self.wholes(name)), default)


@dataclass(frozen=True)
class Tiff:
    """The IFDs of a file in the order they were found: the main chain first, then sub-IFDs and EXIF."""

    ifds: tuple[Ifd, ...]
    file_bytes: int

    @property
    def is_dng(self) -> bool:
        """True where a DNGVersion tag says so."""
        return any("DNGVersion" in ifd.tags for ifd in self.ifds)

    def find(self, name: str) -> Value | None:
        """A tag from the first IFD that has it."""
        return next((ifd.tags[name] for ifd in self.ifds if name in ifd.tags), None)

    def whole(self, name: str, default: int) -> int:
        """`Ifd.whole` of the first IFD that has the tag."""
        return next((ifd.whole(name, default) for ifd in self.ifds if name in ifd.tags), default)

    def raw_ifd(self) -> Ifd | None:
        """The IFD of the raw picture: the full-size CFA one, else the full-size linear or monochrome one of a DNG."""
        for photometric in (32803, 34892, 1):
            if photometric == 1 and not self.is_dng:
                break
            found = [i for i in self.ifds if i.whole("PhotometricInterpretation", -1) == photometric]
            found = [i for i in found if i.whole("NewSubfileType", 0) & 1 == 0 and "ImageWidth" in i.tags]
            if found:
                return max(found, key=lambda i: i.whole("ImageWidth", 0) * i.whole("ImageLength", 0))
        return None


def read_tiff(stream: BinaryIO) -> Tiff | None:
    """Read the tags of an open, seekable file. None where it does not begin like a TIFF; never raises on content."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(8)
    if len(head) < 8 or head[:2] not in (b"II", b"MM"):
        return None
    order = "<" if head[:2] == b"II" else ">"
    magic, first = struct.unpack(order + "HI", head[2:])
    if magic not in MAGICS:
        return None
    walk = _Walk(stream, order, size)
    return Tiff(tuple(walk.ifds(first)), size)


class _Walk:
    """One pass over the IFDs of a file."""

    def __init__(self, stream: BinaryIO, order: str, size: int) -> None:
        self.stream, self.order, self.size = stream, order, size
        self.values_left = 2 * MAX_VALUES

    def ifds(self, first: int) -> Iterator[Ifd]:
        chain, children = [first], list[int]()
        seen: set[int] = set()
        while chain or children:
            offset = chain.pop() if chain else children.pop(0)
            if offset == 0 or offset in seen:
                continue
            if len(seen) >= MAX_IFDS:
                return
            seen.add(offset)
            ifd, following = self._ifd(offset)
            if ifd is None:
                continue
            yield ifd
            chain.append(following)
            for name in ("SubIFDs", "ExifIFD"):
                children += ifd.wholes(name)[:MAX_IFDS]

    def _ifd(self, offset: int) -> tuple[Ifd | None, int]:
        """The IFD at an offset and the offset of the following one (0: none)."""
        head = self._bytes(offset, 2)
        if head is None:
            return None, 0
        (count,) = struct.unpack(self.order + "H", head)
        if count > MAX_ENTRIES:
            return None, 0
        table = self._bytes(offset + 2, 12 * count)
        if table is None:
            return None, 0
        tags: dict[str, Value] = {}
        for entry in struct.iter_unpack(self.order + "HHI4s", table):
            name = TAGS.get(entry[0])
            if name is None or name in tags:
                continue
            value = self._value(entry[1], entry[2], entry[3])
            if value is not None:
                tags[name] = value
        tail = self._bytes(offset + 2 + 12 * count, 4)
        following = 0 if tail is None else struct.unpack(self.order + "I", tail)[0]
        return Ifd(tags), following

    def _value(self, kind: int, count: int, field: bytes) -> Value | None:
        if kind not in TYPES or count > MAX_VALUES or count > self.values_left:
            return None
        self.values_left -= count
        size, code = TYPES[kind]
        if size * count <= 4:
            data: bytes | None = field[: size * count]
        else:
            data = self._bytes(struct.unpack(self.order + "I", field)[0], size * count)
        if data is None:
            return None
        if code == "s":
            return data.split(b"\0", 1)[0].decode("latin-1").strip()
        if kind in (5, 10):
            pairs = struct.unpack(f"{self.order}{2 * count}{code}", data)
            return tuple(n / d if d else float("nan") for n, d in zip(pairs[::2], pairs[1::2], strict=True))
        return struct.unpack(f"{self.order}{count}{code}", data)

    def _bytes(self, offset: int, length: int) -> bytes | None:
        if offset < 0 or offset + length > self.size:
            return None
        self.stream.seek(offset)
        data = self.stream.read(length)
        return data if len(data) == length else None
