"""Crops of raws and photos: exact planes and truths at every turn and phase, and files of every kind."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eguot_sdk.bayer import RED_AT
from eguot_sdk.errors import UsageError
from eguot_sdk.ingest import pack
from eguot_sdk.pairs import read_picture
from eguot_sdk.raw import RawFrame
from eguot_train.data import crops
from eguot_train.data.crops import PhotoCrops, RawCrops, load_photo, turn_picture
from eguot_train.data.scenes import make_scene

PHASES = ("RGGB", "GRBG", "GBRG", "BGGR")
HEIGHT, WIDTH, CROP = 26, 30, 5


class Fixed:
    """A generator that draws what it is told: the turn, then the place of the crop."""

    def __init__(self, turn: int, top: int, left: int) -> None:
        self._integers = iter((turn, top, left))
        self.ranges: list[tuple[int, int]] = []

    def choice(self, count: int, p: np.ndarray) -> int:
        assert p.sum() == pytest.approx(1)
        return 0

    def integers(self, low: int, high: int | None = None) -> int:
        self.ranges.append((0, low) if high is None else (low, high))
        return next(self._integers)


def coordinate_frame(cfa: str) -> tuple[RawFrame, np.ndarray]:
    """A frame whose count names its place, y * WIDTH + x, and whose truth does so too in (red, green)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frame = RawFrame.from_array(
        (y * WIDTH + x).astype(np.uint16),
        cfa=cfa,
        black=(0.0,) * 4,
        white=(1000.0, 1100.0, 1200.0, 1300.0),
        white_balance=(1.0, 1.0, 1.0),
        matrix=np.eye(3),
    )
    return frame, np.stack([y, x, np.zeros_like(y)], -1).astype(np.uint8)


def turned(array: np.ndarray, turn: int) -> np.ndarray:
    """The eight turns, written out."""
    if turn & 4:
        array = np.swapaxes(array, 0, 1)
    if turn & 1:
        array = np.flipud(array)
    if turn & 2:
        array = np.fliplr(array)
    return array


@pytest.mark.parametrize("cfa", PHASES)
@pytest.mark.parametrize("turn", range(8))
def test_planes_and_truth_of_every_turn_and_phase(cfa: str, turn: int) -> None:
    """Every pixel that a crop shows has its colour, place and white level, and the truth lies under it."""
    frame, truth = coordinate_frame(cfa)
    sampler = RawCrops([frame], "camera", CROP, [truth])
    # The turned mosaic, its colours and its white levels, pixel by pixel.
    letters = np.empty((HEIGHT, WIDTH), "U1")
    white = np.empty((HEIGHT, WIDTH))
    red_row = RED_AT[cfa][0]
    for y in range(HEIGHT):
        for x in range(WIDTH):
            letters[y, x] = cfa[2 * (y % 2) + x % 2]
            plane = {"R": 0, "B": 3}.get(letters[y, x], 1 if y % 2 == red_row else 2)
            white[y, x] = frame.white[plane]
    mosaic, letters, white = (turned(a, turn) for a in (frame.mosaic, letters, white))
    companded = np.clip(mosaic / white, 0, 1) ** (1 / 2.2)
    # It starts with red once the rows and columns before the first red are left out.
    (top_red, left_red), *_ = np.argwhere(letters == "R")
    assert (top_red < 2) & (left_red < 2)
    oy, ox = (top_red % 2), (left_red % 2)
    for top, left in ((oy, ox), (oy + 3, ox + 4)):
        planes, picture = sampler.sample(Fixed(turn, top, left))  # type: ignore[arg-type]
        y, x = 2 * top - oy, 2 * left - ox
        inside = np.s_[y : y + 2 * CROP, x : x + 2 * CROP]
        assert letters[inside][0, 0] == "R"
        np.testing.assert_allclose(planes, pack(companded[inside]), atol=1e-6)
        assert picture is not None
        np.testing.assert_array_equal(picture, turned(truth, turn)[inside])
        place = picture[..., 0].astype(int) * WIDTH + picture[..., 1]
        np.testing.assert_array_equal(place, mosaic[inside])


@pytest.mark.parametrize("cfa", PHASES)
def test_crops_reach_every_place_and_no_border(cfa: str) -> None:
    """No crop needs reflection, so raw and truth stay aligned; first and last rows and columns are reached."""
    frame, truth = coordinate_frame(cfa)
    sampler = RawCrops([frame], "camera", CROP, [truth])
    rng = np.random.default_rng(0)
    rows, columns = set(), set()
    for _ in range(600):
        planes, picture = sampler.sample(rng)
        assert planes.shape == (CROP, CROP, 4)
        assert planes.dtype == np.float32
        assert picture is not None
        assert picture.shape == (2 * CROP, 2 * CROP, 3)
        rows.update(picture[..., 0].ravel().tolist())
        columns.update(picture[..., 1].ravel().tolist())
    assert rows == set(range(HEIGHT))
    assert columns == set(range(WIDTH))


