"""Make, model and time of a Canon CRW, whose container (CIFF) LibRaw reads but does not report through rawpy.

As `tiff.py`: bounded, never raises on content, leaves out what it cannot read.
"""

from __future__ import annotations

import datetime
import os
import struct
from typing import BinaryIO

MAGIC = b"HEAPCCDR"
MAX_HEAPS = 32
MAKE_MODEL, CAPTURE_TIME = 0x080A, 0x180E


def read_ciff(stream: BinaryIO) -> dict[str, str | int | float]:
    """EXIF names Make, Model and DateTime of an open, seekable file; empty where it is no CRW."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(14)
    if len(head) < 14 or head[:2] != b"II" or head[6:14] != MAGIC:
        return {}
    result: dict[str, str | int | float] = {}
    heaps = [(struct.unpack("<I", head[2:6])[0], size)]
    for _ in range(MAX_HEAPS):
        if not heaps:
            break
        start, end = heaps.pop()
        for tag, offset, data in _entries(stream, start, end):
            if tag & 0x3800 in (0x2800, 0x3000) and data is not None:
                heaps.append((offset, offset + data))
            elif tag == MAKE_MODEL:
                stream.seek(offset)
                texts = [t.decode("latin-1").strip() for t in stream.read(64).split(b"\0")]
                result |= {k: v for k, v in zip(("Make", "Model"), texts, strict=False) if v and v.isprintable()}
            elif tag == CAPTURE_TIME:
                stream.seek(offset)
                seconds = struct.unpack("<I", stream.read(4).ljust(4, b"\0"))[0]
                # The camera's own clock, counted as if it were UTC.
                taken = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
                result["DateTime"] = taken.strftime("%Y:%m:%d %H:%M:%S")
    return result


def _entries(stream: BinaryIO, start: int, end: int) -> list[tuple[int, int, int | None]]:
    """Tag, offset in the file and length of what one heap holds."""
    if not 0 <= start < end - 4 or end > stream.seek(0, os.SEEK_END):
        return []
    stream.seek(end - 4)
    table = start + struct.unpack("<I", stream.read(4))[0]
    if table + 2 > end:
        return []
    stream.seek(table)
    (count,) = struct.unpack("<H", stream.read(2))
    data = stream.read(10 * min(count, 1024))
    result: list[tuple[int, int, int | None]] = []
    for tag, length, offset in struct.iter_unpack("<HII", data[: len(data) // 10 * 10]):
        # The top bits say that the value lies in the heap (0) or in the entry itself.
        if tag & 0xC000 == 0 and start + offset + length <= end:
            result.append((tag, start + offset, length))
    return result
