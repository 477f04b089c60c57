"""Pictures out: against Pillow, tifffile, a PNG decoder by the book, and LibRaw's own stretch and turn."""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rawpy
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from eguot_sdk import output
from eguot_sdk.errors import OutputError, UsageError
from eguot_sdk.output import lying, remove_leftovers, to_square_pixels, upright, write_image, written_beside

EXIF: dict[str, str | int | float] = {
    "Make": "Càmera",
    "Model": "Model 1",
    "DateTime": "2021:03:26 21:16:32",
    "ExposureTime": 0.0198289,
    "FNumber": 2.8,
    "ISO": 50,
    "FocalLength": 7.09375,
    "LensModel": "Lens",
    "Unknown": "left out",
}


@pytest.fixture
def picture16() -> NDArray[np.uint16]:
    """130 rows: more than one band of the PNG writer, and not a multiple of it."""
    return np.random.default_rng(3).integers(0, 65536, (130, 77, 3)).astype(np.uint16)


@pytest.fixture
def picture8(picture16: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return (picture16 >> 8).astype(np.uint8)


def decode_png(data: bytes) -> NDArray[Any]:
    """An RGB PNG by the specification: chunks with checksums, one zlib stream, filters undone byte by byte."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, parts, width, height, depth = 8, [], 0, 0, 0
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", body[:10])
            assert colour == 2
        if kind == b"IDAT":
            parts.append(body)
        at += 12 + length
    pixel = 3 * depth // 8
    stored = zlib.decompress(b"".join(parts))
    assert len(stored) == height * (width * pixel + 1)
    result, above = [], bytes(width * pixel)
    for y in range(height):
        kind_of_filter, *line = stored[y * (width * pixel + 1) : (y + 1) * (width * pixel + 1)]
        row = bytearray()
        for x, value in enumerate(line):
            left = row[x - pixel] if x >= pixel else 0
            guess = {0: 0, 1: left, 2: above[x], 3: (left + above[x]) // 2}[kind_of_filter]
            row.append((value + guess) % 256)
        above = bytes(row)
        result.append(above)
    counts = np.frombuffer(b"".join(result), f">u{depth // 8}").reshape(height, width, 3)
    return counts.astype(counts.dtype.newbyteorder("="))


@pytest.mark.parametrize("suffix", [".png", ".PNG"])
def test_png_of_8_bits_is_exact(tmp_path: Path, picture8: NDArray[np.uint8], suffix: str) -> None:
    path = write_image(tmp_path / ("a" + suffix), picture8)
    assert np.array_equal(decode_png(path.read_bytes()), picture8)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), picture8)


def test_png_of_16_bits_is_exact(tmp_path: Path, picture16: NDArray[np.uint16]) -> None:
    path = write_image(tmp_path / "a.png", picture16)
    assert np.array_equal(decode_png(path.read_bytes()), picture16)
    with Image.open(path) as image:  # Pillow keeps the high bytes
        assert np.array_equal(np.asarray(image.convert("RGB")), picture16 >> 8)


@pytest.mark.parametrize("band", [64, 1000, 40_000, 1 << 20])
@pytest.mark.parametrize("size", [(130, 93), (128, 64), (7, 300), (81, 5), (1200, 9)])
@pytest.mark.parametrize("quality", [95, 10])
def test_a_jpeg_in_bands_has_the_pixels_of_one_in_one(
    tmp_path: Path, size: tuple[int, int], band: int, quality: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    picture[:, : size[1] // 2] = np.arange(size[0], dtype=np.uint8)[:, None, None]
    monkeypatch.setattr(output, "JPEG_BAND_PIXELS", band)
    path = write_image(tmp_path / "a.jpg", picture, quality=quality, exif={"Model": "M"})
    whole = io.BytesIO()
    Image.fromarray(picture).save(whole, "JPEG", quality=quality, subsampling=0)
    with Image.open(path) as found, Image.open(whole) as expected:
        assert found.size == expected.size
        assert np.array_equal(np.asarray(found), np.asarray(expected))
        assert found.getexif()[272] == "M"
        assert found.quantization == expected.quantization
    markers = path.read_bytes().count(b"\xff\xd0")
    assert markers >= (1 if band == 64 and size[0] > 8 else 0)


def test_the_widest_jpeg_is_written(tmp_path: Path) -> None:
    picture = np.zeros((20, output.MAX_JPEG_SIDE, 3), np.uint8)
    picture[11:, 40_000:] = 200
    with Image.open(write_image(tmp_path / "a.jpg", picture)) as found:
        assert np.abs(np.asarray(found).astype(int) - picture).max() < 12


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (64, 1), (65, 3)])
def test_small_pngs_and_turned_ones_are_exact(tmp_path: Path, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.uint8)
    for one in (picture, picture.swapaxes(0, 1)[::-1], picture.astype(np.uint16) * 257):
        found = decode_png(write_image(tmp_path / "a.png", one).read_bytes())
        assert np.array_equal(found, one)


def test_a_png_is_written_without_a_copy_of_the_picture(tmp_path: Path) -> None:
    picture = np.zeros((4000, 1000, 3), np.uint8)
    write_image(tmp_path / "a.png", picture[:100])  # what is made once
    tracemalloc.start()
    try:
        write_image(tmp_path / "a.png", picture)
        assert tracemalloc.get_traced_memory()[1] < picture.nbytes / 4
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".tif", ".tiff"])
def test_tiff_is_exact(tmp_path: Path, picture8: NDArray[np.uint8], picture16: NDArray[np.uint16], suffix: str) -> None:
    for picture in (picture8, picture16):
        path = write_image(tmp_path / ("a" + suffix), picture)
        assert np.array_equal(tifffile.imread(path), picture)
    with Image.open(write_image(tmp_path / "b.tif", picture8)) as image:
        assert np.array_equal(np.asarray(image), picture8)


def test_jpeg_is_close_with_full_colour(tmp_path: Path) -> None:
    smooth = np.stack(np.meshgrid(np.arange(96) * 2, np.arange(64) * 3), -1)
    picture = np.dstack([smooth, smooth[..., :1][:, ::-1]]).astype(np.uint8)
    picture[:, 48:] = picture[:, 48:, ::-1]  # an edge in colour, which subsampling would smear
    path = write_image(tmp_path / "a.jpg", picture)
    with Image.open(path) as image:
        assert image.format == "JPEG"
        assert [component[1:3] for component in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
        error = np.asarray(image).astype(int) - picture
    assert np.abs(error).mean() < 1.5
    assert write_image(tmp_path / "b.jpeg", picture, quality=50).stat().st_size < path.stat().st_size


@pytest.mark.parametrize("name", ["a8.jpg", "a8.png", "a16.png", "a8.tif", "a16.tiff"])
def test_profile_and_exif_are_in_every_format(
    tmp_path: Path, picture8: NDArray[np.uint8], picture16: NDArray[np.uint16], name: str
) -> None:
    path = write_image(tmp_path / name, picture16 if "16" in name else picture8, exif=EXIF)
    with Image.open(path) as image:
        profile = ImageCms.getOpenProfile(io.BytesIO(image.info["icc_profile"]))
        assert "sRGB" in ImageCms.getProfileDescription(profile)
        exif = image.getexif()
        inside = dict(exif) | dict(exif.get_ifd(0x8769))
    assert inside[0x010F] == "C?mera"
    assert inside[0x0110] == "Model 1"
    assert inside[0x0132] == "2021:03:26 21:16:32"
    assert inside[0x0112] == 1
    assert float(inside[0x829A]) == pytest.approx(0.0198289, rel=1e-4)
    assert float(inside[0x829D]) == pytest.approx(2.8)
    assert inside[0x8827] == 50
    assert float(inside[0x920A]) == pytest.approx(7.09375)
    assert inside[0xA434] == "Lens"


def test_absurd_exif_values_do_not_stop_a_picture(tmp_path: Path, picture8: NDArray[np.uint8]) -> None:
    exif: dict[str, str | int | float] = {
        "ExposureTime": 1e-9,
        "FNumber": 1e12,
        "ISO": 10**9,
        "FocalLength": -3.0,
        "Make": "",
        "DateTime": "once",
    }
    for name in ("a.jpg", "a.png", "a.tif"):
        with Image.open(write_image(tmp_path / name, picture8, exif=exif)) as image:
            image.load()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_the_same_picture_gives_the_same_bytes(tmp_path: Path, picture8: NDArray[np.uint8], name: str) -> None:
    first = write_image(tmp_path / name, picture8, exif=EXIF).read_bytes()
    output.srgb_profile.cache_clear()
    assert write_image(tmp_path / name, picture8, exif=EXIF).read_bytes() == first


@pytest.mark.parametrize(
    ("name", "rgb", "words"),
    [
        ("a.bmp", np.zeros((4, 4, 3), np.uint8), "suffix"),
        ("a", np.zeros((4, 4, 3), np.uint8), "suffix"),
        ("a.jpg", np.zeros((4, 4, 3), np.uint16), "8 bits"),
        ("a.png", np.zeros((4, 4), np.uint8), r"\[H, W, 3\]"),
        ("a.png", np.zeros((4, 4, 4), np.uint8), r"\[H, W, 3\]"),
        ("a.png", np.zeros((0, 4, 3), np.uint8), r"\[H, W, 3\]"),
        ("a.png", np.zeros((4, 4, 3), np.float32), "uint8 or uint16"),
        ("a.jpg", np.broadcast_to(np.uint8(0), (1, 70000, 3)), "65500"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path, name: str, rgb: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        write_image(tmp_path / name, rgb)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_quality_is_refused(tmp_path: Path, picture8: NDArray[np.uint8]) -> None:
    with pytest.raises(UsageError, match="1 to 100"):
        write_image(tmp_path / "a.jpg", picture8, quality=0)


@pytest.mark.parametrize("name", ["a.jpg", "a16.png", "a.tif"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path,
    picture8: NDArray[np.uint8],
    picture16: NDArray[np.uint16],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_image(path, picture16 if "16" in name else picture8)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(os.name != "posix", reason="names of other systems have their own limits")
def test_the_longest_names_are_written_and_their_leftovers_found(tmp_path: Path, picture8: NDArray[np.uint8]) -> None:
    path = tmp_path / ("\u6f22" * 83 + ".png")  # 253 bytes of the 255 that a name may have
    write_image(path, picture8)
    with written_beside(path) as file:
        (part,) = tmp_path.glob(".*.part")
        part.with_name(part.name.replace(f"-{os.getpid()}-", "-999999999-")).touch()  # no such process
        file.write(b"picture")
    remove_leftovers([tmp_path / "other.png"])
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers([path])
    assert list(tmp_path.iterdir()) == [path]


def test_what_somebody_elsewhere_may_be_writing_is_left_for_a_day(
    tmp_path: Path, picture8: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine or container that shares the folder: its process numbers mean nothing here."""
    path = tmp_path / "a.png"
    with written_beside(path) as file:
        (part,) = tmp_path.glob(".*.part")
        head, _, rest = part.name.removeprefix(".a.png.").partition("-")
        theirs = part.with_name(
            f".a.png.{'0' * 8 if head != '0' * 8 else '1' * 8}-{rest.replace(str(os.getpid()), '999999999')}"
        )
        theirs.touch()
        file.write(b"picture")
    remove_leftovers([path])
    assert theirs.exists()
    os.utime(theirs, (0, 0))
    remove_leftovers([path])
    assert not theirs.exists()


def test_on_windows_no_signal_is_sent_to_see_whether_a_process_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("os.kill(.., 0) is Ctrl-C there"))
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        runs = output._runs(os.getpid())
    assert not runs