def test_without_truths_there_is_no_picture_and_larger_frames_come_more_often() -> None:
    small, _ = coordinate_frame("RGGB")
    big = RawFrame.from_array(
        np.full((HEIGHT * 3, WIDTH * 3), 900, np.uint16), cfa="RGGB", black=(0.0,) * 4, white=(1000.0,) * 4,
        white_balance=(1.0, 1.0, 1.0), matrix=np.eye(3),
    )  # fmt: skip
    sampler = RawCrops([small, big], "camera", CROP)
    rng = np.random.default_rng(0)
    drawn = [sampler.sample(rng) for _ in range(800)]
    assert all(picture is None for _, picture in drawn)
    share = np.mean([np.ptp(planes) == 0 for planes, _ in drawn])
    assert share == pytest.approx(0.75, abs=0.05)  # by the square root of the area


def test_the_camera_matrix_acts_where_asked_for() -> None:
    rng = np.random.default_rng(0)
    matrix = np.array([[1.5, -0.3, -0.2], [-0.1, 1.3, -0.2], [0.0, -0.4, 1.4]])
    frame = RawFrame.from_array(
        rng.integers(100, 900, (HEIGHT, WIDTH)).astype(np.uint16), cfa="RGGB", black=(0.0,) * 4, white=(1000.0,) * 4,
        white_balance=(1.0, 1.0, 1.0), matrix=matrix,
    )  # fmt: skip
    planes, _ = RawCrops([frame], "srgb", CROP).sample(Fixed(0, 0, 0))  # type: ignore[arg-type]
    red, gr, gb, blue = np.moveaxis(pack(frame.mosaic[: 2 * CROP, : 2 * CROP] / 1000), -1, 0)
    for plane, rgb in ((0, (red, (gr + gb) / 2, blue)), (1, (red, gr, blue)), (2, (red, gb, blue))):
        expected = sum(matrix[(0, 1, 1)[plane], c] * rgb[c] for c in range(3))
        np.testing.assert_allclose(planes[..., plane], np.clip(expected, 0, 1) ** (1 / 2.2), atol=1e-5)


def test_turn_picture_gives_eight_different_pictures() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    seen = [turn_picture(picture, turn) for turn in range(8)]
    for turn, found in enumerate(seen):
        np.testing.assert_array_equal(found, turned(picture, turn))
    assert len({found.tobytes() + bytes(found.shape) for found in seen}) == 8


def test_photo_crops() -> None:
    y, x = np.mgrid[:40, :50]
    place = np.stack([y, x, np.full_like(y, 7)], -1).astype(np.uint8)
    tiny = np.zeros((8, 60, 3), np.uint8)
    sampler = PhotoCrops([tiny, place], 8)
    assert sampler.kept == [1]
    rng = np.random.default_rng(0)
    corners = set()
    for _ in range(500):
        picture, index = sampler.sample(rng)
        assert index == 0
        assert picture.shape == (16, 16, 3)
        rows, columns = np.unique(picture[..., 0]), np.unique(picture[..., 1])
        assert (np.diff(rows) == 1).all()
        assert (np.diff(columns) == 1).all()
        corners.update((rows[0], rows[-1], columns[0] + 100, columns[-1] + 100))
    assert {0, 39, 100, 149} <= corners


def test_what_is_too_small_is_left_out_or_refused() -> None:
    frame, truth = coordinate_frame("RGGB")
    with pytest.raises(UsageError, match="every raw is smaller than the crop of 26 px"):
        RawCrops([frame], "camera", 13)
    with pytest.raises(UsageError, match="every photo is smaller than the crop of 32 px"):
        PhotoCrops([truth], 16)


# Files


