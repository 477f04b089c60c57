"""Examples for other devices: what can be run without them, against the SDK."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eguot_sdk import ISP, IspSpec, RawFrame
from eguot_sdk.ispfile import read_spec
from eguot_sdk.paths import DEFAULT_ISP
from eguot_sdk.runtimes.fake import FakeRuntime
from eguot_sdk.spec import TensorSpec

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
INT8 = TensorSpec(dtype="int8", scale=1 / 255, zero_point=-128)
MATRIX = ((1.7, -0.6, -0.1), (-0.15, 1.5, -0.35), (0.02, -0.5, 1.48))


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), EXAMPLES / f"{path}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Spread(FakeRuntime):
    """The network of Harness.kt: the values of a cell over its 2x2 pixels, each green on its row."""

    def invoke(self) -> None:
        planes = np.repeat(np.repeat(self._input[0], 2, axis=0), 2, axis=1)
        self._output[0] = planes[..., [0, 1, 3]]
        self._output[0, 1::2, :, 1] = planes[1::2, :, 2]


@pytest.fixture(scope="session")
def jar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("kotlinc") is None or shutil.which("java") is None:
        pytest.skip("no Kotlin compiler: apt-get install kotlin default-jdk-headless")
    out = tmp_path_factory.mktemp("kotlin") / "isp.jar"
    sources = [EXAMPLES / "android" / "EguotIsp.kt", Path(__file__).with_name("Harness.kt")]
    done = subprocess.run(
        ["kotlinc", *sources, "-include-runtime", "-d", out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("color_input", ["srgb", "camera"])
@pytest.mark.parametrize("cfa", ["RGGB", "GRBG", "GBRG", "BGGR"])
def test_kotlin_gives_the_picture_of_the_sdk(jar: Path, tmp_path: Path, cfa: str, color_input: Any) -> None:
    mosaic = np.random.default_rng(3).integers(40, 1023, (45, 70)).astype(np.uint16)
    black, white, gains = (60.0, 64.0, 66.0, 58.0), (1000.0, 1010.0, 1020.0, 990.0), (1.9, 1.0, 1.5)
    data = struct.pack(">2iH", *mosaic.shape, len(cfa)) + cfa.encode()
    numbers = (*black, *white, *gains, *np.ravel(MATRIX))
    data += struct.pack(">20d", *numbers) + mosaic.astype(">u2").tobytes()
    (tmp_path / "raw").write_bytes(data)
    subprocess.run(["java", "-jar", jar, tmp_path / "raw", tmp_path / "out", color_input], check=True)
    argb = np.fromfile(tmp_path / "out", ">u4").reshape(mosaic.shape)
    found = np.stack([argb >> 16 & 255, argb >> 8 & 255, argb & 255], axis=-1).astype(int)
    spec = IspSpec(
        name="spread", architecture="none", parameters=0, halo=2, tile=16, input=INT8, output=INT8,
        color_input=color_input, precision="w8a8",
    )  # fmt: skip
    frame = RawFrame.from_array(mosaic, cfa=cfa, black=black, white=white, white_balance=gains, matrix=MATRIX)
    expected = ISP(spec, lambda _: Spread(spec)).process(frame).astype(int)
    off = np.abs(found - expected)
    assert off.max() <= 4  # the two tables of the SDK differ by that near black
    assert np.mean(off > 0) < 0.02
    assert (argb >> 24 == 255).all()


def code(path: str) -> str:
    return re.sub(r"//.*", "", (EXAMPLES / path).read_text(encoding="utf-8"))


def test_swift_says_what_kotlin_says() -> None:
    """No Swift compiler is at hand: its values and sums at least are those of the Kotlin that is compiled and run."""
    kotlin, swift = code("android/EguotIsp.kt"), code("ios/EguotIsp.swift")

    def sums(text: str) -> dict[str, str]:
        text = text.replace("val ", "let ").replace("Math.", "")
        return {name: value.strip() for name, value in re.findall(r"\blet (\w+) = (.*)", text)}

    for name in ("gain", "core", "side", "row", "col", "at", "period"):
        assert sums(kotlin)[name] == sums(swift)[name], name
    for pattern in (
        r"\bspec(?:\.\w+)+",
        r"\braw\.\w+",
        r"m\[\d\] \* \w+(?: \+ m\[\d\] \* \w+)+",  # the matrix on a cell
        r"\(raw\.\w+ \+ crop\w+ \+ 1\) / 2",
        r"at\(\d, 2 \* y(?: \+ 1)?, 2 \* x(?: \+ 1)?\)",
    ):
        found = set(re.findall(pattern, kotlin))
        assert found, pattern
        assert found == set(re.findall(pattern, swift)), pattern


@pytest.mark.parametrize("path", ["android/EguotIsp.kt", "ios/EguotIsp.swift"])
def test_the_examples_read_what_a_spec_holds(path: str) -> None:
    held = json.loads(read_spec(DEFAULT_ISP).to_json())
    read = set(re.findall(r"\bspec((?:\.\w+)+)", code(path))) - {".cameraColour"}
    for name in read:
        value: Any = held
        for part in name.strip(".").split("."):
            key = re.sub(r"([A-Z])", r"_\1", part).lower()
            assert key in value, name
            value = value[key]
    decides = {
        "version",
        "globalContext",
        "input.dtype",
        "output.dtype",
        "halo",
        "tile",
        "multiple",
        "scaleFactor",
        "companding",
        "output.scale",
        "output.zeroPoint",
    }
    assert {f".{name}" for name in decides | {"input.scale", "input.zeroPoint"}} == read
    comment = (EXAMPLES / path).read_text(encoding="utf-8").partition("import ")[0]
    assert "color_input" in comment
    assert "global_context" in comment


def test_the_java_runtime_gives_what_litert_gives(shipped: Path) -> None:
    interpreter_module = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
    model = shipped / "tiny.w8a8.tflite"

    class Model:
        """The Kotlin class of the example, over LiteRT here."""

        def __init__(self) -> None:
            self.inner: Any = interpreter_module.Interpreter(model_path=str(model))

        def resize(self, height: int, width: int) -> None:
            self.inner.resize_tensor_input(self.inner.get_input_details()[0]["index"], [1, height, width, 4])
            self.inner.allocate_tensors()

        def run(self, given: bytes, size: int) -> bytes:
            details = self.inner.get_input_details()[0]
            self.inner.set_tensor(details["index"], np.frombuffer(given, np.int8).reshape(details["shape"]))
            self.inner.invoke()
            result: bytes = self.inner.get_tensor(self.inner.get_output_details()[0]["index"]).tobytes()
            assert len(result) == size
            return result

    java = Model()
    mosaic = np.random.default_rng(0).integers(64, 1023, (90, 130)).astype(np.uint16)
    frame = RawFrame.from_array(mosaic, cfa="GBRG", black=64, white=1023, white_balance=(2, 1, 1.5))
    with load("android/chaquopy_isp").open_isp(model.read_bytes(), java) as isp, ISP.load(model) as plain:
        expected = plain.process(frame)
        np.testing.assert_array_equal(isp.process(frame), expected)

        def cancel(done: int, tiles: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            isp.process(frame, progress=cancel)
        np.testing.assert_array_equal(isp.process(frame), expected)
    with load("android/chaquopy_isp").open_isp(model.read_bytes(), java) as isp:  # the app's interpreter lives on
        np.testing.assert_array_equal(isp.process(frame), expected)


def test_picamera2_frames_are_developed() -> None:
    live = load("picamera2/live")
    mosaic = np.random.default_rng(0).integers(256, 4095, (48, 64)).astype(np.uint16)
    rows = np.zeros((48, 160), np.uint8)  # the driver's rows are longer
    rows[:, :128] = mosaic.view(np.uint8)
    camera = SimpleNamespace(
        camera_configuration=lambda: {"raw": {"size": (64, 48), "format": "SBGGR12"}},
        capture_array=lambda name: rows.copy(),
    )
    metadata = {
        "SensorBlackLevels": (4096, 4096, 4112, 4096),
        "ColourGains": (2.1, 1.6),
        "ColourCorrectionMatrix": tuple(np.ravel(MATRIX)),
    }
    stream = live.mosaics(camera)
    like = live.first_frame(next(stream), "SBGGR12", metadata)
    assert (like.cfa, like.black, like.white) == ("BGGR", (256, 256, 257, 256), (4095,) * 4)
    assert like.white_balance == pytest.approx((2.1, 1.0, 1.6))
    np.testing.assert_array_equal(like.mosaic, mosaic)
    pictures = ISP.fake().stream(stream, like=like)
    np.testing.assert_array_equal(next(pictures), ISP.fake().process(like))


def test_v4l2_frames_are_developed() -> None:
    live = load("v4l2/live")
    mosaic = np.random.default_rng(0).integers(64, 1023, (40, 60)).astype(np.uint16)
    padded = np.zeros((40, 64), np.uint16)
    padded[:, :60] = mosaic

    class Frame:
        width, height = 60, 40

        def __bytes__(self) -> bytes:
            return padded.tobytes()

    stream = live.mosaics([Frame()] * 3, 128)
    like = live.first_frame(next(stream), "GB10", 64, None)
    assert (like.cfa, like.white) == ("GBRG", (1023,) * 4)
    assert like.white_balance is not None
    np.testing.assert_array_equal(like.mosaic, mosaic)
    pictures = list(ISP.fake().stream(stream, like=like))
    assert len(pictures) == 2
    np.testing.assert_array_equal(pictures[1], ISP.fake().process(like))
    # linux/videodev2.h: V4L2_PIX_FMT_SBGGR10 to V4L2_PIX_FMT_SRGGB16, the unpacked ones
    for bits, letters in ((10, "BG GB BA RG"), (12, "BG GB BA RG"), (14, "BG GB GR RG"), (16, "BYR2 GB GR RG")):
        for phase, code in zip(("BGGR", "GBRG", "GRBG", "RGGB"), letters.split(), strict=True):
            assert live.cfa_and_bits(code if len(code) == 4 else f"{code}{bits}") == (phase, bits)
    for unknown in ("pRAA", "BA14", "GR10", "BG16"):
        with pytest.raises(SystemExit, match="packed ones end in P"):
            live.cfa_and_bits(unknown)


def test_v4l2_says_so_where_the_driver_takes_another_format() -> None:
    live = load("v4l2/live")
    yuyv = int.from_bytes(b"YUYV", "little")
    given = SimpleNamespace(width=60, height=40, pixel_format=int.from_bytes(b"RG10", "little"))
    live.check_format(given, (60, 40, "RG10"))
    for change, words in (({"pixel_format": yuyv}, "60x40 YUYV"), ({"width": 64}, "64x40 RG10")):
        with pytest.raises(SystemExit, match=f"asked for 60x40 RG10, the driver gives {words}"):
            live.check_format(SimpleNamespace(**{**vars(given), **change}), (60, 40, "RG10"))


class Camera:
    """Stands in for a camera of picamera2 and for a capture of linuxpy: slow, and not to be read once stopped."""

    sensor_format = "SRGGB12"
    sensor_resolution = (64, 48)
    create_video_configuration = dict

    def __init__(self) -> None:
        self.running, self.read_stopped = False, False
        self.mosaic = np.random.default_rng(0).integers(256, 4095, (48, 64)).astype(np.uint16)

    def __enter__(self) -> None:
        self.running = True

    def __exit__(self, *_: object) -> None:
        self.running = False
        time.sleep(0.4)

    def start(self) -> None:
        self.__enter__()

    def stop(self) -> None:
        self.__exit__()

    def configure(self, _: object) -> None:
        pass

    def camera_configuration(self) -> dict[str, Any]:
        return {"raw": {"size": (64, 48), "format": "SRGGB12"}}

    def capture_metadata(self) -> dict[str, Any]:
        return {"SensorBlackLevels": (4096,) * 4, "ColourGains": (2.1, 1.6)}

    def capture_array(self, name: str) -> Any:
        time.sleep(0.2)
        self.read_stopped |= not self.running
        return self.mosaic.view(np.uint8)

    def set_format(self, *_: object) -> None:
        pass

    def get_format(self) -> Any:
        fourcc = int.from_bytes(b"RG12", "little")
        return SimpleNamespace(bytes_per_line=128, width=64, height=48, pixel_format=fourcc)

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield Bytes(self.capture_array("raw").tobytes())


class Bytes(bytes):
    width, height = 64, 48


@pytest.mark.parametrize("path", ["picamera2/live", "v4l2/live"])
def test_examples_stop_the_camera_when_nothing_reads_it(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, camera = load(path), Camera()
    monkeypatch.setitem(sys.modules, "picamera2", SimpleNamespace(Picamera2=lambda: camera))
    linuxpy = SimpleNamespace(
        Device=SimpleNamespace(from_id=lambda number: contextlib.nullcontext()), VideoCapture=lambda device: camera
    )
    for name in ("linuxpy", "linuxpy.video", "linuxpy.video.device"):
        monkeypatch.setitem(sys.modules, name, linuxpy)
    monkeypatch.setattr(live.ISP, "load", lambda model: ISP.fake())
    out = tmp_path / "last.png"
    options = ["--size", "64x48", "--format", "RG12"] if path == "v4l2/live" else []
    monkeypatch.setattr(sys, "argv", ["live.py", *options, "--frames", "3", "--out", str(out)])
    live.main()
    assert out.is_file()
    assert not camera.running
    assert not camera.read_stopped


@pytest.mark.parametrize("path", ["picamera2/live", "v4l2/live"])
def test_examples_show_their_help(path: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{path}.py", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "--frames" in done.stdout
