"""The tag readers: against hand-made bytes, tifffile's files, and bytes of any kind."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from eguot_sdk.ciff import read_ciff
from eguot_sdk.dng import read_raw_tags, tag_exif, tag_matrix
from eguot_sdk.errors import RawError
from eguot_sdk.tiff import MAX_IFDS, MAX_VALUES, Tiff, read_tiff

MakeTiff = Callable[..., bytes]
SHIPPED = Path(__file__).resolve().parent.parent / "data"


def read(data: bytes) -> Tiff:
    tiff = read_tiff(io.BytesIO(data))
    assert tiff is not None
    return tiff


@pytest.mark.parametrize("order", ["<", ">"])
def test_every_type_reads_as_written(make_tiff: MakeTiff, order: str) -> None:
    data = make_tiff(
        {
            256: (3, 640),
            257: (4, 480),
            271: (2, b"Maker of cameras\0"),
            33421: (3, (2, 2)),
            33422: (1, (1, 0, 2, 1)),
            33434: (5, (1, 250)),
            50714: (11, (63.5, 64.5)),
            50715: (12, (0.25,)),
            50716: (10, (-1, 4)),
            50721: (9, (-3, 5)),
        },
        order=order,
    )
    (ifd,) = read(data).ifds
    assert ifd.whole("ImageWidth", 0) == 640
    assert ifd.whole("ImageLength", 0) == 480
    assert ifd.tags["Make"] == "Maker of cameras"
    assert ifd.numbers("CFAPattern") == (1, 0, 2, 1)
    assert ifd.numbers("ExposureTime") == (0.004,)
    assert ifd.numbers("BlackLevel") == (63.5, 64.5)
    assert ifd.numbers("BlackLevelDeltaH") == (0.25,)
    assert ifd.numbers("BlackLevelDeltaV") == (-0.25,)
    assert ifd.numbers("ColorMatrix1") == (-3, 5)


def test_absent_and_wrong_kinds_have_defaults(make_tiff: MakeTiff) -> None:
    (ifd,) = read(make_tiff({271: (3, 7), 256: (2, b"wide\0"), 33434: (5, (0, 0))})).ifds
    assert ifd.numbers("ImageWidth") == ()
    assert ifd.whole("ImageWidth", 5) == 5
    assert ifd.wholes("ImageLength") == ()
    assert ifd.whole("ExposureTime", 3) == 3  # 0/0 is not a number
    assert tag_exif(Tiff((ifd,), 0)) == {}


def test_whole_numbers_are_read_from_any_type_and_no_others(make_tiff: MakeTiff) -> None:
    tiff = read(make_tiff({256: (11, (640.0, float("nan"))), 257: (12, (480.0,)), 258: (11, (float("inf"),))}))
    assert [tiff.ifds[0].wholes(name) for name in ("ImageWidth", "ImageLength", "BitsPerSample")] == [(), (480,), ()]
    assert (tiff.whole("ImageLength", 7), tiff.whole("ImageWidth", 7), tiff.whole("Compression", 7)) == (480, 7, 7)


@pytest.mark.parametrize("tag", [330, 34665])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_places_of_further_ifds_that_are_no_places_are_left_out(make_tiff: MakeTiff, tag: int, value: float) -> None:
    assert len(read(make_tiff({256: (3, 640), tag: (11, (value,))})).ifds) == 1


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_file_of_tifffile_reads_the_same(tmp_path: Path, byteorder: str) -> None:
    path = tmp_path / "a.tif"
    picture = np.arange(60 * 40, dtype=np.uint16).reshape(60, 40)
    with tifffile.TiffWriter(path, byteorder=byteorder) as writer:  # type: ignore[arg-type]
        writer.write(picture[::4, ::4], subfiletype=1, photometric="minisblack", subifds=1)
        writer.write(picture, photometric="minisblack", rowsperstrip=7, extratags=[(50706, 1, 4, b"\1\4\0\0", True)])
        writer.write(picture[::2, ::2], photometric="minisblack")
    with path.open("rb") as stream:
        tiff = read_tiff(stream)
    assert tiff is not None
    assert tiff.is_dng
    sizes = [(i.whole("ImageLength", 0), i.whole("ImageWidth", 0)) for i in tiff.ifds]
    assert sizes == [(15, 10), (30, 20), (60, 40)]  # the chain first, then sub-IFDs
    with tifffile.TiffFile(path) as truth:
        page = truth.pages[0].pages[0]  # type: ignore[index]
        assert tiff.ifds[2].numbers("StripOffsets") == tuple(page.dataoffsets)
        assert tiff.ifds[2].numbers("StripByteCounts") == tuple(page.databytecounts)
    raw_ifd = tiff.raw_ifd()
    assert raw_ifd is tiff.ifds[2]


def test_other_containers_are_no_tiff() -> None:
    for data in (b"", b"II*\0", b"IX*\0\x08\0\0\0", b"II+\0\x08\0\0\0", b"\xff\xd8" + bytes(99)):
        assert read_tiff(io.BytesIO(data)) is None
    for magic in (b"IIU\0", b"IIRO", b"MM\0*"):
        assert read_tiff(io.BytesIO(magic + bytes(20))) is not None


def test_a_chain_that_loops_is_read_once(make_tiff: MakeTiff) -> None:
    tiff = read(make_tiff({256: (4, 64), 330: (4, (8, 8, 8)), 34665: (4, 8)}, following=8))
    assert len(tiff.ifds) == 1


def test_a_long_chain_ends_at_the_bound() -> None:
    # Each IFD is empty and points 6 bytes on.
    chain = b"".join(struct.pack("<HI", 0, 8 + 6 * (i + 1)) for i in range(10_000))
    tiff = read(b"II*\0\x08\0\0\0" + chain)
    assert len(tiff.ifds) == MAX_IFDS


def test_a_tree_of_sub_ifds_ends_at_the_bound() -> None:
    # Every IFD names 16 sub-IFDs, which lie one byte apart and overlap; without a bound this would not end.
    body = bytearray(4096)
    for at in range(8, 2000, 18):
        struct.pack_into("<HHHII", body, at, 1, 330, 4, 16, 2048)
    for i in range(512):
        struct.pack_into("<I", body, 2048 + 4 * i, 8 + 18 * (i % 100))
    tiff = read(b"II*\0\x08\0\0\0" + bytes(body[8:]))
    assert len(tiff.ifds) <= MAX_IFDS


def test_values_outside_the_file_or_too_many_are_left_out(make_tiff: MakeTiff) -> None:
    def with_entry(kind: int, count: int, offset: int) -> bytes:
        entry = struct.pack("<HHII", 50714, kind, count, offset)
        return b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + struct.pack("<I", 0) + bytes(64)

    for kind, count, offset in ((4, 1000, 8), (4, 4, 10**9), (4, MAX_VALUES + 1, 8), (99, 1, 8), (12, 2**32 - 1, 8)):
        tiff = read(with_entry(kind, count, offset))
        assert tiff.ifds[0].numbers("BlackLevel") == ()
    good = read(with_entry(3, 4, 30))
    assert good.ifds[0].numbers("BlackLevel") == (0, 0, 0, 0)


def test_the_raw_ifd_is_the_full_size_mosaic(make_tiff: MakeTiff) -> None:
    def ifd(width: int, photometric: int, subfile: int) -> Tiff:
        return read(make_tiff({254: (4, subfile), 256: (4, width), 257: (4, 10), 262: (3, photometric)}))

    preview, small, full = ifd(900, 6, 1), ifd(90, 32803, 1), ifd(64, 32803, 0)
    both = Tiff(preview.ifds + small.ifds + full.ifds, 0)
    assert both.raw_ifd() is full.ifds[0]
    assert preview.raw_ifd() is None


KDC = (SHIPPED / "kodak_dc50_0012L.kdc").read_bytes()[:20_000]
CRW = (SHIPPED / "canon_s40_0117.crw").read_bytes()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"IIU\0\x08\0\0\0"]))
def test_any_bytes_are_read_without_complaint(body: bytes, head: bytes) -> None:
    tiff = read(head + body)
    assert len(tiff.ifds) <= MAX_IFDS
    tag_exif(tiff)
    tag_matrix(tiff)
    for ifd in tiff.ifds:
        for name in ifd.tags:
            ifd.whole(name, 0)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1300), st.integers(0, 255)), min_size=1, max_size=12), st.integers(8, 20_000))
def test_a_camera_file_with_wrong_bytes_gives_tags_or_a_raw_error(changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(KDC)
    for place, value in changes:
        data[place] = value
    tiff = read_tiff(io.BytesIO(bytes(data[:length])))
    if tiff is not None:
        tag_exif(tiff)
        try:
            read_raw_tags(tiff)
        except RawError as error:
            assert "\n" not in str(error)  # noqa: PT017 - a refusal is as good as tags


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_dng_with_wrong_bytes_gives_tags_or_a_raw_error(data: st.DataObject, make_dng: Callable[..., bytes]) -> None:
    good = bytearray(make_dng(np.full((32, 32), 500, np.uint16)))
    for _ in range(data.draw(st.integers(1, 6))):
        good[data.draw(st.integers(0, len(good) - 2048 - 1))] = data.draw(st.integers(0, 255))
    tiff = read_tiff(io.BytesIO(bytes(good)))
    if tiff is not None:
        tag_exif(tiff)
        tag_matrix(tiff)
        try:
            read_raw_tags(tiff)
        except RawError as error:
            assert "\n" not in str(error)  # noqa: PT017 - a refusal is as good as tags


def test_a_crw_says_its_camera_and_time() -> None:
    assert read_ciff(io.BytesIO(CRW)) == {
        "Make": "Canon",
        "Model": "Canon PowerShot S40",
        "DateTime": "2021:03:26 21:16:32",
    }
    assert read_ciff(io.BytesIO(KDC)) == {}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_crw_with_wrong_bytes_is_read_without_complaint(data: st.DataObject) -> None:
    # The directories lie at the end of the file; keep it small by cutting the picture out of the middle.
    body = bytearray(CRW[:64] + CRW[-4000:])
    for _ in range(data.draw(st.integers(0, 20))):
        body[data.draw(st.integers(14, len(body) - 1))] = data.draw(st.integers(0, 255))
    struct.pack_into("<I", body, len(body) - 4, data.draw(st.integers(0, len(body))))
    found = read_ciff(io.BytesIO(bytes(body)))
    assert set(found) <= {"Make", "Model", "DateTime"}
