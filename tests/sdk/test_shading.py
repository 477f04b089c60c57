"""Gain maps against the sum written out in the DNG specification, pixel by pixel, and against hostile bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eguot_sdk import ISP, read_raw
from eguot_sdk.errors import RawError, UsageError
from eguot_sdk.raw import RawFrame
from eguot_sdk.shading import PEDESTAL, TOP, ShadingError, evened, read_gain_maps, shaded

PHASES = {"RGGB": "RGGB", "GRBG": "GRBG", "GBRG": "GBRG", "BGGR": "BGGR"}
MakeDng = Callable[..., bytes]
SITES = ((0, 0), (0, 1), (1, 0), (1, 1))


def opcode(
    points: NDArray[Any],
    site: tuple[int, int] = (0, 0),
    size: tuple[int, int] = (32, 48),
    pitch: int = 2,
    spacing: tuple[float, float] | None = None,
    origin: tuple[float, float] = (0.0, 0.0),
) -> bytes:
    v, h = points.shape
    step = spacing or (1 / max(v - 1, 1), 1 / max(h - 1, 1))
    data = struct.pack(">10I", *site, *size, 0, 1, pitch, pitch, v, h)
    data += struct.pack(">4dI", *step, *origin, 1) + points.astype(">f4").tobytes()
    return struct.pack(">4I", 9, 0x01030000, 0, len(data)) + data


def opcode_list(*opcodes: bytes) -> bytes:
    return struct.pack(">I", len(opcodes)) + b"".join(opcodes)


def gain_at(points: NDArray[Any], place: tuple[float, float], spacing: Any, origin: Any) -> float:
    """Bilinear, clamped to the grid, one pixel at a time."""
    y, x = ((place[axis] - origin[axis]) / spacing[axis] for axis in (0, 1))
    y, x = min(max(y, 0), points.shape[0] - 1), min(max(x, 0), points.shape[1] - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, points.shape[0] - 1), min(x0 + 1, points.shape[1] - 1)
    top = points[y0, x0] * (1 - (x - x0)) + points[y0, x1] * (x - x0)
    bottom = points[y1, x0] * (1 - (x - x0)) + points[y1, x1] * (x - x0)
    return float(top * (1 - (y - y0)) + bottom * (y - y0))


@pytest.mark.parametrize("cfa", PHASES)
@pytest.mark.parametrize("area", [None, (3, 5, 39, 51)])
def test_counts_are_multiplied_by_the_map_of_their_colour(
    make_dng: MakeDng, cfa: str, area: tuple[int, ...] | None
) -> None:
    rng = np.random.default_rng(1)
    mosaic = rng.integers(40, 4000, (42, 56)).astype(np.uint16)
    box = area or (0, 0, 42, 56)
    size = (box[2] - box[0], box[3] - box[1])
    grids = [rng.uniform(1, 3, (5, 4)) for _ in SITES]
    spacing, origin = (0.3, 0.25), (0.05, -0.1)
    codes = [opcode(grid, site, size, spacing=spacing, origin=origin) for grid, site in zip(grids, SITES, strict=True)]
    changes: dict[str, Any] = {"t51009": (1, tuple(opcode_list(*codes)))}
    if area:
        changes["t50829"] = (4, area)
    frame = read_raw(make_dng(mosaic, cfa=cfa, t50714=(3, (64, 70, 58, 66)), **changes))
    assert frame.origins["gain_maps"] == "tag OpcodeList2"
    even = evened(frame)
    assert even.gain_maps is None
    assert (even.black, even.white) == ((PEDESTAL,) * 4, (TOP,) * 4)
    # Where the visible area begins is LibRaw's choice, so look for it.
    found = [
        (y, x)
        for y in range(8)
        for x in range(8)
        if np.array_equal(mosaic[y : y + frame.height, x : x + frame.width], frame.mosaic)
    ]
    assert len(found) == 1
    top, left = found[0]
    for y, x in rng.integers(0, (frame.height, frame.width), (200, 2)):
        row, column = top + y - box[0], left + x - box[1]
        site = 2 * (row % 2) + column % 2
        plane = (frame.cfa.index("R")) ^ (2 * (y % 2) + x % 2)
        black, white = frame.black[plane], frame.white[plane]
        gain = gain_at(grids[site], ((row + 0.5) / size[0], (column + 0.5) / size[1]), spacing, origin)
        linear = (float(frame.mosaic[y, x]) - black) / (white - black) * gain
        expected = min(max(linear * (TOP - PEDESTAL) + PEDESTAL, 0), TOP)
        assert even.mosaic[y, x] == pytest.approx(expected, abs=1.0)


def test_one_map_for_all_colours_and_maps_that_multiply(make_dng: MakeDng, counts: Any) -> None:
    flat = np.full((1, 1), 1.5)
    codes = opcode_list(opcode(flat, pitch=1), struct.pack(">4I", 4, 0, 1, 3) + b"abc", opcode(flat, pitch=1))
    frame = read_raw(make_dng(counts // 3, t51009=(1, tuple(codes))))
    even = evened(frame)
    linear = (frame.mosaic - 64.0) / (4095 - 64) * 2.25
    np.testing.assert_allclose(even.mosaic, linear * (TOP - PEDESTAL) + PEDESTAL, atol=1)


def test_a_vignette_is_evened(make_dng: MakeDng) -> None:
    y, x = np.mgrid[0:64, 0:96]
    falloff = 1 / (1 + ((y - 31.5) / 64) ** 2 + ((x - 47.5) / 96) ** 2)
    mosaic = np.rint(64 + 2000 * falloff).astype(np.uint16)
    v, h = np.mgrid[0:33, 0:33] / 32
    grid = 1 + (v - 0.5) ** 2 + (h - 0.5) ** 2
    frame = read_raw(make_dng(mosaic, t51009=(1, tuple(opcode_list(opcode(grid, size=(64, 96), pitch=1))))))
    isp = ISP.fake()
    on, off = isp.process(frame), isp.process(frame, lens_shading="off")
    assert on[..., 1].std() < 1
    assert off[..., 1].std() > 5
    np.testing.assert_array_equal(isp.process(frame, lens_shading="on"), on)


def test_what_is_asked_for_is_checked(make_dng: MakeDng, counts: Any) -> None:
    frame = read_raw(make_dng(counts))
    assert shaded(frame, "auto") is frame
    with pytest.raises(RawError, match="no lens shading to apply"):
        shaded(frame, "on")
    with pytest.raises(UsageError, match="auto, on or off"):
        shaded(frame, "yes")  # type: ignore[arg-type]


GRID = np.ones((3, 3))


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (opcode_list(opcode(GRID))[:60], "cut short"),
        (opcode_list(opcode(np.full((3, 3), np.nan))), "gains outside"),
        (opcode_list(opcode(np.zeros((3, 3)))), "gains outside"),
        (opcode_list(opcode(np.full((3, 3), 1e3))), "gains outside"),
        (opcode_list(opcode(GRID, spacing=(0.0, 1.0))), "no sense"),
        (opcode_list(opcode(GRID, size=(4, 4))), "part of the picture"),
        (opcode_list(opcode(GRID, pitch=3)), "another layout"),
        (opcode_list(opcode(GRID), opcode(np.ones((2, 2)))), "different grids"),
        (struct.pack(">I4I10I4dI", 1, 9, 0, 0, 76, *(0,) * 8, 2**31, 2**31, 1, 1, 0, 0, 1), "gain map of"),
    ],
)
def test_damaged_maps_cost_the_correction_and_not_the_picture(
    make_dng: MakeDng, counts: Any, codes: bytes, words: str
) -> None:
    with pytest.raises(ShadingError, match=words):
        read_gain_maps(codes, cfa="RGGB", origin=(0, 0), area=(0, 0, 32, 48))
    frame = read_raw(make_dng(counts, t51009=(1, tuple(codes))))
    assert frame.gain_maps is None
    assert words in frame.origins["gain_maps"]
    with pytest.raises(RawError, match="not used"):
        shaded(frame, "on")


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_maps_or_an_error(data: bytes, after_magic: bool) -> None:
    codes = opcode_list(opcode(GRID))[:40] + data if after_magic else data
    with contextlib.suppress(ShadingError):
        read_gain_maps(codes, cfa="GRBG", origin=(0, 1), area=(0, 1, 32, 48))


def test_planes_of_different_levels_are_evened_by_their_own(make_dng: MakeDng, counts: Any) -> None:
    """Half way between the black and the white of its plane is half way after, times the gain."""
    codes = opcode_list(opcode(np.full((1, 1), 1.5), pitch=1))
    maps = read_raw(make_dng(counts, t51009=(1, tuple(codes)))).gain_maps
    black, white = (10.0, 20.0, 30.0, 40.0), (1010.0, 1220.0, 1430.0, 1640.0)
    mosaic = np.empty((32, 48), np.uint16)
    for plane, (y, x) in enumerate(SITES):  # R, Gr, Gb, B of RGGB
        mosaic[y::2, x::2] = (black[plane] + white[plane]) / 2
    frame = RawFrame.from_array(mosaic, cfa="RGGB", black=black, white=white)
    even = evened(dataclasses.replace(frame, gain_maps=maps))
    np.testing.assert_allclose(even.mosaic, PEDESTAL + 0.75 * (TOP - PEDESTAL), atol=1)


def test_what_is_even_already_may_be_asked_to_be(make_dng: MakeDng, counts: Any) -> None:
    codes = opcode_list(opcode(np.full((1, 1), 1.5), pitch=1))
    even = evened(read_raw(make_dng(counts, t51009=(1, tuple(codes)))))
    assert shaded(even, "on") is even


@pytest.mark.parametrize(("at", "value"), [(4, 1), (5, 0)])
def test_maps_of_planes_that_a_mosaic_does_not_have_are_refused(at: int, value: int) -> None:
    """Plane 1 on, or no plane at all: such a map is of a picture of three colours."""
    code = bytearray(opcode(np.ones((3, 3)), pitch=1))
    struct.pack_into(">I", code, 16 + 4 * at, value)
    with pytest.raises(ShadingError, match="another layout"):
        read_gain_maps(opcode_list(bytes(code)), cfa="RGGB", origin=(0, 0), area=(0, 0, 32, 48))
