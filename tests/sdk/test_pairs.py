"""The pairs folder: what is written comes back, and what is wrong is named."""

from __future__ import annotations

import dataclasses
import json
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from eguot_sdk import pairs as pairs_module
from eguot_sdk.errors import CorruptRaw, EguotError, RawError, UsageError
from eguot_sdk.isp import ISP
from eguot_sdk.output import written_beside
from eguot_sdk.pairs import Pair, list_pairs, write_pair
from eguot_sdk.raw import RawFrame
from eguot_sdk.shading import GainMap


@pytest.fixture
def frame(counts: NDArray[np.uint16]) -> RawFrame:
    return RawFrame.from_array(
        counts,
        cfa="BGGR",
        black=(60, 61.5, 62, 63),
        white=4095,
        white_balance=(1.9, 1, 1.4),
        matrix=[[1.5, -0.4, -0.1], [-0.1, 1.4, -0.3], [0.0, -0.5, 1.5]],
        orientation=6,
    )


@pytest.fixture
def truth() -> NDArray[np.uint8]:
    return np.random.default_rng(2).integers(0, 256, (32, 48, 3)).astype(np.uint8)


@pytest.fixture
def pair(tmp_path: Path, frame: RawFrame, truth: NDArray[np.uint8]) -> Pair:
    return write_pair(tmp_path, "one", frame, truth)


def test_a_pair_comes_back(tmp_path: Path, frame: RawFrame, truth: NDArray[np.uint8]) -> None:
    write_pair(tmp_path / "new" / "folder", "one", frame, truth)
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "one.json",
        "one_raw.png",
        "one_srgb.png",
    ]
    (pair,) = list_pairs(tmp_path / "new" / "folder")
    again = pair.frame()
    assert pair.name == "one"
    assert np.array_equal(again.mosaic, frame.mosaic)
    assert (again.cfa, again.black, again.white, again.orientation) == ("BGGR", frame.black, frame.white, 6)
    assert again.white_balance == pytest.approx(frame.white_balance)
    assert again.matrix is not None
    assert frame.matrix is not None
    assert np.array_equal(again.matrix, frame.matrix)
    assert np.array_equal(pair.truth(), truth)


def test_lens_shading_comes_back_as_counts(tmp_path: Path, frame: RawFrame, truth: NDArray[np.uint8]) -> None:
    points = np.array([[2.0, 1.2], [1.0, 1.7]], np.float32)
    gain_map = GainMap(points=points, spacing=(1.0, 1.0), origin=(0.0, 0.0), area=(0, 0, 32, 48))
    shaded = dataclasses.replace(frame, gain_maps=(gain_map, None, None, gain_map), orientation=1)
    with ISP.fake() as isp:
        expected = isp.process(shaded)
        np.testing.assert_array_equal(isp.process(write_pair(tmp_path, "one", shaded, truth).frame()), expected)
        plain = isp.process(shaded, lens_shading="off")
    assert np.abs(plain.astype(int) - expected).max() > 10


def test_what_is_unknown_stays_unknown(tmp_path: Path, counts: NDArray[np.uint16], truth: NDArray[np.uint8]) -> None:
    plain = RawFrame.from_array(counts, cfa="RGGB", black=0, white=(4000, 4001, 4002, 4003))
    again = write_pair(tmp_path, "plain", plain, truth).frame()
    assert again.white_balance is None
    assert again.matrix is None
    assert again.white == plain.white


def test_pairs_are_listed_by_name_with_png_or_jpg(tmp_path: Path, frame: RawFrame, truth: NDArray[np.uint8]) -> None:
    for name in ("b", "a", "c"):
        write_pair(tmp_path, name, frame, truth)
    (tmp_path / "b_srgb.png").unlink()
    Image.fromarray(truth).save(tmp_path / "b_srgb.jpg", quality=95)
    (tmp_path / "notes.txt").write_text("not a pair")
    (tmp_path / "._a_raw.png").touch()  # as macOS leaves beside every file on other disks
    pairs = list_pairs(tmp_path)
    assert [p.name for p in pairs] == ["a", "b", "c"]
    assert pairs[1].truth().shape == (32, 48, 3)