@pytest.mark.skipif(os.name != "posix", reason="folders are synced on POSIX")
@pytest.mark.parametrize("refusal", [None, errno.EINVAL, errno.EACCES, errno.EIO])
def test_the_folder_is_synced_after_the_name_is_there(
    tmp_path: Path, picture8: NDArray[np.uint8], refusal: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    synced: list[tuple[bool, bool]] = []

    def fsync(handle: int) -> None:
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        synced.append((folder, path.exists()))
        if folder and refusal is not None:
            raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(os, "fsync", fsync)
    if refusal == errno.EIO:  # not a refusal: the disk is broken
        with pytest.raises(OutputError, match="Input/output error"):
            write_image(path, picture8)
    else:
        write_image(path, picture8)
    assert synced == [(False, False), (True, True)]
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_real_write_error_is_an_output_error(picture8: NDArray[np.uint8]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(OutputError, match="cannot be written"):
        write_image("/dev/full/a.png", picture8)


def test_a_missing_folder_and_a_folder_in_the_way_are_output_errors(
    tmp_path: Path, picture8: NDArray[np.uint8]
) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_image(tmp_path / "absent" / "a.png", picture8)
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_image(tmp_path / "a.png", picture8)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_an_interrupt_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture8: NDArray[np.uint8]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(output, "_write_tiff", stop)
    with pytest.raises(KeyboardInterrupt):
        write_image(tmp_path / "a.tif", picture8)
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_replaced_and_not_followed(tmp_path: Path, picture8: NDArray[np.uint8]) -> None:
    target = tmp_path / "elsewhere.bin"
    target.write_bytes(b"keep")
    (tmp_path / "a.png").symlink_to(target)
    write_image(tmp_path / "a.png", picture8)
    assert target.read_bytes() == b"keep"
    assert not (tmp_path / "a.png").is_symlink()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_what_pillow_does_with_that_orientation(orientation: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    image = Image.fromarray(rgb)
    image.getexif()[0x0112] = orientation
    turned = upright(rgb, orientation)
    assert np.array_equal(turned, np.asarray(ImageOps.exif_transpose(image)))
    assert turned.base is not None  # a view


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_is_written_lying_appears_upright(orientation: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    expected = upright(rgb, orientation)
    picture = np.zeros(expected.shape, np.uint8)
    lying(picture, orientation)[...] = rgb
    np.testing.assert_array_equal(picture, expected)


def test_upright_is_what_libraw_does(make_dng: Callable[..., bytes]) -> None:
    mosaic = np.full((32, 48), 200, np.uint16)
    mosaic[:16, :8] = 4000  # one bright corner
    for orientation in range(1, 9):
        with rawpy.imread(io.BytesIO(make_dng(mosaic, t274=(3, orientation)))) as raw:
            truth = raw.postprocess(no_auto_bright=True)
        plain = np.dstack([mosaic >> 4] * 3).astype(np.uint8)
        turned = upright(plain, orientation)
        assert turned.shape == truth.shape
        assert np.corrcoef(turned[..., 1].reshape(-1), truth[..., 1].reshape(-1))[0, 1] > 0.9


def test_an_orientation_outside_exif_is_refused() -> None:
    with pytest.raises(UsageError, match="1 to 8"):
        upright(np.zeros((2, 2, 3), np.uint8), 0)


def slow_stretch(rgb: NDArray[Any], aspect: float) -> NDArray[Any]:
    """LibRaw's stretch, pixel by pixel, along the columns."""
    height, width = rgb.shape[:2]
    result = np.zeros((height, int(width * aspect + 0.5), 3), rgb.dtype)
    for column in range(result.shape[1]):
        place = column / aspect
        c, part = int(place), place - int(place)
        right = min(c + 1, width - 1)
        for row in range(height):
            for k in range(3):
                result[row, column, k] = int(
                    float(rgb[row, c, k]) * (1 - part) + float(rgb[row, right, k]) * part + 0.5
                )
    return result


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_square_pixels_are_stretched_like_libraw(dtype: type) -> None:
    rgb: NDArray[Any] = np.random.default_rng(1).integers(0, np.iinfo(dtype).max + 1, (70, 11, 3)).astype(dtype)
    wide, tall = to_square_pixels(rgb, 1.5346), to_square_pixels(rgb.swapaxes(0, 1), 1 / 1.5346)
    truth = slow_stretch(rgb, 1.5346)
    assert wide.shape == truth.shape
    assert wide.dtype == dtype
    assert np.abs(wide.astype(int) - truth).max() <= 1  # float32 against double
    assert np.array_equal(tall, wide.swapaxes(0, 1))
    assert to_square_pixels(rgb, 1.0) is rgb


def test_square_pixels_have_the_size_of_libraw(shared_data: Path) -> None:
    with rawpy.imread(str(shared_data / "raw" / "kodak_dc120_3910.kdc")) as raw:
        shape, aspect = raw.postprocess().shape, raw.sizes.pixel_aspect
    assert shape == (976, 1301, 3)
    assert to_square_pixels(np.zeros((976, 848, 3), np.uint8), aspect).shape == shape


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_the_time_the_picture_was_taken_is_where_viewers_look(
    tmp_path: Path, picture8: NDArray[np.uint8], name: str
) -> None:
    """Photo libraries sort by DateTimeOriginal; sRGB is told by ColorSpace as well. High ISO fits into 16 bits."""
    path = write_image(tmp_path / name, picture8, exif={**EXIF, "ISO": 51200})
    with Image.open(path) as image:
        details = image.getexif().get_ifd(0x8769)
    assert details[0x9003] == "2021:03:26 21:16:32"
    assert details[0xA001] == 1
    assert details[0x8827] == 51200


def test_a_quality_beyond_100_is_refused(tmp_path: Path, picture8: NDArray[np.uint8]) -> None:
    for quality in (101, -1):
        with pytest.raises(UsageError, match="1 to 100"):
            write_image(tmp_path / "a.jpg", picture8, quality=quality)
    for quality in (1, 100):
        write_image(tmp_path / "a.jpg", picture8, quality=quality)


@pytest.mark.parametrize(("aspect", "width"), [(1.004, 200), (0.996, 200), (1.02, 204), (1 / 1.02, 200)])
def test_pixels_count_as_square_where_libraw_says_so(aspect: float, width: int) -> None:
    """It stretches beyond 0.995 and 1.005."""
    rgb = np.zeros((100, 200, 3), np.uint8)
    square = to_square_pixels(rgb, aspect)
    assert square.shape == (102 if aspect == 1 / 1.02 else 100, width, 3)
    assert (square is rgb) == (0.995 < aspect < 1.005)
    assert square.shape[:2] == output.square_size(100, 200, aspect)