def png_bytes(photo: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_photos_of_many_kinds_become_upright_8_bit_rgb(tmp_path: Path) -> None:
    scene = make_scene(0, 20, 30)
    turned_exif = Image.Exif()
    turned_exif[274] = 6
    Image.fromarray(scene).save(tmp_path / "turned.png", exif=turned_exif)
    np.testing.assert_array_equal(load_photo(tmp_path / "turned.png"), np.rot90(scene, -1))
    for mode in ("L", "LA", "RGBA", "P", "1", "CMYK"):
        path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
        Image.fromarray(scene).convert(mode).save(path)
        photo = load_photo(path)
        assert photo.shape == (20, 30, 3)
        assert photo.dtype == np.uint8
    grey = np.asarray(Image.fromarray(scene).convert("L"))
    np.testing.assert_array_equal(load_photo(tmp_path / "L.png")[..., 1], grey)


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "RGBA", "CMYK"])
def test_turned_tiffs_lie_as_asked(mode: str, tmp_path: Path) -> None:
    """Pillow turns TIFFs by itself, which would turn the truth of a pair away from its raw."""
    scene = Image.fromarray(make_scene(0, 20, 30))
    grey = np.asarray(scene.convert("L")).astype(np.uint16) * 257
    image = Image.fromarray(grey) if mode == "I;16" else scene.convert(mode)
    image.save(tmp_path / "plain.tif")
    lying = load_photo(tmp_path / "plain.tif")
    for orientation, turns in ((3, 2), (6, -1), (8, 1)):
        exif = Image.Exif()
        exif[274] = orientation
        path = tmp_path / f"{orientation}.tif"
        image.save(path, exif=exif)
        np.testing.assert_array_equal(load_photo(path), np.rot90(lying, turns))
        np.testing.assert_array_equal(load_photo(path, upright=False), lying)
        if mode in ("L", "RGB"):
            np.testing.assert_array_equal(read_picture(path), lying)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_tones(suffix: str, tmp_path: Path) -> None:
    """PIL's own conversion would clip at 255 of 65535."""
    ramp = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    path = tmp_path / f"grey.{suffix}"
    Image.fromarray(ramp).save(path)
    photo = load_photo(path)
    np.testing.assert_array_equal(photo, np.rint(ramp / 257).astype(np.uint8)[..., None].repeat(3, 2))


def test_floating_point_photos_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).random((8, 8)).astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UsageError, match="save it with 8 or 16 bits"):
        load_photo(tmp_path / "float.tif")


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL warns of broken EXIF and of files cut short
def test_any_damage_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut and flipped files of all formats: a photo or a UsageError, nothing else."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[274] = 6
    scene = Image.fromarray(make_scene(0, 24, 32))
    refused = []
    for suffix in ("jpg", "png", "tif", "webp"):
        buffer = io.BytesIO()
        scene.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), exif=exif)
        whole = buffer.getvalue()
        for i in range(60):
            data = bytearray(whole)
            if i % 3 == 0:
                data = data[: int(rng.integers(len(data)))]
            else:
                for at in rng.integers(0, min(len(data), 200 if i % 3 == 1 else len(data)), 4):
                    data[at] = int(rng.integers(256))
            path = tmp_path / f"{i}.{suffix}"
            path.write_bytes(bytes(data))
            try:
                assert load_photo(path).dtype == np.uint8
            except UsageError as error:
                refused.append((path.name, str(error)))
    assert len(refused) > 60
    assert all(name in line and "\n" not in line for name, line in refused)

    def broken(*_: object) -> None:
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(crops.ImageOps, "exif_transpose", broken)
    (tmp_path / "fine.png").write_bytes(png_bytes(np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(UsageError, match=r"fine\.png is not a readable photo \(unpack requires"):
        load_photo(tmp_path / "fine.png")


def test_huge_photos_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops, "MAX_PHOTO_PIXELS", 100)
    (tmp_path / "large.png").write_bytes(png_bytes(np.zeros((8, 20, 3), np.uint8)))
    with pytest.raises(UsageError, match="20x8 is too large"):
        load_photo(tmp_path / "large.png")


def test_photos_of_another_colour_space_become_srgb(tmp_path: Path) -> None:
    """Grey of gamma 1.8, of 8 and of 16 bits, and turned: levels by the curve of the standard."""
    white = b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    curve = b"curv" + bytes(4) + struct.pack(">IHH", 1, round(1.8 * 256), 0)
    head = struct.pack(">I4sI4s4s4s", 188, b"lcms", 0x02400000, b"mntr", b"GRAY", b"XYZ ")
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + white[8:]
    table = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, 16)
    profile = struct.pack(">I", 192) + (head + bytes(128 - len(head)) + table + white + curve)[4:]
    ramp = np.linspace(0, 255, 160).round().astype(np.uint8).reshape(10, 16)
    linear = (ramp / 255.0) ** (461 / 256)
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(ramp).save(tmp_path / "8.png", icc_profile=profile, exif=exif)
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "16.png", icc_profile=profile)
    Image.fromarray(ramp).save(tmp_path / "plain.png")
    assert np.abs(load_photo(tmp_path / "8.png")[::-1, ::-1] - expected[..., None]).max() < 2
    assert np.abs(load_photo(tmp_path / "16.png") - expected[..., None]).max() < 2
    np.testing.assert_array_equal(load_photo(tmp_path / "plain.png")[..., 0], ramp)


def test_photos_of_a_few_pixels_are_refused_by_name(tmp_path: Path) -> None:
    for side, fine in ((7, False), (8, True)):
        (tmp_path / f"{side}.png").write_bytes(png_bytes(np.zeros((side, 40, 3), np.uint8)))
        if fine:
            assert load_photo(tmp_path / f"{side}.png").shape == (8, 40, 3)
        else:
            with pytest.raises(UsageError, match=r"7\.png: 40x7 pixels are too few \(at least 8x8\)"):
                load_photo(tmp_path / f"{side}.png")
