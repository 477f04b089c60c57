"""Developing raws: the result does not depend on tiles, threads or CFA phase handling, and says no in one line."""

from __future__ import annotations

import threading
import tracemalloc
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eguot_sdk import ISP, EguotError, IspSpec, RawFrame
from eguot_sdk.errors import IspFileError, RawError, UsageError
from eguot_sdk.ingest import Ingest
from eguot_sdk.output import to_square_pixels, upright
from eguot_sdk.runtimes.fake import FakeRuntime, fake_spec
from eguot_sdk.spec import TensorSpec

DATA = Path(__file__).resolve().parent.parent / "data"
INT8, FLOAT, INT16 = (DATA / f"tiny.{precision}.tflite" for precision in ("w8a8", "fp32", "w8a16"))
PHASES = ("RGGB", "GRBG", "GBRG", "BGGR")


def make_frame(height: int, width: int, cfa: str = "RGGB", seed: int = 0, **changes: Any) -> RawFrame:
    """Noise over a ramp: every value occurs, neighbours differ."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(64, 4095, width)[None, :] * np.linspace(0.2, 1, height)[:, None]
    mosaic = np.clip(ramp + rng.normal(0, 300, (height, width)), 0, 4095).astype(np.uint16)
    values: dict[str, Any] = {"cfa": cfa, "black": 64, "white": 4095, "white_balance": (2.0, 1.0, 1.5), **changes}
    return RawFrame.from_array(mosaic, **values)


def litert() -> None:
    pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")


@pytest.mark.parametrize("cfa", PHASES)
@pytest.mark.parametrize("size", [(331, 517), (64, 98), (5, 4)], ids=str)
def test_int8_pictures_are_the_same_bytes_for_any_tiles_and_threads(cfa: str, size: tuple[int, int]) -> None:
    litert()
    frame = make_frame(*size, cfa)
    with ISP.load(INT8, tile="whole", threads=1) as isp:
        whole = isp.process(frame)
    assert whole.shape == (*size, 3)
    assert whole.dtype == np.uint8
    assert whole.std() > 20
    for tile, threads in product((16, 64, 256, "whole", None), (1, 2, 3)):
        with ISP.load(INT8, tile=tile, threads=threads) as isp:  # type: ignore[arg-type]
            np.testing.assert_array_equal(isp.process(frame), whole, err_msg=f"tile {tile}, {threads} threads")


@pytest.mark.parametrize("path", [FLOAT, INT16], ids=lambda path: path.stem)
@pytest.mark.parametrize("cfa", PHASES)
def test_float_pictures_agree_within_rounding(path: Path, cfa: str) -> None:
    litert()
    frame = make_frame(203, 161, cfa)
    pictures = []
    for tile, threads in (("whole", 1), ("whole", 2), (64, 1), (64, 3), (256, 2), (10, 2)):
        with ISP.load(path, tile=tile, threads=threads) as isp:  # type: ignore[arg-type]
            pictures.append(isp.process(frame).astype(int))
    assert max(np.abs(picture - pictures[0]).max() for picture in pictures) <= 1


def padded_by_hand(frame: RawFrame, spec: IspSpec) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """The whole frame with a reflected margin, made by np.pad on the mosaic: planes, and the frame's place in them."""
    row, col = {"RGGB": (0, 0), "GRBG": (0, 1), "GBRG": (1, 0), "BGGR": (1, 1)}[frame.cfa]
    height, width = frame.mosaic.shape
    margin = 2 * spec.halo
    step = 2 * spec.multiple
    below, right = (-(row + height) % step, -(col + width) % step)
    wide = np.pad(frame.mosaic, ((margin + row, margin + below), (margin + col, margin + right)), mode="reflect")
    same = RawFrame.from_array(
        wide, cfa="RGGB", black=frame.black, white=frame.white, white_balance=frame.white_balance, matrix=frame.matrix
    )
    ingest = Ingest(same, spec)
    planes = np.empty((ingest.height, ingest.width, 4), np.float32)
    ingest.fill(planes, 0, 0)
    return planes, (margin + row, margin + col)


