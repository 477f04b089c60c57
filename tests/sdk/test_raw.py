"""RawFrame's checks, and read_raw against rawpy, pidng and hand-made files."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rawpy
from numpy.typing import NDArray

from eguot_sdk import libraw, raw
from eguot_sdk.decoding import Decoder
from eguot_sdk.dng import RawTags
from eguot_sdk.errors import CorruptRaw, RawError, UnsupportedRaw, UsageError
from eguot_sdk.raw import Overrides, RawFrame, read_raw
from eguot_sdk.shading import evened

MakeDng = Callable[..., bytes]
Counts = NDArray[np.uint16]
PHASES = ("RGGB", "GRBG", "GBRG", "BGGR")


def frame_of(mosaic: Any, **changes: Any) -> RawFrame:
    arguments: dict[str, Any] = {"cfa": "RGGB", "black": 64, "white": 1023}
    return RawFrame.from_array(mosaic, **(arguments | changes))


# from_array


def test_from_array_keeps_what_it_is_given(counts: Counts) -> None:
    matrix = np.array([[1.5, -0.4, -0.1], [-0.1, 1.4, -0.3], [0.0, -0.5, 1.5]])
    frame = frame_of(
        counts,
        cfa="GBRG",
        black=(1, 2, 3, 4),
        white=(4090, 4091, 4092, 4093),
        white_balance=(4, 2, 3, 2),
        matrix=matrix,
    )
    assert np.array_equal(frame.mosaic, counts)
    assert (frame.height, frame.width) == (32, 48)
    assert (frame.cfa, frame.black, frame.white) == ("GBRG", (1, 2, 3, 4), (4090, 4091, 4092, 4093))
    assert frame.white_balance == (2.0, 1.0, 1.5)
    assert frame.matrix is not None
    assert np.array_equal(frame.matrix, matrix)
    assert frame.origins["black"] == "argument"
    assert (frame.orientation, frame.pixel_aspect, frame.source) == (1, 1.0, None)


def test_one_number_stands_for_four_levels(counts: Counts) -> None:
    frame = frame_of(counts, black=12, white=4095.5)
    assert frame.black == (12, 12, 12, 12)
    assert frame.white == (4095.5,) * 4


def test_a_frame_does_not_change_with_the_array_it_came_from(counts: Counts) -> None:
    mine = counts.copy()
    frame = frame_of(mine)
    mine[:] = 0
    assert np.array_equal(frame.mosaic, counts)
    with pytest.raises(ValueError, match="read-only"):
        frame.mosaic[0, 0] = 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint64, ">u2"])
def test_any_integer_type_that_fits_is_taken(dtype: Any) -> None:
    mosaic = np.arange(64).reshape(8, 8).astype(dtype)
    frame = frame_of(mosaic)
    assert frame.mosaic.dtype == np.uint16
    assert np.array_equal(frame.mosaic, np.arange(64).reshape(8, 8))


def test_a_view_with_strides_becomes_c_order() -> None:
    mosaic = np.arange(400, dtype=np.uint16).reshape(20, 20)[::2, ::-2].T
    frame = frame_of(mosaic)
    assert frame.mosaic.flags.c_contiguous
    assert np.array_equal(frame.mosaic, mosaic)


@pytest.mark.parametrize(
    ("mosaic", "words"),
    [
        (np.zeros((8, 8, 3), np.uint16), "two axes"),
        (np.zeros(8, np.uint16), "two axes"),
        (np.zeros((3, 8), np.uint16), "at least 4 x 4"),
        (np.zeros((0, 0), np.uint16), "at least 4 x 4"),
        (np.zeros((8, 8), np.float32), "integers"),
        (np.zeros((8, 8), bool), "integers"),
        (np.full((8, 8), 65536, np.int64), "0..65535"),
        (np.full((8, 8), -1, np.int16), "0..65535"),
        (np.broadcast_to(np.uint16(0), (20001, 20000)), "400 megapixels"),
    ],
)
def test_what_is_no_mosaic_is_refused(mosaic: Any, words: str) -> None:
    with pytest.raises(RawError, match=words):
        frame_of(mosaic)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cfa": "RGBG"}, "RGGB, GRBG, GBRG, BGGR"),
        ({"cfa": "rggb"}, "RGGB"),
        ({"black": (1, 2)}, "one number or four"),
        ({"black": "dark"}, "one number or four"),
        ({"black": float("nan")}, "raw counts"),
        ({"white": float("inf")}, "raw counts"),
        ({"black": 1023}, "above black"),
        ({"black": (0, 0, 0, 2000)}, "above black"),
        ({"white_balance": (1, 2)}, "three or four"),
        ({"white_balance": 2.0}, "three or four"),
        ({"matrix": np.eye(4)}, "3 x 3"),
        ({"matrix": [[1, 2], [3]]}, "3 x 3"),
        ({"matrix": np.full((3, 3), np.nan)}, "3 x 3"),
        ({"matrix": np.ones((3, 3))}, "singular"),
        ({"matrix": np.diag([1.0, 1.0, -1.0])}, "sum to more than 0"),
        ({"orientation": 0}, "1 to 8"),
        ({"orientation": 9}, "1 to 8"),
        ({"orientation": "6"}, "1 to 8"),
    ],
)
def test_values_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RawError, match=words) as caught:
        frame_of(np.zeros((8, 8), np.uint16), **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "gains",
    [(-1.0, 0.97, 1.0, 0.0), (0, 1, 0, 0), (2, float("nan"), 1), (2, 1, float("inf")), (1e300, 1e-300, 1), (0, 0, 0)],
)
def test_gains_that_are_no_gains_mean_unknown(counts: Counts, gains: tuple[float, ...]) -> None:
    frame = frame_of(counts, white_balance=gains)
    assert frame.white_balance is None
    assert frame.origins["white_balance"] == "absent"


def test_a_second_green_of_zero_does_not_matter(counts: Counts) -> None:
    assert frame_of(counts, white_balance=(1964.0, 1015.0, 1544.0, 0.0)).white_balance == (1964 / 1015, 1, 1544 / 1015)


def test_a_frame_made_by_hand_is_checked_too(counts: Counts) -> None:
    frame = frame_of(counts)
    with pytest.raises(RawError, match="above black"):
        dataclasses.replace(frame, black=(5000.0,) * 4)
    with pytest.raises(RawError, match="read-only"):
        dataclasses.replace(frame, mosaic=counts.copy())
    with pytest.raises(RawError, match="aspect"):
        dataclasses.replace(frame, pixel_aspect=0.0)


# read_raw on hand-made and pidng files


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("cfa", PHASES)
def test_a_dng_reads_as_written(make_dng: MakeDng, counts: Counts, cfa: str, order: str) -> None:
    # Four different blacks, given in the order of the cell, tell whether levels follow their colour.
    frame = read_raw(make_dng(counts, cfa=cfa, order=order, t50714=(3, (10, 20, 30, 40))))
    assert np.array_equal(frame.mosaic, counts)
    assert frame.cfa == cfa
    cell = dict(zip(("R", "Gr", "Gb", "B"), frame.black, strict=True))
    red = cfa.index("R")
    assert cell["R"] == (10, 20, 30, 40)[red]
    assert cell["B"] == (10, 20, 30, 40)[3 - red]
    assert cell["Gr"] == (10, 20, 30, 40)[red ^ 1]  # in the row of red
    assert cell["Gb"] == (10, 20, 30, 40)[red ^ 2]
    assert frame.white == (4095,) * 4
    assert frame.white_balance == pytest.approx((2.0, 1.0, 1.25))
    assert frame.exif == {"Make": "Maker", "Model": "Model 1"}
    assert frame.origins["black"] == "tag BlackLevel, LibRaw agrees"


@pytest.mark.parametrize("cfa", PHASES)
def test_a_dng_of_pidng_reads_as_written(counts: Counts, cfa: str) -> None:
    from pidng.core import RAW2DNG, DNGTags, Tag  # type: ignore[import-untyped]
    from pidng.defs import CalibrationIlluminant, PhotometricInterpretation  # type: ignore[import-untyped]

    tags = DNGTags()
    for tag, value in (
        (Tag.ImageWidth, 48),
        (Tag.ImageLength, 32),
        (Tag.TileWidth, 48),
        (Tag.TileLength, 32),
        (Tag.Orientation, 6),
        (Tag.PhotometricInterpretation, PhotometricInterpretation.Color_Filter_Array),
        (Tag.SamplesPerPixel, 1),
        (Tag.BitsPerSample, 12),
        (Tag.CFARepeatPatternDim, [2, 2]),
        (Tag.CFAPattern, ["RGB".index(c) for c in cfa]),
        (Tag.BlackLevel, 60),
        (Tag.WhiteLevel, 4000),
        (Tag.CalibrationIlluminant1, CalibrationIlluminant.D65),
        (Tag.AsShotNeutral, [[1, 2], [1, 1], [2, 3]]),
        (Tag.Make, "Maker"),
        (Tag.Model, "Pi"),
    ):
        tags.set(tag, value)
    writer = RAW2DNG()
    writer.options(tags, path="", compress=False)
    frame = read_raw(io.BytesIO(bytes(writer.convert(counts))))
    assert np.array_equal(frame.mosaic, counts)
    assert (frame.cfa, frame.black, frame.white) == (cfa, (60,) * 4, (4000,) * 4)
    assert frame.white_balance == pytest.approx((2.0, 1.0, 1.5))
    assert frame.orientation == 6


@pytest.mark.parametrize("area", [(2, 4, 32, 48), (3, 5, 31, 47), (3, 4, 32, 48), (0, 1, 31, 48)])
@pytest.mark.parametrize("cfa", PHASES)
def test_pattern_and_blacks_count_from_the_active_area(
    make_dng: MakeDng, counts: Counts, cfa: str, area: tuple[int, ...]
) -> None:
    mosaic = np.vstack([counts, counts])[:40, :]
    frame = read_raw(make_dng(mosaic, cfa=cfa, t50714=(3, (10, 20, 30, 40)), t50829=(4, area)))
    # Where the visible area lies is LibRaw's choice; the colours at that place are not.
    corner = np.argwhere(
        [[np.array_equal(mosaic[y : y + 4, x : x + 4], frame.mosaic[:4, :4]) for x in range(9)] for y in range(9)]
    )
    assert len(corner) == 1
    dy, dx = corner[0] - np.array(area[:2])
    expected = "".join(cfa[2 * ((y + dy) % 2) + (x + dx) % 2] for y in (0, 1) for x in (0, 1))
    assert frame.cfa == expected
    red = cfa.index("R")
    assert frame.black == (
        (10, 20, 30, 40)[red],
        (10, 20, 30, 40)[red ^ 1],
        (10, 20, 30, 40)[red ^ 2],
        (40, 30, 20, 10)[red],
    )


def test_fractional_blacks_are_kept(make_dng: MakeDng, counts: Counts) -> None:
    frame = read_raw(make_dng(counts, t50714=(5, (255, 4, 257, 4, 256, 4, 258, 4))))
    assert frame.black == (63.75, 64.25, 64.0, 64.5)


def test_the_daylight_matrix_is_chosen_and_keeps_white_white(make_dng: MakeDng, counts: Counts) -> None:
    daylight = (9020, -2890, -715, -4535, 12436, 2348, -934, 1919, 7086)
    lamp = (12271, -5454, -2612, -4546, 15177, -426, -409, 1636, 5913)

    def ratios(values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(v for x in values for v in (x, 10000))

    for one, two, light_one, light_two in ((lamp, daylight, 17, 21), (daylight, lamp, 21, 17)):
        lights = {"t50778": (3, light_one), "t50779": (3, light_two)}
        # Without the as-shot white nobody knows the light.
        data = make_dng(counts, t50728=None, t50721=(10, ratios(one)), t50722=(10, ratios(two)), **lights)
        frame = read_raw(data)
        assert frame.origins["matrix"] == ("tag ColorMatrix1" if light_one == 21 else "tag ColorMatrix2")
        with rawpy.imread(io.BytesIO(data)) as truth:
            truth.raw_image  # noqa: B018 - LibRaw fills in the matrix when it decodes
            assert frame.matrix == pytest.approx(truth.color_matrix[:, :3], abs=2e-3)
        # Independently: a colour of known sRGB, seen by the camera through the tag's matrix, comes back.
        to_xyz = np.array(
            [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
        )
        camera = np.array(daylight).reshape(3, 3) / 10000 @ to_xyz
        colour = np.array([0.3, 0.5, 0.2])
        seen = (camera @ colour) / (camera @ np.ones(3))
        assert frame.matrix is not None
        assert frame.matrix @ seen == pytest.approx(colour, abs=2e-4)
        assert frame.matrix.sum(axis=1) == pytest.approx(np.ones(3))


@pytest.mark.parametrize("values", [(0,) * 9, (1,) * 9, (-9, 0, 0, 0, -9, 0, 0, 0, -9)])
def test_a_matrix_without_sense_counts_as_absent(make_dng: MakeDng, counts: Counts, values: tuple[int, ...]) -> None:
    frame = read_raw(make_dng(counts, t50721=(10, tuple(v for x in values for v in (x, 10)))))
    assert frame.matrix is None
    assert frame.origins["matrix"] == "absent"


def test_without_a_neutral_the_balance_is_unknown(make_dng: MakeDng, counts: Counts) -> None:
    frame = read_raw(make_dng(counts, t50728=None, t50721=None, t50778=None))
    assert frame.white_balance is None
    assert frame.matrix is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_exif(make_dng: MakeDng, counts: Counts, orientation: int) -> None:
    assert read_raw(make_dng(counts, t274=(3, orientation))).orientation == orientation


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"t262": (3, 34892), "t277": (3, 3), "t258": (3, (16, 16, 16))}, UnsupportedRaw, "already demosaiced"),
        ({"t262": (3, 34892)}, UnsupportedRaw, "monochrome"),
        ({"t262": (3, 1)}, UnsupportedRaw, "monochrome"),
        ({"t259": (3, 52546)}, UnsupportedRaw, "JPEG XL"),
        ({"t259": (3, 12345)}, UnsupportedRaw, "compression 12345"),
        ({"t33421": (3, (6, 6)), "t33422": (1, (1,) * 36)}, UnsupportedRaw, "X-Trans"),
        ({"t33421": (3, (4, 4)), "t33422": (1, (1,) * 16)}, UnsupportedRaw, "4 x 4"),
        ({"t33421": None, "t33422": None}, UnsupportedRaw, "nameless colour filter array"),
        ({"t33422": (1, (0, 0, 0, 0))}, UnsupportedRaw, "R R R R"),
        ({"t33422": (1, (3, 4, 5, 1))}, UnsupportedRaw, "C M Y G"),
        ({"t33422": (1, (0, 1, 2, 1))}, UnsupportedRaw, "R G B G"),
        ({"t33422": (1, (0, 200, 1, 2))}, UnsupportedRaw, r"R \? G B"),
        ({"t50711": (3, 4)}, UnsupportedRaw, "staggered"),
        ({"t258": (3, 32)}, UnsupportedRaw, "32 bits"),
        ({"t339": (3, 3)}, UnsupportedRaw, "floating point"),
        ({"t277": (3, 2)}, UnsupportedRaw, "2 samples"),
        ({"t256": (4, 12)}, UnsupportedRaw, "at least 22"),
        ({"t256": (4, 0)}, CorruptRaw, "0 x 32"),
        ({"t256": (4, 10**6)}, CorruptRaw, "bytes of pixel data"),
        ({"t257": (4, 33)}, CorruptRaw, "bytes of pixel data"),
        ({"t279": (4, 10**6)}, CorruptRaw, "cut short"),
        ({"t259": (3, 7), "t256": (4, 60000), "t257": (4, 60000)}, CorruptRaw, "which cannot be"),
        ({"t50714": (3, (64, 64, 4095, 64))}, CorruptRaw, "not below WhiteLevel"),
        ({"t50714": (11, (float("nan"),) * 4)}, CorruptRaw, "no raw counts"),
        ({"t50713": (3, (9, 9))}, CorruptRaw, "pattern"),
        ({"t50717": (4, 0)}, CorruptRaw, "WhiteLevel is 0"),
    ],
)
def test_a_dng_that_is_no_whole_bayer_mosaic_is_refused_by_name(
    make_dng: MakeDng, counts: Counts, changes: dict[str, Any], error: type[RawError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        read_raw(make_dng(counts, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "tag", [254, 256, 273, 279, 330, 33421, 33422, 34665, 34855, 50713, 50717, 50778, 50829, 51009]
)
def test_numbers_that_are_none_end_in_a_frame_or_an_error_of_ours(
    make_dng: MakeDng, counts: Counts, tag: int, value: float
) -> None:
    lights = {
        "t50778": (3, 17),
        "t50779": (3, 21),
        "t50722": (10, (1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1)),
    }
    data = make_dng(counts, **{**lights, f"t{tag}": (11, (value,) * 4)})
    with contextlib.suppress(RawError):
        assert read_raw(data).cfa == "RGGB"


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_dng_cut_anywhere_is_refused(make_dng: MakeDng, counts: Counts, share: float) -> None:
    data = make_dng(counts)
    with pytest.raises(RawError):
        read_raw(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty file"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "JPEG picture"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG picture"),
        (b"%PDF-1.7" + bytes(100), "PDF"),
        (b"FOVb" + bytes(100), "Foveon"),
        (b"hello, this is no raw\n" * 9, "text file"),
        (b"II*\0\x08\0\0\0", "TIFF header"),
        (bytes(1000), "LibRaw"),
    ],
)
def test_what_is_no_raw_is_named(data: bytes, words: str) -> None:
    with pytest.raises(RawError, match=words):
        read_raw(data)


def test_contradictions_between_tags_and_libraw_are_refused(counts: Counts) -> None:
    picture = libraw.LibRawPicture(
        mosaic=counts,
        margin=(1, 0),
        cfa="GBRG",
        black=(64.0,) * 4,
        white=(4095.0,) * 4,
        white_origin="LibRaw",
        gains=(2.0, 1.0, 1.5),
        xyz_to_camera=None,
        orientation=1,
        pixel_aspect=1.0,
    )
    raw._compare(picture, RawTags(cfa="RGGB", black=(64.4, 63.8, 64, 64), white=4095))  # one row down: GBRG
    for tags, words in (
        (RawTags(cfa="GBRG"), "CFAPattern says RGGB but LibRaw GBRG"),
        (RawTags(cfa="RGGB", origin=(1, 0)), "CFAPattern says RGGB"),
        (RawTags(black=(60, 64, 64, 64)), "BlackLevel says 60, 64, 64, 64 but LibRaw 64"),
        (RawTags(white=4000), "WhiteLevel says 4000 but LibRaw 4095"),
    ):
        with pytest.raises(CorruptRaw, match=words):
            raw._compare(picture, tags)


@pytest.mark.parametrize(("black", "zeros", "refused"), [(32, 3, True), (32, 1, False), (0, 3, True), (0, 1, False)])
def test_a_mosaic_that_ends_in_zeros_is_refused(black: int, zeros: int, refused: bool) -> None:
    mosaic = np.full((64, 64), 100, np.uint16)
    mosaic[64 - 2 * zeros :] = 0  # the check looks at the last 4 rows
    picture = libraw.LibRawPicture(
        mosaic=mosaic,
        margin=(0, 0),
        cfa="RGGB",
        black=(float(black),) * 4,
        white=(1023.0,) * 4,
        white_origin="LibRaw",
        gains=(0.0, 1.0, 0.0),
        xyz_to_camera=None,
        orientation=1,
        pixel_aspect=1.0,
    )
    if refused:
        with pytest.raises(CorruptRaw, match="exactly zero"):
            raw._check_filled(picture)
    else:
        raw._check_filled(picture)


# read_raw on camera files


def test_a_canon_crw_reads_as_rawpy_says(shipped: Path) -> None:
    path = shipped / "canon_s40_0117.crw"
    frame = read_raw(path)
    with rawpy.imread(str(path)) as truth:
        assert np.array_equal(frame.mosaic, truth.raw_image_visible)
        assert frame.mosaic.shape == truth.postprocess(half_size=False).shape[:2]
        gains = truth.camera_whitebalance
    assert (frame.cfa, frame.black, frame.white) == ("RGGB", (32,) * 4, (1023,) * 4)
    assert frame.white_balance == pytest.approx((gains[0] / gains[1], 1.0, gains[2] / gains[1]))
    assert frame.matrix is not None
    assert frame.matrix.sum(axis=1) == pytest.approx(np.ones(3))
    assert frame.matrix[0, 0] > 1
    assert frame.exif["Make"] == "Canon"
    assert frame.exif["Model"] == "Canon PowerShot S40"
    assert frame.exif["DateTime"] == "2021:03:26 21:16:32"
    assert frame.exif["ISO"] == 50
    assert frame.source == str(path)


def test_a_kodak_kdc_reads_without_colour_values(shipped: Path) -> None:
    frame = read_raw(shipped / "kodak_dc50_0012L.kdc")
    assert frame.mosaic.shape == (512, 768)
    assert (frame.cfa, frame.white) == ("GRBG", (16383,) * 4)
    assert frame.white_balance is None
    assert "unknown" in frame.origins["white_balance"]
    assert frame.matrix is None
    assert frame.exif["Model"] == "Kodak Digital Science DC50 Zoom Camera"
    assert frame.exif["ExposureTime"] == pytest.approx(0.03019)


def test_path_bytes_and_open_file_give_the_same(shipped: Path) -> None:
    path = shipped / "kodak_dc50_0012L.kdc"
    from_path, from_bytes = read_raw(str(path)), read_raw(path.read_bytes())
    with path.open("rb") as file:
        from_file = read_raw(file)
    for other in (from_bytes, from_file):
        assert np.array_equal(other.mosaic, from_path.mosaic)
        assert (other.cfa, other.black, other.white, other.exif) == (
            from_path.cfa,
            from_path.black,
            from_path.white,
            from_path.exif,
        )
    assert from_file.source == str(path)


def test_a_name_that_is_not_the_same_in_utf8_is_read_by_its_stream(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "\xe9.kdc"
    path.write_bytes((shipped / "kodak_dc50_0012L.kdc").read_bytes())
    with raw._opened(path) as (stream, decodable, _):
        assert decodable == path
    monkeypatch.setattr(os, "fsencode", lambda name: str(name).encode("latin-1"))  # as in a locale of Latin-1
    with raw._opened(path) as (stream, decodable, _):
        assert decodable is stream


def test_a_mosaic_left_in_the_memory_of_libraw_is_the_same(shipped: Path) -> None:
    path = shipped / "canon_s40_0117.crw"
    copied, borrowed = read_raw(path), read_raw(path, copy=False)
    assert borrowed.mosaic.base is not None
    assert not borrowed.mosaic.flags.writeable
    np.testing.assert_array_equal(borrowed.mosaic, copied.mosaic)
    mosaic = borrowed.mosaic
    del borrowed
    np.testing.assert_array_equal(mosaic, copied.mosaic)  # the view keeps it alive


def test_the_time_in_a_crw_does_not_depend_on_this_machine(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert read_raw(shipped / "canon_s40_0117.crw").exif["DateTime"] == "2021:03:26 21:16:32"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
def test_a_camera_file_cut_short_is_refused(shipped: Path, share: float) -> None:
    for path in (shipped / "canon_s40_0117.crw", shipped / "kodak_dc50_0012L.kdc"):
        data = path.read_bytes()
        with pytest.raises(RawError):
            read_raw(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"black": 60}, {"black": (60.0,) * 4}),
        ({"black": [60] * 4}, {"black": (60.0,) * 4}),
        ({"black": np.arange(60, 64)}, {"black": (60.0, 61.0, 62.0, 63.0)}),
        ({"white": np.float32(3000)}, {"white": (3000.0,) * 4}),
        ({"white_balance": np.array([4.0, 2.0, 3.0])}, {"white_balance": (2.0, 1.0, 1.5)}),
        ({"white_balance": [4, 2, 3, 2]}, {"white_balance": (2.0, 1.0, 1.5)}),
        ({"cfa": "GRBG"}, {"cfa": "GRBG"}),
        ({"white_balance": "auto"}, {"white_balance": None}),
    ],
    ids=str,
)
def test_overrides_take_what_a_frame_takes(
    make_dng: MakeDng, counts: Counts, tmp_path: Path, given: dict[str, Any], plain: dict[str, Any]
) -> None:
    path = tmp_path / "a.dng"
    path.write_bytes(make_dng(counts))
    overrides = Overrides(**given)
    with Decoder() as decoder:
        for frame in (read_raw(path, overrides=overrides), decoder.read(path, overrides=overrides)):
            for name, value in plain.items():
                assert getattr(frame, name) == value
                assert frame.origins[name] in ("argument", "left out on request")
    by_hand = RawFrame.from_array(counts, cfa="RGGB", black=64, white=4095)
    for name, value in plain.items():
        assert getattr(overrides.apply(by_hand), name) == value


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cfa": "rggb"}, "CFA phase must be one of RGGB"),
        ({"black": [1, 2]}, "one number or four"),
        ({"white": "much"}, "one number or four"),
        ({"white_balance": 2.0}, "three or four numbers"),
        ({"white_balance": "warm"}, "three or four numbers"),
        ({"white_balance": (1, 0, 1)}, "above 0"),
        ({"white_balance": np.array([1.0, np.nan, 1.0])}, "above 0"),
    ],
    ids=str,
)
def test_overrides_that_make_no_sense_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(RawError, match=words):
        Overrides(**given)


def test_what_is_no_source_is_said() -> None:
    source: Any = None
    with pytest.raises(UsageError, match="expected a path, bytes or an open binary file, not NoneType"):
        read_raw(source)


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(RawError, match="no such file"):
        read_raw(tmp_path / "absent.dng")
    with pytest.raises(RawError, match="a folder"):
        read_raw(tmp_path)


def test_every_raw_of_the_larger_collection_reads(shared_data: Path) -> None:
    paths = sorted((shared_data / "raw").iterdir())
    assert len(paths) == 18
    for path in paths:
        frame = read_raw(path)
        with rawpy.imread(str(path)) as truth:
            assert np.array_equal(frame.mosaic, truth.raw_image_visible), path
            assert frame.cfa == "".join("RGBG"[i] for i in truth.raw_colors_visible[:2, :2].reshape(-1)), path


def test_every_broken_file_reads_or_is_refused_in_one_line(shared_data: Path) -> None:
    fine = {"control_valid_256x192", "odd_size_rggb_767x511", "tag_ifd_loop", "tag_neutral_zero"}
    for path in sorted((shared_data / "bad").iterdir()):
        start = time.monotonic()
        refusal = ""
        try:
            read_raw(path)
        except RawError as error:
            refusal = str(error)
        assert time.monotonic() - start < 20
        if path.stem in fine:
            assert not refusal
        elif not path.name.startswith("flip_head_"):
            assert refusal.startswith(str(path)), path
            assert "\n" not in refusal


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_bytes_of_any_kind_are_read(make_dng: MakeDng, counts: Counts, kind: Any) -> None:
    data = make_dng(counts)
    np.testing.assert_array_equal(read_raw(kind(data)).mosaic, read_raw(data).mosaic)


def test_any_path_is_read_and_a_file_opened_for_text_is_told(make_dng: MakeDng, counts: Counts, tmp_path: Path) -> None:
    path = tmp_path / "a.dng"
    path.write_bytes(make_dng(counts))
    with os.scandir(tmp_path) as entries:
        np.testing.assert_array_equal(read_raw(next(entries)).mosaic, read_raw(path).mosaic)
    text: Any = path.open(encoding="latin-1")
    with text, pytest.raises(UsageError, match=r"a\.dng: a file opened for text; open it with 'rb'"):
        read_raw(text)


@pytest.mark.parametrize("phase", ["RGGB", "GRBG", "GBRG", "BGGR"])
def test_levels_and_gain_maps_stay_with_their_pixels_when_the_phase_is_given(
    make_dng: MakeDng, flat_gain_map: Any, phase: str
) -> None:
    """The same pixels, the same black, whether the phase is given as the file is read or to the frame that was read.

    The truth is what each pixel is after black and its map, whatever colour it is called.
    """
    values = np.array([[10, 20], [30, 40]], np.uint16)
    mosaic = np.tile(values + 100, (16, 24)).astype(np.uint16)
    data = make_dng(mosaic, t50714=(3, tuple(values.ravel().tolist())), t51009=flat_gain_map(3.0, 2))
    plain = read_raw(data)
    for frame in (read_raw(data, overrides=Overrides(cfa=phase)), Overrides(cfa=phase).apply(plain)):
        assert frame.cfa == phase
        red = phase.index("R")
        for site, black in enumerate(values.ravel()):
            assert frame.black[red ^ site] == black
        np.testing.assert_array_equal(evened(frame).mosaic, evened(plain).mosaic)


def test_levels_of_libraw_stay_with_their_pixels_too(shipped: Path) -> None:
    raw = shipped / "canon_s40_0117.crw"
    plain, turned = read_raw(raw), read_raw(raw, overrides=Overrides(cfa="BGGR"))
    assert plain.cfa == "RGGB"
    assert turned.black == tuple(reversed(plain.black))
    assert turned.white == tuple(reversed(plain.white))


@pytest.mark.parametrize(
    "gains", [(0.0, 1.0, 0.0), (np.nan, 1.0, 1.0), (-1.0, 1.0, 1.0), (np.inf, 1.0, 1.0), (1.0, 1.0)]
)
def test_a_frame_with_gains_that_are_none_is_refused(counts: Counts, gains: Any) -> None:
    frame = RawFrame.from_array(counts, cfa="RGGB", black=64, white=4095)
    with pytest.raises(RawError, match="white balance must be three"):
        dataclasses.replace(frame, white_balance=gains)


def test_a_picture_that_square_pixels_would_make_too_large_is_refused(counts: Counts) -> None:
    frame = RawFrame.from_array(counts, cfa="RGGB", black=64, white=4095)
    large = frame.with_mosaic(np.zeros((20_000, 15_000), np.uint16))  # zeros that nobody reads take no memory
    assert dataclasses.replace(large, pixel_aspect=1.3).height == 20_000
    with pytest.raises(RawError, match="square pixels"):
        dataclasses.replace(large, pixel_aspect=0.7)


def test_a_mosaic_of_another_size_is_refused_where_the_lens_shading_is_known(
    make_dng: MakeDng, flat_gain_map: Any, counts: Counts
) -> None:
    frame = read_raw(make_dng(counts, t51009=flat_gain_map(2.0, 1)))
    assert frame.with_mosaic(counts).gain_maps is not None
    with pytest.raises(RawError, match="give whole frames"):
        frame.with_mosaic(counts[:16])


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="counts open files there")
def test_a_refused_file_is_closed_though_its_error_is_kept(make_dng: MakeDng, counts: Counts, tmp_path: Path) -> None:
    path = tmp_path / "a.dng"
    path.write_bytes(make_dng(counts))
    before, errors = len(os.listdir("/dev/fd")), []
    for _ in range(4):
        with pytest.raises(RawError, match="above black") as caught:
            read_raw(path, overrides=Overrides(black=4000, white=100), copy=False)
        errors.append(caught.value)
        del caught
    assert len(os.listdir("/dev/fd")) == before


def test_artist_copyright_and_baseline_exposure_are_read(make_dng: MakeDng, counts: Counts) -> None:
    frame = read_raw(make_dng(counts, t315=(2, b"A. Smith\0"), t33432=(2, b"(c) A.\0"), t50730=(10, (-3, 4))))
    assert (frame.exif["Artist"], frame.exif["Copyright"], frame.exif["BaselineExposure"]) == (
        "A. Smith",
        "(c) A.",
        -0.75,
    )
