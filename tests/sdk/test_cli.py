"""The command: process, inspect, doctor, --help, and commands of packages that are not there."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

import eguot_sdk
from eguot_sdk import cli, decoding, develop
from eguot_sdk.chatter import quiet
from eguot_sdk.errors import EguotError, GateError, UsageError
from eguot_sdk.inspection import raw_facts
from eguot_sdk.isp import ISP
from eguot_sdk.ispfile import embed_spec, read_spec
from eguot_sdk.output import write_image, written_beside
from eguot_sdk.paths import DEFAULT_ISP
from eguot_sdk.raw import RawFrame

SDK = Path(cli.__file__).resolve().parent.parent
ROOT = Path(__file__).resolve().parents[2]
MakeDng = Callable[..., bytes]


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(cli.main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def fake_isp(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """`ISP.load` gives the shipped fake; the list holds what it was asked for."""
    asked: list[dict[str, Any]] = []

    def load(path: Path | None = None, **options: Any) -> ISP:
        asked.append({"path": path, **options})
        assert options.pop("delegate", None) is None
        return ISP.fake(**options)

    monkeypatch.setattr(ISP, "load", load)
    return asked


@pytest.fixture
def dng(make_dng: MakeDng, counts: NDArray[np.uint16]) -> bytes:
    return make_dng(counts)


@pytest.fixture
def photos(tmp_path: Path, dng: bytes) -> Path:
    """A folder of three good raws, one broken, and files that are no raws."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.dng", "b.DNG", "c.dng"):
        (folder / name).write_bytes(dng)
    (folder / "broken.dng").write_bytes(dng[:900])
    (folder / "notes.txt").write_text("no raw")
    (folder / "inner").mkdir()
    return folder


# process


def test_what_was_assumed_is_said_and_can_be_given(
    make_dng: MakeDng, counts: Any, tmp_path: Path, fake_isp: Any
) -> None:
    raw = tmp_path / "a.dng"
    raw.write_bytes(make_dng(counts, t50728=None, t50721=None, t50778=None))
    result = run("process", raw, "-o", tmp_path / "one.png")
    assert "Note: " in result.stderr
    assert "estimated from the picture (grey world); --wb R,G,B sets it" in result.stderr
    assert "no camera matrix" in result.stderr
    plain = np.asarray(Image.open(tmp_path / "one.png")).astype(int)
    red = run("process", raw, "-o", tmp_path / "two.png", "--wb", "8,1,1", "--json")
    assert "white balance" not in red.stderr
    assert json.loads(red.stdout) == {"written": [str(tmp_path / "two.png")], "skipped": [], "failed": [], "errors": {}}
    warm = np.asarray(Image.open(tmp_path / "two.png")).astype(int)
    assert (warm - plain)[..., 0].mean() > 10


def test_levels_and_phase_can_be_given(make_dng: MakeDng, counts: Any, tmp_path: Path, fake_isp: Any) -> None:
    raw, wrong = tmp_path / "a.dng", tmp_path / "b.dng"
    raw.write_bytes(make_dng(counts, cfa="BGGR"))
    wrong.write_bytes(make_dng(counts, cfa="RGGB", t50714=(3, (5000,) * 4)))
    assert run("process", wrong, "-o", tmp_path / "x.png").exit_code == 1
    bright = run("process", wrong, "-o", tmp_path / "x.png", "--black-level", "4095")
    assert bright.exit_code == 1
    assert "white level must lie above black" in bright.stderr
    assert "damaged" not in bright.stderr
    given = ("--black-level", "64", "--white-level", "4095,4095,4095,4095", "--cfa", "BGGR")
    assert run("process", wrong, "-o", tmp_path / "x.png", *given).exit_code == 0
    assert run("process", raw, "-o", tmp_path / "y.png").exit_code == 0
    np.testing.assert_array_equal(Image.open(tmp_path / "x.png"), Image.open(tmp_path / "y.png"))


@pytest.mark.parametrize(
    ("wrong", "given"),
    [({"t50714": (3, (5000,) * 4)}, ("--black-level", "64")), ({"t50717": (4, 50)}, ("--white-level", "4095"))],
)
def test_one_level_can_be_given_where_the_file_has_it_wrong(
    wrong: dict[str, Any], given: tuple[str, str], make_dng: MakeDng, counts: Any, tmp_path: Path, fake_isp: Any
) -> None:
    (tmp_path / "a.dng").write_bytes(make_dng(counts))
    (tmp_path / "b.dng").write_bytes(make_dng(counts, **wrong))
    assert run("process", tmp_path / "b.dng", "-o", tmp_path / "x.png").exit_code == 1
    assert run("process", tmp_path / "b.dng", "-o", tmp_path / "x.png", *given).exit_code == 0
    assert run("process", tmp_path / "a.dng", "-o", tmp_path / "y.png").exit_code == 0
    np.testing.assert_array_equal(Image.open(tmp_path / "x.png"), Image.open(tmp_path / "y.png"))