@pytest.mark.parametrize("cfa", PHASES)
@pytest.mark.parametrize("size", [(61, 84), (90, 47)], ids=str)
def test_a_picture_is_the_network_over_the_reflected_frame(cfa: str, size: tuple[int, int]) -> None:
    litert()
    frame = make_frame(*size, cfa)
    with ISP.load(FLOAT, tile=16) as isp:
        planes, (top, left) = padded_by_hand(frame, isp.spec)
        expected = np.clip(isp.run(planes), 0, 1)[top : top + size[0], left : left + size[1]] * 255
        np.testing.assert_allclose(isp.process(frame), expected, atol=0.51)


def test_the_fake_shows_the_colours_of_the_cells() -> None:
    mosaic = np.full((40, 60), 64, np.uint16)
    mosaic[1::2, 1::2] = 64 + 1000  # red
    frame = RawFrame.from_array(mosaic, cfa="BGGR", black=64, white=1064, white_balance=(1, 1, 1), matrix=np.eye(3))
    picture = ISP.fake().process(frame)
    assert (picture[..., 0] == 255).all()
    assert (picture[..., 1:] == 0).all()


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_the_fake_does_not_depend_on_tiles(dtype: Any) -> None:
    frame = make_frame(75, 101, "GBRG")
    whole = ISP.fake(dtype=dtype, tile="whole").process(frame)
    for tile in (1, 7, 16):
        np.testing.assert_array_equal(ISP.fake(dtype=dtype, tile=tile, threads=3).process(frame), whole)


@pytest.mark.parametrize(
    "tensor",
    [
        TensorSpec(dtype="int8", scale=1 / 255, zero_point=-128),
        TensorSpec(dtype="int8", scale=1 / 200, zero_point=-100),
        TensorSpec(dtype="uint8", scale=1 / 255, zero_point=0),
        TensorSpec(dtype="uint8", scale=1 / 128, zero_point=30),
        TensorSpec(dtype="int16", scale=1 / 32767, zero_point=0),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tensor.scale:.4f}-{tensor.zero_point}",
)
def test_integer_output_becomes_the_nearest_of_8_bits(tensor: TensorSpec) -> None:
    limits = np.iinfo(tensor.dtype)

    class Codes(FakeRuntime):
        """Every code its output can hold, whatever the input."""

        def invoke(self) -> None:
            count = self._output.size
            self._output[...] = np.linspace(limits.min, limits.max, count).round().reshape(self._output.shape)

    spec = fake_spec().replace(output=tensor)
    picture = ISP(spec, lambda _: Codes(spec), tile="whole").process(make_frame(128, 300))
    codes = np.linspace(limits.min, limits.max, 132 * 304 * 3).round().reshape(132, 304, 3)[2:-2, 2:-2]
    assert len(np.unique(codes)) > 0.9 * (limits.max - limits.min)
    exact = np.clip((codes - tensor.zero_point) * tensor.scale, 0, 1) * 255
    assert np.abs(picture - exact).max() <= 0.5001


def test_16_bits_hold_what_a_float_isp_gives() -> None:
    litert()
    frame = make_frame(50, 70)
    with ISP.load(FLOAT, tile=16) as isp:
        fine, coarse = isp.process(frame, bits=16), isp.process(frame)
    assert fine.dtype == np.uint16
    assert len(np.unique(fine)) > 1000
    np.testing.assert_allclose(fine / 257.0, coarse, atol=0.51)
    with ISP.load(INT8) as isp, pytest.raises(UsageError, match="16 bits need an ISP whose output is float"):
        isp.process(frame, bits=16)
    with pytest.raises(UsageError, match="8 or 16 bits"):
        ISP.fake().process(frame, bits=12)  # type: ignore[arg-type]


def test_float_output_is_clipped_and_nan_is_black() -> None:
    class Wild(FakeRuntime):
        def invoke(self) -> None:
            self._output[...] = np.array([-3.0, 7.0, np.nan])

    spec = fake_spec("float32")
    isp = ISP(spec, lambda _: Wild(spec))
    for bits, high in ((8, 255), (16, 65535)):
        assert (isp.process(make_frame(10, 10), bits=bits) == [0, high, 0]).all()  # type: ignore[arg-type]