def test_unknown_keys_are_ignored_and_numbers_may_be_lists(pair: Pair) -> None:
    meta = json.loads(pair.json_path.read_text())
    meta |= {"black": 60, "white": [4000, 4000, 4000, 4000], "camera": "x", "registration": {"scale": 3.5}}
    meta.pop("orientation")
    meta.pop("camera_wb")
    pair.json_path.write_text(json.dumps(meta))
    frame = pair.frame()
    assert (frame.black, frame.white, frame.orientation) == ((60,) * 4, (4000,) * 4, 1)
    assert frame.white_balance is None


@pytest.mark.parametrize("missing", ["one.json", "one_srgb.png"])
def test_an_incomplete_pair_is_named(pair: Pair, missing: str) -> None:
    (pair.raw_path.parent / missing).unlink()
    with pytest.raises(UsageError, match=missing.split(".")[0]):
        list_pairs(pair.raw_path.parent)


def test_a_folder_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pairs"):
        list_pairs(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        list_pairs(tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[1, 2]", "JSON object"),
        ("[" * 100_000, "cannot be read"),
        ('{"black": 0, "white": 9}', "'cfa' is missing"),
        ('{"cfa": "RGGB", "black": 0}', "'white' is missing"),
        ('{"cfa": "XYZW", "black": 0, "white": 9}', "RGGB"),
        ('{"cfa": ["RGGB"], "black": 0, "white": 9}', "RGGB"),
        ('{"cfa": "RGGB", "black": NaN, "white": 9}', "raw counts"),
        ('{"cfa": "RGGB", "black": 10, "white": 9}', "above black"),
        ('{"cfa": "RGGB", "black": {}, "white": 9}', "one number or four"),
        ('{"cfa": "RGGB", "black": 0, "white": 9, "camera_wb": 3}', "white balance"),
        ('{"cfa": "RGGB", "black": 0, "white": 9, "matrix": [1]}', "3 x 3"),
        ('{"cfa": "RGGB", "black": 0, "white": 9, "orientation": 12}', "1 to 8"),
        ('{"cfa": "RGGB", "black": 0, "white": 1%s}' % ("0" * 400), "one number or four"),
        ('{"cfa": "RGGB", "black": [0, 0, 0, -1%s], "white": 9}' % ("0" * 400), "one number or four"),
        ('{"cfa": "RGGB", "black": 0, "white": 9, "camera_wb": [1, 1%s, 1]}' % ("0" * 400), "white balance"),
        ('{"cfa": "RGGB", "black": 0, "white": 9, "matrix": [[1%s]]}' % ("0" * 400), "3 x 3"),
        ('{"cfa": "RGGB", "black": 0, "white": 9, "orientation": 1%s}' % ("0" * 400), "1 to 8"),
        (" " * (1 << 20) + "{}", "too many"),
        ("\xff", "cannot be read"),
    ],
)
def test_bad_values_are_named_with_their_file(pair: Pair, text: str, words: str) -> None:
    pair.json_path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RawError, match=words) as caught:
        pair.frame()
    assert str(pair.json_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def bomb(width: int, height: int) -> bytes:
    """A small PNG that claims to be large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(9_000, 9_000), (12_000, 9_000), (60_000, 60_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_that_claims_too_much_is_refused(pair: Pair, size: tuple[int, int]) -> None:
    pair.raw_path.write_bytes(bomb(*size))
    with pytest.raises(RawError, match="megapixels"):
        pair.frame()


def test_damaged_pictures_are_named(pair: Pair) -> None:
    whole = pair.raw_path.read_bytes()
    for data in (b"", b"no picture", whole[:200], whole[:-2000], bomb(64, 64)):
        pair.raw_path.write_bytes(data)
        with pytest.raises(RawError, match=r"one_raw\.png"):
            pair.frame()


@pytest.mark.parametrize(("error", "words"), [(MemoryError(), "MemoryError"), (TypeError("no len"), "no len")])
def test_whatever_a_decoder_raises_names_the_file(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def load(image: Image.Image) -> None:
        raise error

    monkeypatch.setattr(PngImageFile, "load", load)
    for read, path in ((pair.truth, pair.truth_path), (pair.frame, pair.raw_path)):
        with pytest.raises(CorruptRaw, match=rf"{re.escape(str(path))}: cannot be read \({words}\)"):
            read()


def picture(mode: str, size: tuple[int, int] = (48, 32)) -> Any:
    return Image.new(mode, size)


def test_a_mosaic_of_another_kind_is_refused(pair: Pair) -> None:
    for mode in ("L", "RGB", "1"):
        picture(mode).save(pair.raw_path)
        with pytest.raises(RawError, match="16-bit grey"):
            pair.frame()


def test_a_truth_that_does_not_fit_is_refused(pair: Pair) -> None:
    picture("RGB", (47, 32)).save(pair.truth_path)
    with pytest.raises(RawError, match="47 x 32 pixels, but the mosaic of the pair has 48 x 32"):
        pair.truth()
    picture("RGBA").save(pair.truth_path)
    with pytest.raises(RawError, match="RGBA"):
        pair.truth()


def test_a_grey_truth_becomes_rgb(pair: Pair) -> None:
    picture("L").save(pair.truth_path)
    assert pair.truth().shape == (32, 48, 3)


@pytest.mark.parametrize("name", ["", "..", "a/b", "../a", ".hidden", "a\\b", "/a"])
def test_names_stay_inside_the_folder(tmp_path: Path, frame: RawFrame, truth: NDArray[np.uint8], name: str) -> None:
    with pytest.raises(UsageError, match="plain file name"):
        write_pair(tmp_path / "in", name, frame, truth)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(32, 47, 3), (32, 48), (48, 32, 3)])
def test_a_truth_of_another_size_is_not_written(tmp_path: Path, frame: RawFrame, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"uint8 \[32, 48, 3\]"):
        write_pair(tmp_path, "one", frame, np.zeros(shape, np.uint8))


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, frame: RawFrame, truth: NDArray[np.uint8]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EguotError, match="cannot be made"):
        write_pair(tmp_path / "file" / "in", "one", frame, truth)


def test_the_real_pairs_of_the_larger_collection_read(shared_data: Path) -> None:
    pairs = list_pairs(shared_data / "pairs")
    assert len(pairs) == 8
    for pair in pairs:
        frame = pair.frame()
        assert pair.truth().shape == (frame.height, frame.width, 3)
        # Independently of any reader: the JPEG and the green plane show the same scene.
        green = frame.mosaic[0::2, 1::2].astype(float)
        luma = pair.truth()[0::2, 1::2, 1].astype(float)
        assert np.corrcoef(np.sqrt(green.reshape(-1)), luma.reshape(-1))[0, 1] > 0.8
    balances = {p.name: p.frame().white_balance for p in pairs}
    assert balances["canon_eos_d30"] is None
    assert balances["canon_g2_0304"] == pytest.approx((1687 / 1036, 1.0, 1655 / 1036))


def test_a_truth_may_be_called_jpeg(pair: Pair, truth: NDArray[np.uint8]) -> None:
    pair.truth_path.unlink()
    Image.fromarray(truth).save(pair.raw_path.with_name("one_srgb.jpeg"), quality=95)
    (found,) = list_pairs(pair.raw_path.parent)
    assert found.truth().shape == truth.shape


def test_a_mosaic_is_a_png_whatever_its_name(pair: Pair) -> None:
    """Other formats hold counts that 16 bits do not, or are read by decoders that nobody expects."""
    Image.fromarray(np.full((32, 48), 70_000, np.int32)).save(pair.raw_path, "TIFF")
    with pytest.raises(RawError, match=r"one_raw\.png: cannot be read"):
        pair.frame()


@pytest.mark.parametrize("suffix", ["_srgb.png", ".json"])
def test_a_pair_that_was_cut_off_is_no_pair(
    tmp_path: Path, frame: RawFrame, truth: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """The mosaic is written last: without it nothing is listed, and nobody trips over half a pair."""

    @contextmanager
    def killed(path: Path) -> Iterator[IO[bytes]]:
        if path.name.endswith(suffix):
            raise KeyboardInterrupt
        with written_beside(path) as file:
            yield file

    write_pair(tmp_path, "whole", frame, truth)
    monkeypatch.setattr(pairs_module, "written_beside", killed)
    with pytest.raises(KeyboardInterrupt):
        write_pair(tmp_path, "half", frame, truth)
    assert [p.name for p in list_pairs(tmp_path)] == ["whole"]