@pytest.mark.parametrize(
    "arguments",
    [("--wb", "1,2"), ("--wb", "0,1,1"), ("--wb", "warm"), ("--black-level", "1,2"), ("--white-level", "nan")],
)
def test_values_that_are_none_are_exit_2(arguments: tuple[str, str], photos: Path) -> None:
    assert run("process", photos, *arguments).exit_code == 2


def test_levels_given_that_contradict_each_other_are_not_blamed_on_the_file(photos: Path, tmp_path: Path) -> None:
    result = run(
        "process",
        photos / "a.dng",
        "-o",
        tmp_path / "a.png",
        "--black-level",
        "4000",
        "--white-level",
        "3000",
        "--json",
    )
    assert result.exit_code == 1
    why = f"{photos / 'a.dng'}: the white level must lie above black by at least one count: black 4000, white 3000"
    assert result.stderr == f"Error: {why}\n"
    said = json.loads(result.stdout)
    assert said["failed"] == [str(photos / "a.dng")]
    assert said["errors"] == {str(photos / "a.dng"): why}


def test_the_default_isp_has_a_name(photos: Path, tmp_path: Path, fake_isp: Any) -> None:
    result = run("process", photos / "a.dng", "-m", "default", "-o", tmp_path / "a.png")
    assert result.exit_code == 0, result.stderr


def test_lens_shading_can_be_demanded(photos: Path, tmp_path: Path, fake_isp: Any) -> None:
    result = run("process", photos / "a.dng", "-o", tmp_path / "a.png", "--lens-shading", "on")
    assert result.exit_code == 1
    assert "no lens shading to apply (absent): use auto or off" in result.stderr