def test_exposure_is_in_ev() -> None:
    frame = make_frame(64, 64, white_balance=(1, 1, 1), matrix=np.eye(3))
    isp = ISP.fake(dtype="float32")
    plain, darker = isp.process(frame) / 255.0, isp.process(frame, exposure=-1) / 255.0
    inside = (plain > 0.1) & (plain < 0.95)
    assert np.median(darker[inside] / plain[inside]) == pytest.approx(0.5 ** (1 / 2.2), abs=0.005)
    for given in (np.float32(-1), np.int64(-1), Fraction(-1)):
        np.testing.assert_array_equal(isp.process(frame, exposure=given), isp.process(frame, exposure=-1))  # type: ignore[arg-type]
    for exposure in (float("nan"), np.float32("nan"), float("inf"), 17, "1", None):
        with pytest.raises(UsageError, match="EV"):
            isp.process(frame, exposure=exposure)  # type: ignore[arg-type]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright_with_square_pixels(orientation: int) -> None:
    lying = make_frame(32, 48)
    turned = RawFrame(
        mosaic=lying.mosaic, cfa=lying.cfa, black=lying.black, white=lying.white, white_balance=lying.white_balance,
        matrix=lying.matrix, orientation=orientation, pixel_aspect=1.5,
    )  # fmt: skip
    isp = ISP.fake()
    expected = upright(to_square_pixels(isp.process(lying), 1.5), orientation)
    picture = isp.process(turned)
    np.testing.assert_array_equal(picture, expected)
    assert picture.flags.c_contiguous
    assert picture.shape == ((32, 72, 3) if orientation < 5 else (72, 32, 3))


def test_files_and_bytes_are_developed_alike() -> None:
    pytest.importorskip("rawpy", reason="rawpy is not installed")
    path = DATA / "kodak_dc50_0012L.kdc"
    isp = ISP.fake()
    picture = isp.process(path)
    assert picture.shape[0] > 100
    np.testing.assert_array_equal(isp.process(str(path)), picture)
    np.testing.assert_array_equal(isp.process(path.read_bytes()), picture)
    with pytest.raises(RawError):
        isp.process(b"no raw at all")


def test_run_is_the_network_alone() -> None:
    litert()
    rng = np.random.default_rng(2)
    planes = rng.random((20, 26, 4), dtype=np.float32)
    with ISP.load(FLOAT) as isp, ISP.load(INT8) as small:
        result = isp.run(planes)
        assert result.shape == (40, 52, 3)
        assert result.dtype == np.float32
        assert np.abs(np.clip(result, 0, 1) - small.run(planes)).mean() < 0.02
        result[...] = 0.5  # a copy: the next run does not see it
        assert isp.run(planes).std() > 0.05
        for wrong in (planes[:19], planes[..., :3], planes.astype(np.uint8), planes[:0], planes[0]):
            with pytest.raises(UsageError):
                isp.run(wrong)
    fixed = fake_spec().replace(fixed_tile=True, tile=64)
    with pytest.raises(UsageError, match="exactly 66 x 66"):
        ISP(fixed, lambda _: FakeRuntime(fixed)).run(planes)


def test_progress_is_told_in_the_callers_thread() -> None:
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        told.append((done, total))

    ISP.fake(tile=16, threads=3).process(make_frame(100, 70), progress=progress)
    assert told == [(i, 12) for i in range(1, 13)]


def test_a_progress_that_raises_stops_the_work() -> None:
    class Stop(Exception):
        pass

    def progress(done: int, total: int) -> None:
        raise Stop

    runtimes: list[FakeRuntime] = []
    isp = counting(runtimes, tile=4, threads=2)
    with pytest.raises(Stop):
        isp.process(make_frame(400, 400), progress=progress)
    assert sum(r.invocations for r in runtimes) < 2500
    assert all(r.closed for r in runtimes)
    assert isp.process(make_frame(40, 40)).shape == (40, 40, 3)


@pytest.mark.parametrize(
    "use",
    [
        lambda isp: isp.close(),
        lambda isp: isp.process(make_frame(8, 8)),
        lambda isp: next(isp.stream([make_frame(8, 8)])),
        lambda isp: isp.run(np.zeros((8, 8, 4), np.float32)),
    ],
    ids=["close", "process", "stream", "run"],
)
def test_an_isp_is_not_used_from_its_own_progress(use: Any) -> None:
    isp = ISP.fake()
    problems: list[BaseException] = []

    def work() -> None:
        try:
            isp.process(make_frame(8, 8), progress=lambda done, tiles: use(isp))
        except UsageError as error:
            problems.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(20)
    assert not worker.is_alive()
    assert "progress" in str(problems[0])
    assert isp.process(make_frame(40, 40)).shape == (40, 40, 3)


