"""The synthetic camera against closed forms, a pixel-by-pixel reference, and its DNGs read back."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from eguot_sdk.errors import EguotError, UsageError
from eguot_sdk.pairs import list_pairs
from eguot_sdk.raw import read_raw
from eguot_train.cli_data import data
from eguot_train.data.scenes import make_scene
from eguot_train.data.synth import SynthCamera, dng_bytes, photo_names, synth_folder

PHASES = ("RGGB", "GRBG", "GBRG", "BGGR")


def colours(seed: int = 0) -> np.ndarray:
    """Random colours, all corners of the cube, all greys: uint8 [64, 64, 3]."""
    rng = np.random.default_rng(seed)
    photo = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    corners = np.array([[(i >> c & 1) * 255 for c in range(3)] for i in range(8)], np.uint8)
    photo[0, :8] = corners
    photo[1:5] = np.arange(256, dtype=np.uint8).reshape(4, 64, 1)
    return photo


@pytest.mark.parametrize("seed", range(12))
def test_developing_undoes_exposing_for_every_colour(seed: int) -> None:
    """Look, matrix and gamut lose nothing: a few of the most saturated colours are clipped, and little."""
    camera = SynthCamera.from_seed(seed)
    photo = colours(seed)
    exposed = camera.expose(photo)
    assert exposed.min() >= 0
    assert exposed.max() <= camera.exposure + 1e-6
    error = np.abs(np.rint(camera.develop(exposed) * 255) - photo)
    assert (error > 1).mean() < 0.005
    assert error.max() <= 12


@pytest.mark.parametrize("seed", range(12))
def test_cameras_are_realistic(seed: int) -> None:
    camera = SynthCamera.from_seed(seed)
    np.testing.assert_allclose(camera.matrix.sum(axis=1), 1)
    assert np.linalg.cond(camera.matrix) < 6
    assert 10 <= camera.bits <= 14
    assert all(0 < b < 0.08 * 2**camera.bits for b in camera.black)
    assert max(camera.black) < camera.white < 2**camera.bits
    gains = np.array([camera.gains(f"photo{i}") for i in range(200)])
    assert (gains[:, 1] == 1).all()
    assert gains[:, [0, 2]].min() >= 1.05 - 1e-6
    np.testing.assert_allclose(np.exp(np.log(gains).mean(axis=0)), camera.daylight, rtol=0.05)
    assert 0.05 < np.log(gains[:, 0]).std() < 0.2
    grey = camera.develop(np.full((1, 3), 0.3))
    assert np.ptp(grey) < 1e-5  # a look keeps greys grey
    ramp = camera.develop(np.linspace(0, camera.exposure, 500)[:, None].repeat(3, axis=1))
    assert (np.diff(ramp[:, 1]) > 0).all()


def test_the_seed_alone_fixes_the_camera() -> None:
    one, other = SynthCamera.from_seed(4, "RGGB"), SynthCamera.from_seed(4, "BGGR")
    for field in ("bits", "black", "white", "daylight", "exposure", "shot", "read", "look"):
        assert getattr(one, field) == getattr(other, field)
    np.testing.assert_array_equal(one.matrix, other.matrix)
    assert one.gains("a") == other.gains("a") != one.gains("b")
    photo = colours()
    np.testing.assert_array_equal(one.shoot(photo, "a").mosaic, SynthCamera.from_seed(4).shoot(photo, "a").mosaic)
    assert (one.shoot(photo, "a").mosaic != one.shoot(photo, "b").mosaic).mean() > 0.5
    assert not np.array_equal(one.matrix, SynthCamera.from_seed(5).matrix)


@pytest.mark.parametrize("cfa", PHASES)
def test_mosaic_against_a_pixel_by_pixel_reference(cfa: str) -> None:
    """Mean over 300 shots of a 4x6 photo = black + signal / gain * range, colour by the letters of the phase."""
    camera = SynthCamera.from_seed(2, cfa)
    photo = np.random.default_rng(0).integers(30, 230, (4, 6, 3), dtype=np.uint8)
    exposed = camera.expose(photo)
    shots, expected, sigma = [], np.zeros((4, 6)), np.zeros((4, 6))
    red_row = cfa.index("R") // 2
    for i in range(300):
        frame = camera.shoot(photo, f"shot{i}")
        gains = camera.gains(f"shot{i}")
        shots.append(frame.mosaic.astype(float))
        for y in range(4):
            for x in range(6):
                letter = cfa[2 * (y % 2) + x % 2]
                plane = {"R": 0, "B": 3}.get(letter, 1 if y % 2 == red_row else 2)
                channel = "RGB".index(letter)
                signal = float(exposed[y, x, channel]) / gains[channel]
                scale = camera.white - camera.black[plane]
                expected[y, x] += (camera.black[plane] + signal * scale) / 300
                sigma[y, x] += ((camera.shot * signal + camera.read**2) * scale**2 + 1 / 12) / 300
    mean = np.mean(shots, axis=0)
    assert np.abs((mean - expected) / np.sqrt(sigma / 300)).max() < 4.5
    assert frame.cfa == cfa
    assert frame.black == camera.black


def test_noise_is_poisson_plus_gaussian() -> None:
    camera = SynthCamera.from_seed(1)
    for level in (0, 60, 250):
        photo = np.full((256, 256, 3), level, np.uint8)
        gains = camera.gains("grey")
        mosaic = camera.shoot(photo, "grey").mosaic.astype(float)
        signal = float(camera.expose(photo)[0, 0, 2]) / gains[2]
        scale = camera.white - camera.black[3]
        expected = (camera.shot * signal + camera.read**2) * scale**2 + 1 / 12
        assert mosaic[1::2, 1::2].var() == pytest.approx(expected, rel=0.05)


def test_higher_iso_is_more_noise_of_the_same_picture() -> None:
    """Sixteen times the ISO: sixteen times the variance where shot noise rules, the same mean and camera."""
    camera = SynthCamera.from_seed(1)
    photo = np.full((256, 256, 3), 200, np.uint8)
    low, high = (c.shoot(photo, "grey").mosaic[1::2, 1::2].astype(float) for c in (camera, camera.at_iso(16)))
    assert high.mean() == pytest.approx(low.mean(), abs=4 * high.std() / 128)
    assert high.var() == pytest.approx(16 * low.var(), rel=0.06)
    black = np.zeros_like(photo)
    low, high = (c.shoot(black, "night").mosaic[1::2, 1::2].astype(float) for c in (camera, camera.at_iso(16)))
    assert high.var() == pytest.approx(16**1.4 * low.var(), rel=0.1)


@pytest.mark.parametrize(("seed", "cfa"), [(0, "RGGB"), (1, "GRBG"), (5, "GBRG"), (3, "BGGR")])
def test_dng_round_trip(seed: int, cfa: str) -> None:
    frame = SynthCamera.from_seed(seed, cfa).shoot(make_scene(seed, 62, 94), "scene")
    data = dng_bytes(frame)
    back = read_raw(io.BytesIO(data))
    np.testing.assert_array_equal(back.mosaic, frame.mosaic)
    assert (back.cfa, back.black, back.white, back.orientation) == (frame.cfa, frame.black, frame.white, 1)
    assert back.white_balance == pytest.approx(frame.white_balance, rel=1e-5)
    np.testing.assert_allclose(back.matrix, frame.matrix, atol=1e-3)
    assert dng_bytes(frame) == data


def test_dng_as_libraw_sees_it() -> None:
    rawpy = pytest.importorskip("rawpy")
    frame = SynthCamera.from_seed(6, "GRBG").shoot(make_scene(1, 64, 64), "scene")
    with rawpy.imread(io.BytesIO(dng_bytes(frame))) as raw:
        r, gr, gb, b = frame.black
        assert [int(v) for v in raw.black_level_per_channel] == [r, gr, b, gb]  # LibRaw's order: R, G, B, G2
        assert raw.white_level == frame.white[0]
        np.testing.assert_allclose(raw.color_matrix[:, :3], frame.matrix, atol=1e-3)
        np.testing.assert_allclose(raw.camera_whitebalance[:3], frame.white_balance, rtol=1e-5)


def save(path: Path, photo: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(path, **options)


def test_no_photo_is_lost_for_its_name(tmp_path: Path) -> None:
    for name in ("a/x.jpg", "b/x.jpg", "a_x.jpg.jpg", "a_x.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(photo_names(tmp_path).values()) == sorted(p for p in tmp_path.rglob("*") if p.is_file())
    assert photo_names(tmp_path)["c"] == tmp_path / "c.png"


def test_synth_folder(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    odd = make_scene(0, 41, 33)
    save(photos / "odd.png", odd)
    save(photos / "same.png", make_scene(1, 40, 40))
    save(photos / "same.tif", make_scene(2, 40, 40))
    save(photos / "sub" / "deep.JPG", make_scene(3, 40, 40))
    turned = Image.Exif()
    turned[274] = 6
    save(photos / "turned.png", make_scene(4, 40, 60), exif=turned)
    (photos / "notes.txt").write_text("not a photo")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a jpeg")
    whole = (photos / "odd.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    save(photos / "tiny.png", make_scene(4, 2, 3))
    result = synth_folder(tmp_path / "out", srgb=photos, scenes=1, seed=3, cfa="GBRG")

    names = ["deep", "odd", "same_png", "same_tif", "scene_00000", "turned"]
    assert sorted(result.written) == names
    assert sorted(line.split()[0].rstrip(":") for line in result.failed) == ["broken.jpg", "cut.png", "tiny.png"]
    assert sorted(p.name for p in (tmp_path / "out" / "raw").iterdir()) == [f"{n}.dng" for n in names]
    pairs = {pair.name: pair for pair in list_pairs(tmp_path / "out" / "pairs")}
    assert sorted(pairs) == names
    assert len(list((tmp_path / "out" / "pairs").iterdir())) == 3 * len(names)
    np.testing.assert_array_equal(pairs["odd"].truth(), odd[:40, :32])
    np.testing.assert_array_equal(pairs["turned"].truth(), np.rot90(make_scene(4, 40, 60), -1))
    for name, pair in pairs.items():
        frame, dng = pair.frame(), read_raw(tmp_path / "out" / "raw" / f"{name}.dng")
        np.testing.assert_array_equal(frame.mosaic, dng.mosaic)
        assert frame.cfa == dng.cfa == "GBRG"
        assert frame.black == dng.black
        np.testing.assert_allclose(frame.matrix, dng.matrix, atol=1e-3)


def test_a_scene_does_not_replace_a_photo_of_its_name(tmp_path: Path) -> None:
    photo = make_scene(7, 40, 40)
    save(tmp_path / "photos" / "scene_00000.png", photo)
    result = synth_folder(tmp_path / "out", srgb=tmp_path / "photos", scenes=1)
    assert sorted(result.written) == ["scene_00000", "scene_00000_"]
    truths = {pair.name: pair.truth() for pair in list_pairs(tmp_path / "out" / "pairs")}
    np.testing.assert_array_equal(truths["scene_00000"], photo)
    np.testing.assert_array_equal(truths["scene_00000_"], make_scene(0, 480, 640))


def test_a_picture_does_not_depend_on_the_rest_of_the_folder(tmp_path: Path) -> None:
    for folder, names in (("a", ["x"]), ("b", ["w", "x", "y"])):
        for name in names:
            save(tmp_path / folder / f"{name}.png", make_scene(len(name), 40, 40))
        synth_folder(tmp_path / f"out_{folder}", srgb=tmp_path / folder, seed=1)
    for file in ("raw/x.dng", "pairs/x_raw.png", "pairs/x.json", "pairs/x_srgb.png"):
        assert (tmp_path / "out_a" / file).read_bytes() == (tmp_path / "out_b" / file).read_bytes()


def test_an_out_folder_with_content_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "keep.txt").write_text("mine")
    with pytest.raises(UsageError, match="not an empty folder"):
        synth_folder(tmp_path / "out", scenes=1)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["keep.txt"]
    with pytest.raises(UsageError, match="nothing to shoot"):
        synth_folder(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no photos"):
        synth_folder(tmp_path / "new", srgb=tmp_path / "empty")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError):
        SynthCamera.from_seed(0, "RGBG")


def test_command(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "one.png", make_scene(0, 40, 40))
    runner = CliRunner()
    done = runner.invoke(data, ["synth", "--srgb", str(tmp_path / "photos"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert (tmp_path / "out" / "raw" / "one.dng").is_file()
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no")
    failed = runner.invoke(data, ["synth", "--srgb", str(tmp_path / "photos"), "--out", str(tmp_path / "out2")])
    assert isinstance(failed.exception, EguotError)
    assert failed.exception.exit_code == 1
    assert "bad.jpg" in failed.stderr
    assert (tmp_path / "out2" / "raw" / "one.dng").is_file()
