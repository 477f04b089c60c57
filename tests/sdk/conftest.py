"""A writer of DNG files byte by byte, for tests that need tags no honest writer would produce."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

# TIFF type -> struct code; 5 and 10 take (numerator, denominator) pairs.
CODES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "I", 9: "i", 10: "i", 11: "f", 12: "d"}
Tags = dict[int, tuple[int, Any]]


def encode(order: str, kind: int, value: Any) -> tuple[int, bytes]:
    """Count and bytes of one tag value."""
    if kind == 2:
        return len(value), value
    values = list(value) if isinstance(value, tuple | list) else [value]
    count = len(values) // 2 if kind in (5, 10) else len(values)
    return count, struct.pack(f"{order}{len(values)}{CODES[kind]}", *values)


def tiff_bytes(tags: Tags, pixels: bytes = b"", *, order: str = "<", following: int = 0) -> bytes:
    """One IFD at byte 8, its longer values after it, then the pixels; tag 273 or 324 of value None points there."""
    entries, tail = [], b""
    at = 8 + 2 + 12 * len(tags) + 4
    encoded = {tag: encode(order, kind, 0 if value is None else value) for tag, (kind, value) in tags.items()}
    pixel_place = at + sum(len(data) + len(data) % 2 for _, data in encoded.values() if len(data) > 4)
    for tag in sorted(tags):
        kind, value = tags[tag]
        count, data = encode(order, kind, pixel_place) if value is None else encoded[tag]
        if len(data) > 4:
            field = struct.pack(order + "I", at + len(tail))
            tail += data + b"\0" * (len(data) % 2)
        else:
            field = data.ljust(4, b"\0")
        entries.append(struct.pack(order + "HHI", tag, kind, count) + field)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    table = struct.pack(order + "H", len(entries)) + b"".join(entries) + struct.pack(order + "I", following)
    return head + table + tail + pixels


def dng_bytes(mosaic: NDArray[np.uint16], *, cfa: str = "RGGB", order: str = "<", **changes: Any) -> bytes:
    """An uncompressed 16-bit DNG. `changes`: `t<tag number>`=(type, value) sets a tag, None removes it."""
    height, width = mosaic.shape
    tags: Tags = {
        254: (4, 0),
        256: (4, width),
        257: (4, height),
        258: (3, 16),
        259: (3, 1),
        262: (3, 32803),
        271: (2, b"Maker\0"),
        272: (2, b"Model 1\0"),
        273: (4, None),
        274: (3, 1),
        277: (3, 1),
        278: (4, height),
        279: (4, mosaic.nbytes),
        33421: (3, (2, 2)),
        33422: (1, tuple("RGB".index(c) for c in cfa)),
        50706: (1, (1, 4, 0, 0)),
        50708: (2, b"Model 1\0"),
        50713: (3, (2, 2)),
        50714: (3, (64, 64, 64, 64)),
        50717: (4, 4095),
        50721: (10, tuple(v for x in (9020, -2890, -715, -4535, 12436, 2348, -934, 1919, 7086) for v in (x, 10000))),
        50728: (5, (5, 10, 1, 1, 8, 10)),
        50778: (3, 21),
    }
    for name, change in changes.items():
        tags.pop(int(name[1:]), None)
        if change is not None:
            tags[int(name[1:])] = change
    return tiff_bytes(tags, mosaic.astype(order + "u2").tobytes(), order=order)


@pytest.fixture(scope="session")
def make_tiff() -> Callable[..., bytes]:
    """`tiff_bytes`."""
    return tiff_bytes


@pytest.fixture(scope="session")
def make_dng() -> Callable[..., bytes]:
    """`dng_bytes`."""
    return dng_bytes


@pytest.fixture(scope="session")
def counts() -> NDArray[np.uint16]:
    """A mosaic of 32 x 48 random counts in 64..4000, all different enough to tell places apart."""
    return np.random.default_rng(7).integers(64, 4000, (32, 48)).astype(np.uint16)


@pytest.fixture(scope="session")
def flat_gain_map() -> Callable[[float, int], tuple[int, tuple[int, ...]]]:
    """The tag 51009 of a DNG of 32 x 48 pixels: one gain, of every pixel (pitch 1) or of the first of each cell (2)."""

    def tag(gain: float, pitch: int) -> tuple[int, tuple[int, ...]]:
        head = struct.pack(">5I", 1, 9, 0x01030000, 0, 80)
        return 1, tuple(head + struct.pack(">10I4dIf", 0, 0, 32, 48, 0, 1, pitch, pitch, 1, 1, 1, 1, 0, 0, 1, gain))

    return tag