def test_a_decoder_that_dies_or_hangs_costs_its_file_only(
    photos: Path, tmp_path: Path, fake_isp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "rawpy.py"  # found before the real one by the process that decodes
    package.parent.mkdir()
    package.write_text(
        "import importlib, os, sys, time\n"
        f"sys.path = [p for p in sys.path if p != {str(package.parent)!r}]\n"
        "del sys.modules['rawpy']\n"
        "real = importlib.import_module('rawpy')\n"
        "class RawPy(real.RawPy):\n"
        "    def open_file(self, path):\n"
        "        if path.endswith('a.dng'): os.abort()\n"
        "        if path.endswith('b.DNG'): time.sleep(60)\n"
        "        super().open_file(path)\n"
        "sys.modules['rawpy'] = real\n"
        "real.RawPy = RawPy\n"
    )
    monkeypatch.setattr(decoding, "PACKAGES", f"{package.parent}{os.pathsep}{decoding.PACKAGES}")
    monkeypatch.setattr(decoding.Decoder.__init__, "__kwdefaults__", {"max_seconds": 8.0, "max_memory_bytes": 4 << 30})
    result = run("process", photos, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["c.jpg"]
    assert "a.dng: the decoder died of it (status -6)" in result.stderr
    assert "b.DNG: took more than 8 s to decode and was given up" in result.stderr
    assert "developed 1 picture: " in result.stderr
    assert "3 failed" in result.stderr


def test_what_a_killed_run_left_is_cleared(photos: Path, tmp_path: Path, fake_isp: Any) -> None:
    out = tmp_path / "out"
    out.mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with written_beside(out / "b.jpg"):
        (part,) = out.iterdir()
    (out / "b.jpg").unlink()
    place = part.name.removeprefix(".b.jpg.").partition("-")[0]
    for name in (
        f".a.jpg.{place}-{dead.pid}-0123456789ab.part",
        f".a.jpg.{place}-{os.getpid()}-0123456789ab.part",
        f".other.jpg.{place}-{dead.pid}-0123456789ab.part",
        ".a.jpg.part",
    ):
        (out / name).touch()
    assert run("process", photos / "a.dng", "-o", out).exit_code == 0
    assert {p.name for p in out.iterdir()} == {
        "a.jpg",
        f".a.jpg.{place}-{os.getpid()}-0123456789ab.part",
        f".other.jpg.{place}-{dead.pid}-0123456789ab.part",
        ".a.jpg.part",
    }


def test_the_quality_of_jpeg_is_chosen(photos: Path, tmp_path: Path, fake_isp: Any) -> None:
    sizes = []
    for quality in ("95", "30"):
        out = tmp_path / f"{quality}.jpg"
        assert run("process", photos / "a.dng", "-o", out, "--quality", quality).exit_code == 0
        sizes.append(out.stat().st_size)
        with Image.open(out) as image:
            table = image.quantization[0]
        encoded = io.BytesIO()
        Image.new("RGB", (8, 8)).save(encoded, "JPEG", quality=int(quality))
        with Image.open(encoded) as truth:
            assert table == truth.quantization[0]
    assert sizes[1] < sizes[0]


def test_the_package_runs_as_a_module_and_knows_its_version() -> None:
    done = subprocess.run([sys.executable, "-m", "eguot_sdk", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"eguot-sdk {eguot_sdk.__version__}\n"


def test_process_develops_files_and_folders(photos: Path, tmp_path: Path, fake_isp: list[dict[str, Any]]) -> None:
    out = tmp_path / "out"
    result = run("process", photos, photos / "a.dng", "-o", out, "--threads", 2, "--tile", 32)
    assert result.exit_code == 1
    assert sorted(p.name for p in out.iterdir()) == ["a.jpg", "b.jpg", "c.jpg"]
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"Error: {photos / 'broken.dng'}: cut short")
    assert lines[1] == f"developed 3 pictures into {out}, 1 failed"
    assert result.stdout == ""
    assert fake_isp == [{"path": None, "threads": 2, "tile": 32, "delegate": None}]
    with Image.open(out / "a.jpg") as image:
        assert image.size == (48, 32)
        assert image.getexif()[0x0110] == "Model 1"


def test_process_gives_what_the_sdk_gives(photos: Path, tmp_path: Path, fake_isp: list[dict[str, Any]]) -> None:
    result = run("process", photos / "a.dng", "-o", tmp_path / "x.png", "--exposure", "-1")
    assert (result.exit_code, result.stderr) == (0, f"developed 1 picture: {tmp_path / 'x.png'}\n")
    with Image.open(tmp_path / "x.png") as image:
        assert np.array_equal(np.asarray(image), ISP.fake().process(photos / "a.dng", exposure=-1.0))


def test_process_writes_to_the_current_folder_without_o(
    photos: Path, tmp_path: Path, fake_isp: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert run("process", photos / "a.dng", "--format", "tiff").exit_code == 0
    assert [p.name for p in here.iterdir()] == ["a.tiff"]


def test_process_turns_upright(make_dng: MakeDng, counts: NDArray[np.uint16], tmp_path: Path, fake_isp: Any) -> None:
    (tmp_path / "a.dng").write_bytes(make_dng(counts, t274=(3, 6)))
    run("process", tmp_path / "a.dng", "-o", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (32, 48)
        assert image.getexif()[0x0112] == 1


def test_an_existing_picture_needs_a_flag(photos: Path, tmp_path: Path, fake_isp: list[dict[str, Any]]) -> None:
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"old")
    result = run("process", photos / "a.dng", "-o", picture)
    assert result.exit_code == 1
    assert "--overwrite or --skip-existing" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert picture.read_bytes() == b"old"
    skipped = run("process", photos / "a.dng", "-o", picture, "--skip-existing")
    assert (skipped.exit_code, picture.read_bytes()) == (0, b"old")
    assert "skipped 1" in skipped.stderr
    assert run("process", photos / "a.dng", "-o", picture, "--overwrite").exit_code == 0
    assert picture.read_bytes()[:2] == b"\xff\xd8"


def test_a_file_that_fails_leaves_no_picture_and_one_line(photos: Path, tmp_path: Path, fake_isp: Any) -> None:
    result = run("process", photos / "broken.dng", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    absent = run("process", photos / "absent.dng", "-o", tmp_path / "out")
    assert (absent.exit_code, len(absent.stderr.splitlines())) == (1, 1)
    assert "no such file" in absent.stderr


@pytest.fixture
def locked(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one raw that may be listed, and in which nothing may be looked at: as for root nothing is."""
    folder = photos.parent / "locked"
    folder.mkdir()
    (folder / "a.dng").write_bytes((photos / "a.dng").read_bytes())
    real = os.stat

    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if not isinstance(path, int) and Path(os.fspath(path)).parent == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)
    return folder


LONG = "x" * 300


def test_a_path_that_cannot_be_looked_at_costs_itself_only(
    photos: Path, locked: Path, tmp_path: Path, fake_isp: Any
) -> None:
    out = tmp_path / "out"
    result = run("process", tmp_path / f"{LONG}.dng", photos / "a.dng", "-o", out, "--json")
    assert result.exit_code == 1
    assert f"{LONG}.dng: cannot be looked at (File name too long)" in result.stderr
    assert json.loads(result.stdout)["written"] == [str(out / "a.jpg")]
    # The process that decodes sees the file, so here it is enough that planning goes on.
    assert [job.raw for job in develop.plan([locked / "b.dng"], out, format_=None, bits=8)] == [locked / "b.dng"]
    assert "(Permission denied)" in run("process", locked, "-o", out).stderr


@pytest.mark.parametrize("flag", ["--overwrite", "--skip-existing", "--json"])
@pytest.mark.parametrize("output", [LONG, f"{LONG}.jpg"])
def test_a_name_too_long_for_a_picture_is_its_failure(
    photos: Path, tmp_path: Path, fake_isp: Any, output: str, flag: str
) -> None:
    result = run("process", photos / "a.dng", "-o", tmp_path / output, flag)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "(File name too long)" in result.stderr


@pytest.mark.parametrize("name", ["a.dng", "a.tflite", "a.onnx", "a.mlpackage"])
def test_inspect_says_what_it_may_not_look_at(locked: Path, name: str) -> None:
    for path, words in ((locked / name, "Permission denied"), (locked.parent / (LONG + name), "File name too long")):
        result = run("inspect", path)
        assert result.exit_code == 1
        assert result.stderr == f"Error: {path}: cannot be looked at ({words})\n"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names in Unicode only")
def test_a_raw_whose_name_is_no_utf8_is_read(photos: Path, tmp_path: Path) -> None:
    raw = tmp_path / os.fsdecode(b"IMG\xff.dng")
    raw.write_bytes((photos / "a.dng").read_bytes())
    done = cli_process("process", raw, "-o", tmp_path / "out", "--format", "png", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["written"] == [str(tmp_path / "out" / os.fsdecode(b"IMG\xff.png"))]
    plain = cli_process("process", photos / "a.dng", "-o", tmp_path / "a.png")
    assert plain.returncode == 0
    assert (tmp_path / "out" / os.fsdecode(b"IMG\xff.png")).read_bytes() == (tmp_path / "a.png").read_bytes()
    shown = cli_process("inspect", raw)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(os.fsencode(raw) + b": raw\n")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names in Unicode only")
def test_what_an_encoding_lacks_is_shown_as_an_escape(photos: Path, tmp_path: Path) -> None:
    raw = tmp_path / ("\u65e5\xe9" + os.fsdecode(b"\xff.dng"))
    raw.write_bytes((photos / "a.dng").read_bytes())
    shown = cli_process("inspect", raw, PYTHONIOENCODING="latin-1")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(os.fsencode(tmp_path) + b"/\\u65e5\xe9\xff.dng: raw\n")


@pytest.mark.parametrize("which", ["a.dng", "b.DNG"])
def test_what_one_raw_cannot_be_run_with_is_the_failure_of_its_file(
    photos: Path, tmp_path: Path, fake_isp: Any, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    real = ISP.process

    def process(isp: ISP, frame: RawFrame, **options: Any) -> Any:
        if frame.source == str(photos / which):
            raise UsageError("this ISP looks at the whole frame")
        return real(isp, frame, **options)

    monkeypatch.setattr(ISP, "process", process)
    result = run("process", photos, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert len(said["written"]) == 2
    assert said["errors"][str(photos / which)] == f"{photos / which}: this ISP looks at the whole frame"


def test_an_unexpected_error_does_not_stop_the_others(
    photos: Path, tmp_path: Path, fake_isp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = write_image

    def write(path: Path, *arguments: Any, **options: Any) -> Path:
        if path.name == "b.jpg":
            raise RuntimeError("two\nlines")
        if path.name == "c.jpg":
            raise MemoryError
        return real(path, *arguments, **options)

    monkeypatch.setattr("eguot_sdk.develop.write_image", write)
    result = run("process", photos, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.jpg"]
    assert "b.DNG: unexpected RuntimeError (two lines)" in result.stderr
    assert "c.dng: not enough memory" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bits", "16", "--format", "jpg"], "JPEG has 8 bits"),
        (["--bits", "16", "-o", "x.jpg"], "JPEG has 8 bits"),
        (["--bits", "16"], "float"),  # the fake is an int8 ISP
        (["--bits", "12"], "12"),
        (["--tile", "0"], "packed pixels"),
        (["--tile", "big"], "packed pixels"),
        (["--threads", "0"], "threads"),
        (["--exposure", "nan"], "stops"),
        (["--exposure", "99"], "exposure"),
        (["--overwrite", "--skip-existing"], "exclude"),
        (["-o", "x.png", "--format", "jpg"], "contradict"),
        (["-o", "x.webp"], ".png"),
        (["--format", "bmp"], "bmp"),
    ],
)
def test_a_wrong_call_is_exit_2(
    photos: Path, tmp_path: Path, fake_isp: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("process", photos / "a.dng", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]


def test_one_picture_for_many_raws_is_exit_2(photos: Path, tmp_path: Path) -> None:
    assert run("process", photos, "-o", tmp_path / "x.jpg").exit_code == 2
    assert run("process").exit_code == 2


def test_a_folder_without_raws_is_said(tmp_path: Path) -> None:
    result = run("process", tmp_path)
    assert result.exit_code == 1
    assert "no raw files" in result.stderr
    (tmp_path / "100CANON").mkdir()
    (tmp_path / "100CANON" / "IMG_0001.CRW").touch()
    result = run("process", tmp_path)
    assert f"name {tmp_path / '100CANON'}, which has some" in result.stderr


def test_a_bad_isp_file_is_one_line(photos: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.tflite"
    model.write_bytes(b"no model")
    result = run("process", photos, "-m", model, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# plan: names of pictures


def test_what_a_system_keeps_beside_raws_is_no_raw(photos: Path, tmp_path: Path, fake_isp: Any) -> None:
    (photos / "broken.dng").rename(photos / "._a.dng")  # as macOS names what it leaves on other disks
    result = run("process", photos, "-o", tmp_path / "out")
    assert (result.exit_code, result.stderr) == (0, f"developed 3 pictures into {tmp_path / 'out'}\n")
    assert run("process", photos / "._a.dng", "-o", tmp_path / "out").exit_code == 1  # one that is named is read


def test_links_to_one_raw_are_developed_once_and_told(photos: Path, tmp_path: Path, fake_isp: Any) -> None:
    links = [photos.parent / f"{name}.dng" for name in ("x", "y")]
    for link in links:
        link.symlink_to(photos / "a.dng")
    out = tmp_path / "out"
    result = run("process", photos / "a.dng", *links, photos / "a.dng", "-o", out, "--json")
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    assert said == {
        "written": [str(out / "a.jpg")],
        "skipped": [str(link) for link in links],
        "failed": [],
        "errors": {},
    }


def test_a_folder_may_have_the_name_of_a_picture(photos: Path, tmp_path: Path, fake_isp: Any) -> None:
    assert run("process", photos / "a.dng", "-o", f"{tmp_path / 'dir.jpg'}/").exit_code == 0
    assert [p.name for p in (tmp_path / "dir.jpg").iterdir()] == ["a.jpg"]
    assert run("process", photos / "a.dng", "-o", tmp_path / "one.jpg").exit_code == 0
    assert (tmp_path / "one.jpg").is_file()


def test_a_dash_is_no_name_for_pictures(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    result = run("process", photos / "a.dng", "-o", "-")
    assert result.exit_code == 2
    assert "not written to stdout" in result.stderr
    assert [p.name for p in photos.parent.iterdir()] == ["photos"]


def plan(raws: list[str], output: str | None = "out", format_: str | None = None) -> list[str]:
    jobs = develop.plan([Path(r) for r in raws], Path(output) if output else None, format_=format_, bits=8)
    return [job.picture.as_posix() for job in jobs]


def test_raws_of_one_name_get_pictures_of_their_own() -> None:
    assert plan(["IMG.dng", "IMG.crw", "OTHER.dng"]) == ["out/IMG.dng.jpg", "out/IMG.crw.jpg", "out/OTHER.jpg"]
    assert plan(["a/IMG.dng", "b/IMG.dng", "c/img.DNG"]) == [
        "out/IMG.dng.jpg",
        "out/IMG.dng-2.jpg",
        "out/img.DNG-3.jpg",
    ]
    assert plan(["a.dng", "a.dng.crw", "a.dng.nef", "a.crw"])[:2] == ["out/a.dng.jpg", "out/a.dng.crw.jpg"]
    assert plan(["x.dng", "./x.dng"], "y.png") == ["y.png"]


@pytest.mark.parametrize("name", ["../../x.dng", "/abs/x.dng", "a/../x.dng", ".dng", "x"])
def test_pictures_stay_in_the_folder(name: str) -> None:
    (picture,) = plan([name])
    assert Path(picture).parent == Path("out")


def test_many_names_never_collide() -> None:
    rng = np.random.default_rng(0)
    raws = [f"d{i}/" + "".join(rng.choice(list("aA.-2"), 3)) + "." + rng.choice(["dng", "crw"]) for i in range(300)]
    pictures = plan(raws)
    assert len({p.lower() for p in pictures}) == 300


def test_a_picture_never_replaces_a_raw(tmp_path: Path) -> None:
    (tmp_path / "a.tiff").write_bytes(b"raw")
    with pytest.raises(UsageError, match="replace a raw"):
        develop.plan([tmp_path / "a.tiff"], tmp_path, format_="tiff", bits=8)


def test_chatter_of_libraw_is_dropped_and_the_rest_passes(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        os.write(2, b"x.crw: data corrupted at 100990\nx.crw: Unexpected end of file\nsomething else\n")
        os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n")
        os.write(2, b"Corrupt JPEG data: premature end of data segment\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "something else\nafter\n"


# inspect


def test_inspect_shows_what_the_isp_will_use(shipped: Path) -> None:
    path = shipped / "canon_s40_0117.crw"
    facts = json.loads(run("inspect", path, "--json").stdout)
    assert (facts["kind"], facts["file"]) == ("raw", str(path))
    assert (facts["width"], facts["height"]) == (2312, 1720)
    assert facts["cfa"] == {"value": "RGGB", "from": "LibRaw"}
    assert facts["black"]["value"] == [32] * 4
    assert facts["gains_used"]["value"] == pytest.approx([1964 / 1015, 1.0, 1544 / 1015], abs=1e-5)
    assert facts["matrix_used"]["from"] == "LibRaw's table of cameras"
    assert facts["warnings"] == []
    text = run("inspect", path).stdout
    assert "RGGB" in text
    assert "Canon PowerShot S40" in text


def test_the_word_default_names_the_default_isp_unless_a_file_is_called_so(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = run("inspect", "default", "--json")
    assert asked.stdout == run("inspect", DEFAULT_ISP, "--json").stdout
    shutil.copy(shipped / "tiny.w8a8.tflite", "default")
    assert json.loads(run("inspect", "default", "--json").stdout)["file"] == "default"


def test_inspect_shows_whole_counts(make_dng: MakeDng, counts: Any, tmp_path: Path) -> None:
    (tmp_path / "a.dng").write_bytes(make_dng(counts, t50717=(3, (15520,))))
    assert "15520 15520 15520 15520  (tag WhiteLevel" in run("inspect", tmp_path / "a.dng").stdout


def test_inspect_warns_of_what_is_absent(shipped: Path) -> None:
    facts = json.loads(run("inspect", shipped / "kodak_dc50_0012L.kdc", "--json").stdout)
    assert facts["white_balance"]["value"] is None
    assert "grey world" in facts["gains_used"]["from"]
    # This camera balanced before it stored: grey cards read R = G = B, and gains of a sensor would turn them purple.
    assert max(facts["gains_used"]["value"]) < 1.2
    assert len(facts["warnings"]) == 2
    assert run("inspect", shipped / "kodak_dc50_0012L.kdc").stdout.count("Warning: ") == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_stdout_is_said_in_one_line(shipped: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "eguot_sdk.cli", "inspect", str(shipped / "tiny.w8a8.tflite")]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "Error: no space left on the device that output goes to\n")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"t50717": (4, 1000)}, "overexposed or white too low"),
        ({"t50714": (3, (3000,) * 4)}, "black may be too high"),
        ({"t50717": (4, 65535), "t50714": (3, (0,) * 4)}, None),
        ({"t50728": (5, (1, 20, 1, 1, 1, 1))}, "unusual white balance"),
        ({"t50728": (5, (0, 1, 1, 1, 0, 1))}, "no as-shot white balance"),
    ],
)
def test_inspect_warns_of_the_absurd(
    make_dng: MakeDng, counts: NDArray[np.uint16], tmp_path: Path, changes: dict[str, Any], words: str | None
) -> None:
    (tmp_path / "a.dng").write_bytes(make_dng(counts, **changes))
    warnings = json.loads(run("inspect", tmp_path / "a.dng", "--json").stdout)["warnings"]
    assert (words is None and not warnings) or any(str(words) in w for w in warnings)


def test_inspect_warns_of_darkness_and_of_a_low_black(make_dng: MakeDng, tmp_path: Path) -> None:
    for value, words in ((70, "very dark"), (2000, "black may be too low")):
        (tmp_path / "a.dng").write_bytes(make_dng(np.full((32, 48), value, np.uint16)))
        assert words in run("inspect", tmp_path / "a.dng").stdout


def test_inspect_says_the_size_of_the_picture(make_dng: MakeDng, counts: NDArray[np.uint16], tmp_path: Path) -> None:
    (tmp_path / "a.dng").write_bytes(make_dng(counts, t274=(3, 8)))
    facts = json.loads(run("inspect", tmp_path / "a.dng", "--json").stdout)
    assert (facts["picture_width"], facts["picture_height"]) == (32, 48)
    frame = RawFrame.from_array(np.tile(counts, (3, 3)), cfa="RGGB", black=64, white=4095, orientation=6)
    for aspect in (0.5, 0.9, 0.996, 1.0, 1.004, 1.006, 4 / 3):
        facts = raw_facts(dataclasses.replace(frame, pixel_aspect=aspect))
        with ISP.fake() as isp:
            height, width, _ = isp.process(dataclasses.replace(frame, pixel_aspect=aspect)).shape
        assert (facts["picture_height"], facts["picture_width"]) == (height, width)


def test_inspect_shows_the_gains_that_process_uses(make_dng: MakeDng, flat_gain_map: Any, tmp_path: Path) -> None:
    """Estimated ones are those of the evened picture: a map of 3 on red does what red of three times as much does."""
    even = np.full((32, 48), 1064, np.uint16)
    red = even.copy()
    red[::2, ::2] = 3064
    gains = []
    for mosaic, tags in ((even, {"t51009": flat_gain_map(3.0, 2)}), (red, {})):
        path = tmp_path / "a.dng"
        path.write_bytes(make_dng(mosaic, t50728=None, **tags))
        gains.append(json.loads(run("inspect", path, "--json").stdout)["gains_used"]["value"])
    assert gains[0] == pytest.approx(gains[1], rel=1e-3)
    assert gains[0][1] > 2


def test_inspect_lets_no_file_write_to_the_terminal(shipped: Path, tmp_path: Path) -> None:
    model = shipped / "tiny.w8a8.tflite"
    spec = read_spec(model).replace(provenance={"recipe": "a\n  precision  fp32\x1b[2J\x1b]0;x\x07"})
    path = tmp_path / "a.tflite"
    path.write_bytes(embed_spec(model.read_bytes(), spec))
    text = run("inspect", path).stdout
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "a\\n  precision  fp32\\x1b[2J" in text


def test_inspect_of_what_is_neither_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(64))
    (tmp_path / "b.tflite").write_bytes(bytes(64))
    for name in ("a.bin", "b.tflite", "absent", "."):
        result = run("inspect", tmp_path / name)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith("Error: ")


def test_inspect_shows_an_isp_file(shipped: Path) -> None:
    path = shipped / "tiny.w8a8.tflite"
    facts = json.loads(run("inspect", path, "--json").stdout)
    assert (facts["kind"], facts["file"], facts["bytes"]) == ("isp", str(path), path.stat().st_size)
    assert facts["spec"]["precision"] == "w8a8"
    assert facts["ops"]["DEPTH_TO_SPACE"] == 1
    assert facts["warnings"] == []
    text = run("inspect", path).stdout
    assert "DEPTH_TO_SPACE" in text
    assert "halo" in text


def test_process_runs_an_isp_file(photos: Path, shipped: Path, tmp_path: Path) -> None:
    model = shipped / "tiny.w8a8.tflite"
    for tile in ("64", "whole"):
        command = [sys.executable, "-m", "eguot_sdk.cli", "process", str(photos / "a.dng"), "-m", str(model)]
        command += ["--tile", tile, "-o", str(tmp_path / f"{tile}.png")]
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(SDK), os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert done.stderr == f"developed 1 picture: {tmp_path / tile}.png\n"
    assert (tmp_path / "64.png").read_bytes() == (tmp_path / "whole.png").read_bytes()


# doctor


def test_doctor_tries_what_it_reports(fake_isp: Any) -> None:
    result = run("doctor", "--json")
    facts = json.loads(result.stdout)
    assert result.exit_code == 0
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["packages"]["tflite-runtime"] is None or isinstance(facts["packages"]["tflite-runtime"], str)
    assert [c["name"] for c in facts["checks"]] == ["read a raw", "write pictures", "run the default ISP"]
    assert all(c["ok"] for c in facts["checks"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [e["name"] for e in facts["extras"]] == list(project["optional-dependencies"])
    text = run("doctor").stdout
    assert "yes  read a raw: rawpy" in text


def test_doctor_says_what_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> ISP:
        raise EguotError("no runtime\nhere")

    monkeypatch.setattr(ISP, "load", load)
    result = run("doctor")
    assert result.exit_code == 1
    assert "NO   run the default ISP: no runtime here" in result.stdout


def test_doctor_knows_extras_from_the_metadata(monkeypatch: pytest.MonkeyPatch, fake_isp: Any) -> None:
    lines = ["numpy>=1", "numpy>=1.2; extra == 'train'", 'surely-absent>=2 ; extra == "train"', "click; extra == 'dev'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    extras = {e["name"]: e for e in json.loads(run("doctor", "--json").stdout)["extras"]}
    assert extras["train"]["missing"] == ["surely-absent"]
    assert not extras["train"]["ok"]
    assert extras["train"]["pip"] == 'pip install "eguot-sdk[train]"'
    assert extras["dev"]["ok"]
    assert 'no   train: missing surely-absent: run `pip install "eguot-sdk[train]"`' in run("doctor").stdout


# the group


def plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, source: str) -> None:
    """Install a command of another package for this test."""
    module = f"plugin_{name}_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = importlib.metadata.EntryPoint(name, f"{module}:command", cli.PLUGINS)
    monkeypatch.setattr(cli, "_plugins", lambda: {name: entry})


def test_help_names_commands_without_importing_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plugin(monkeypatch, tmp_path, "train", "raise RuntimeError('imported')")
    result = run("--help")
    assert result.exit_code == 0
    for words in ("process", "inspect", "doctor", "train", "Train an ISP from unpaired"):
        assert words in result.stdout


def test_a_command_of_another_package_runs_when_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = "import click\n@click.command()\n@click.option('--n', type=int)\ndef command(n):\n    click.echo(n + 1)\n"
    plugin(monkeypatch, tmp_path, "extra", source)
    assert run("extra", "--n", "41").stdout == "42\n"
    assert run("extra", "--n", "x").exit_code == 2


@pytest.mark.parametrize(
    "source",
    [
        "import surely_absent.inner",
        "import click\n@click.command()\ndef command():\n    import surely_absent\n",
    ],
)
def test_a_command_without_its_extra_says_the_pip_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str
) -> None:
    plugin(monkeypatch, tmp_path, "convert", source)
    assert "convert" in run("--help").stdout
    late = "@click" in source
    result = run("convert") if late else run("convert", "run", "--format", "tflite", "-x")
    assert result.exit_code == 1
    assert result.stderr == (
        'Error: `eguot-sdk convert` needs surely_absent, not installed here: run `pip install "eguot-sdk[convert]"`\n'
    )
    if not late:
        assert 'pip install "eguot-sdk[convert]"' in " ".join(run("convert", "--help").stdout.split())


def test_a_mistake_of_our_own_is_not_hidden_as_a_missing_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plugin(monkeypatch, tmp_path, "convert", "import eguot_sdk.surely_absent")
    with pytest.raises(ModuleNotFoundError, match=r"eguot_sdk\.surely_absent"):
        run("convert")


@pytest.mark.parametrize(("error", "code"), [(EguotError, 1), (UsageError, 2), (GateError, 3)])
def test_errors_are_one_line_with_their_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: type[EguotError], code: int
) -> None:
    @click.command()
    def fails() -> None:
        raise error("first\n second")

    monkeypatch.setitem(cli.main.commands, "fails", fails)
    result = run("fails")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", "Error: first second\n")


def test_ctrl_c_is_exit_130(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.main.commands, "stopped", stopped)
    result = run("stopped")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "stopped\n")


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_what_ends_a_job_stops_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    @click.command()
    def ended() -> None:
        signal.raise_signal(signal.Signals[name])

    monkeypatch.setitem(cli.main.commands, "ended", ended)
    result = run("ended")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "stopped\n")
    assert signal.getsignal(signal.Signals[name]) == signal.SIG_DFL


@pytest.mark.usefixtures("usual_signals")
def test_torchrun_ends_its_processes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    @click.command()
    def look() -> None:
        seen.append(signal.getsignal(signal.SIGTERM))

    monkeypatch.setitem(cli.main.commands, "look", look)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    run("look")
    assert seen == [signal.SIG_DFL]


def test_an_unknown_command_is_exit_2() -> None:
    result = run("develop")
    assert result.exit_code == 2
    assert "No such command" in result.stderr


def test_version_is_shown() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout == f"eguot-sdk {eguot_sdk.__version__}\n"


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom eguot_sdk.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'rawpy', 'PIL', 'tifffile', 'torch', 'ai_edge_litert', 'eguot_train'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(SDK), os.environ.get("PYTHONPATH", "")])}
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
        assert "heavy: []" in done.stdout
    assert min(times) < 1.0  # 0.13 s on an idle machine; generous where several tests share two cores


def cli_process(*arguments: object, close: str = "", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own, with the fake ISP; `close`: such as 2>&- of a shell."""
    code = "from eguot_sdk import cli, isp\nisp.ISP.load = lambda *a, **k: isp.ISP.fake()\ncli.main()\n"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(SDK), os.environ.get("PYTHONPATH", "")])} | variables
    command: list[Any] = [sys.executable, "-c", code, *map(str, arguments)]
    if close:
        command = ["sh", "-c", f'exec "$@" {close}', "sh", *command]
    return subprocess.run(command, env=env, capture_output=True, check=False)


@pytest.mark.skipif(os.name != "posix", reason="needs a shell that closes descriptors")
@pytest.mark.parametrize("close", ["2>&-", "0<&- 2>&-"])
def test_commands_work_without_stderr(photos: Path, tmp_path: Path, close: str) -> None:
    done = cli_process("process", photos, "-o", tmp_path / "out", "--json", close=close)
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert [Path(path).name for path in said["written"]] == ["a.jpg", "b.jpg", "c.jpg"]
    assert list(said["errors"]) == [str(photos / "broken.dng")]
    assert "cut short" in said["errors"][str(photos / "broken.dng")]
    assert b"mosaic" in cli_process("inspect", photos / "a.dng", close=close).stdout
    checked = cli_process("doctor", "--json", close=close)
    assert [check["ok"] for check in json.loads(checked.stdout)["checks"]] == [True] * 3


def test_commands_work_without_a_temporary_folder(
    photos: Path, tmp_path: Path, fake_isp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryFile", none)
    assert run("process", photos / "a.dng", "-o", tmp_path / "a.jpg").exit_code == 0
    assert run("inspect", photos / "a.dng").exit_code == 0
    assert run("doctor").exit_code == 0


def test_a_real_process_shows_no_traceback_and_no_chatter(shipped: Path, tmp_path: Path) -> None:
    data = bytearray((shipped / "canon_s40_0117.crw").read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(600_000, 2_000_000, 400):  # the pixel data
        data[place] ^= 1 << int(rng.integers(0, 8))
    (tmp_path / "flipped.crw").write_bytes(data)
    done = cli_process("process", tmp_path / "flipped.crw", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert b"damaged" in done.stderr
    assert not (tmp_path / "out").exists()


def test_every_broken_file_of_the_larger_collection(shared_data: Path, tmp_path: Path, fake_isp: Any) -> None:
    result = run("process", shared_data / "bad", "-o", tmp_path)
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Note: ")]
    assert lines[-1] == f"developed 7 pictures into {tmp_path}, 42 failed"
    assert len(lines) == 43
    assert all(line.startswith(f"Error: {shared_data}") for line in lines[:-1])
    names = sorted(p.stem for p in tmp_path.iterdir())
    assert names == [
        "control_valid_256x192",
        "flip_head_apple_quicktake100_room",
        "flip_head_kodak_dc120_3910",
        "flip_head_kodak_dc50_0012L",
        "odd_size_rggb_767x511",
        "tag_ifd_loop",
        "tag_neutral_zero",
    ]


def test_every_raw_of_the_larger_collection_has_the_shape_of_libraw(
    shared_data: Path, tmp_path: Path, fake_isp: Any
) -> None:
    import rawpy

    assert run("process", shared_data / "raw", "-o", tmp_path, "--format", "png").exit_code == 0
    for path in sorted((shared_data / "raw").iterdir()):
        with rawpy.imread(str(path)) as raw, Image.open(tmp_path / f"{path.stem}.png") as image:
            truth = raw.postprocess(use_camera_wb=True, demosaic_algorithm=rawpy.DemosaicAlgorithm.LINEAR)
            assert (image.height, image.width, 3) == truth.shape, path
            small = [
                np.asarray(Image.fromarray(p).convert("L").resize((32, 32)), float) for p in (truth, np.asarray(image))
            ]
        assert np.corrcoef(small[0].reshape(-1), small[1].reshape(-1))[0, 1] > 0.9, path