def counting(runtimes: list[FakeRuntime], **options: Any) -> ISP:
    """A fake ISP that leaves every runtime it opens in `runtimes`."""
    spec = fake_spec()

    def open_one(threads: int) -> FakeRuntime:
        runtimes.append(FakeRuntime(spec))
        return runtimes[-1]

    return ISP(spec, open_one, **options)


def test_a_failing_runtime_ends_the_frame_and_not_the_isp() -> None:
    class Failing(FakeRuntime):
        def invoke(self) -> None:
            super().invoke()
            if failing and self.invocations == 3:
                raise IspFileError("the model failed")

    spec = fake_spec()
    isp = ISP(spec, lambda _: Failing(spec), tile=8, threads=2)
    failing = True
    with pytest.raises(IspFileError, match="the model failed"):
        isp.process(make_frame(200, 200))
    failing = False
    np.testing.assert_array_equal(isp.process(make_frame(200, 200)), ISP.fake().process(make_frame(200, 200)))


def test_runtimes_are_opened_when_needed_and_used_again() -> None:
    runtimes: list[FakeRuntime] = []
    with counting(runtimes, tile=16, threads=3) as isp:
        assert len(runtimes) == 1
        isp.process(make_frame(30, 70))  # 1 x 3 tiles
        isp.process(make_frame(300, 300))
        assert len(runtimes) == 3
        isp.process(make_frame(20, 20))  # one tile: one runtime that has all threads
        assert len(runtimes) == 4
    assert all(runtime.closed for runtime in runtimes)
    isp.close()
    for call in (lambda: isp.process(make_frame(20, 20)), lambda: isp.run(np.zeros((4, 4, 4), np.float32))):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_one_isp_serves_several_threads() -> None:
    litert()
    frames = [make_frame(60 + 7 * i, 81, PHASES[i % 4], seed=i) for i in range(6)]
    results: dict[int, NDArray[Any]] = {}
    with ISP.load(INT8, tile=16, threads=2) as isp:
        expected = [isp.process(frame) for frame in frames]
        workers = [
            threading.Thread(target=lambda i=i: results.setdefault(i, isp.process(frames[i])))  # type: ignore[misc]
            for i in range(len(frames))
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for i, picture in enumerate(expected):
        np.testing.assert_array_equal(results[i], picture)


def test_tiles_run_side_by_side() -> None:
    """Every invoke waits until eight of them do."""
    together = threading.Barrier(8)

    class Waiting(FakeRuntime):
        def invoke(self) -> None:
            together.wait(timeout=60)
            super().invoke()

    spec = fake_spec()
    ISP(spec, lambda _: Waiting(spec), tile=8, threads=8).process(make_frame(64, 64))  # 4 x 4 tiles of 8


def test_memory_is_the_picture_and_the_tiles_in_flight() -> None:
    frame = make_frame(2000, 1600)
    isp = ISP.fake(tile=64, threads=2)
    isp.process(make_frame(200, 200))
    tracemalloc.start()
    try:
        picture = isp.process(frame)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    tables_and_tiles = 8 << 20
    assert peak < picture.nbytes + tables_and_tiles


def test_an_isp_that_needs_the_whole_frame() -> None:
    spec = fake_spec().replace(global_context=True)
    runtimes: list[FakeRuntime] = []

    def open_one(threads: int) -> FakeRuntime:
        runtimes.append(FakeRuntime(spec))
        return runtimes[-1]

    frame = make_frame(300, 200)
    np.testing.assert_array_equal(ISP(spec, open_one).process(frame), ISP.fake().process(frame))
    assert [r.invocations for r in runtimes if r.invocations] == [1]
    with pytest.raises(UsageError, match="whole frame"):
        ISP(spec, open_one, tile=64).process(frame)


def test_a_frame_too_small_for_one_that_looks_at_all_of_it() -> None:
    """As MicroISP's files do, whose gate strides down further than a small frame goes."""

    class Strided(FakeRuntime):
        def resize(self, height: int, width: int) -> None:
            if 1 < min(height, width) < 79:  # 1: at the start
                raise IspFileError("the model cannot take this input")
            super().resize(height, width)

    spec = fake_spec().replace(global_context=True)
    isp = ISP(spec, lambda _: Strided(spec))
    assert isp.process(make_frame(160, 158)).shape == (160, 158, 3)
    with pytest.raises(IspFileError, match=r"whole frame at once .* 128 x 156: it is too small"):
        isp.process(make_frame(156, 128))


def test_a_file_of_one_size() -> None:
    spec = fake_spec().replace(fixed_tile=True, tile=24)
    sizes = set()

    class Fixed(FakeRuntime):
        def invoke(self) -> None:
            sizes.add(self._input.shape)
            super().invoke()

    frame = make_frame(51, 83, "GRBG")
    np.testing.assert_array_equal(ISP(spec, lambda _: Fixed(spec)).process(frame), ISP.fake().process(frame))
    assert sizes == {(1, 26, 26, 4)}
    with pytest.raises(UsageError, match="exactly 24"):
        ISP(spec, lambda _: Fixed(spec), tile="whole")


@pytest.mark.parametrize("cfa", PHASES)
def test_an_isp_that_enlarges(cfa: str) -> None:
    class Twice(FakeRuntime):
        def resize(self, height: int, width: int) -> None:
            super().resize(height, width)
            self._large = np.repeat(np.repeat(self._output, 2, axis=1), 2, axis=2)

        def invoke(self) -> None:
            super().invoke()
            self._large = np.repeat(np.repeat(self._output, 2, axis=1), 2, axis=2)

        def output(self) -> NDArray[Any]:
            return self._large

    spec = fake_spec().replace(scale_factor=4)
    frame = make_frame(45, 31, cfa)
    picture = ISP(spec, lambda _: Twice(spec), tile=8).process(frame)
    plain = ISP.fake().process(frame)
    np.testing.assert_array_equal(picture, np.repeat(np.repeat(plain, 2, axis=0), 2, axis=1))


def test_specs_that_cannot_be_run_here() -> None:
    for changes, says in (
        ({"layout": "NCHW"}, "layout NCHW"),
        ({"scale_factor": 3}, "even scale factor"),
        ({"output": TensorSpec(dtype="uint8", scale=1 / 255)}, "its spec says the output is uint8"),
    ):
        spec = fake_spec().replace(**changes)  # type: ignore[arg-type]
        with pytest.raises(IspFileError, match=says):
            ISP(spec, lambda _: FakeRuntime(fake_spec()))
    lying = fake_spec().replace(scale_factor=4)
    with pytest.raises(IspFileError, match="must give"):
        ISP(lying, lambda _: FakeRuntime(lying)).process(make_frame(20, 20))


@pytest.mark.parametrize("threads", [0, -1, 2.0, True, 1000])
def test_what_is_no_number_of_threads(threads: Any) -> None:
    with pytest.raises(UsageError, match="threads"):
        ISP.fake(threads=threads)


def test_threads_follow_what_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert ISP.fake().threads == 3
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert ISP.fake().threads == 1


def test_without_a_default_isp_a_path_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("eguot_sdk.isp.DEFAULT_ISP", tmp_path / "none.tflite")
    with pytest.raises(IspFileError, match="give the path of an ISP file"):
        ISP.load()


def test_the_word_default_is_the_default_isp_where_nothing_is_called_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with ISP.load("default") as named, ISP.load() as unnamed:
        assert named.spec == unnamed.spec
    Path("default").mkdir()
    with pytest.raises(UsageError, match="ends in"):
        ISP.load("default")


def test_bad_calls_end_in_one_line(tmp_path: Path) -> None:
    for call in (
        lambda: ISP.load(tmp_path / "gone.tflite"),
        lambda: ISP.load(INT8, tile=15),
        lambda: ISP.load(INT8, threads=0),
        lambda: ISP.load(DATA / "kodak_dc50_0012L.kdc"),
    ):
        with pytest.raises(EguotError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_repr_says_what_it_is() -> None:
    assert repr(ISP.fake(threads=2)) == "ISP('fake', w8a8, fake, threads=2, tile=64)"
