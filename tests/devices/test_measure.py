from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from samples import job

from eguot_devices import measure as measuring
from eguot_devices import operators as operating
from eguot_devices import timing
from eguot_devices.judge import read_picture
from eguot_devices.measure import GOLDEN_OUTPUT, golden_output, measure, synthetic_frame
from eguot_devices.schema import Latency
from eguot_devices.timing import MIN_PERCENTILE_RUNS
from eguot_sdk.errors import IspFileError, UsageError
from eguot_sdk.isp import ISP
from eguot_sdk.pairs import list_pairs
from eguot_sdk.raw import read_raw
from eguot_sdk.runtimes.litert import LiteRtRuntime


def test_the_synthetic_mosaic_is_the_same_everywhere() -> None:
    frame = synthetic_frame()
    assert frame.mosaic.shape == (1536, 2048)
    # On x86-64 and arm64, with NumPy 1.26 and 2.4.
    digest = hashlib.sha256(frame.mosaic.tobytes()).hexdigest()
    assert digest == "71cae54d08419a75a8f7dae83848d82a2a78cdb7c0b7cc3b4a5e40c466a3640f"
    means = [frame.mosaic[y::2, x::2].mean() for y, x in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert means[0] < means[1]
    assert means[3] < means[2]
    assert min(means) > 500
    assert max(means) < 3500


@pytest.mark.usefixtures("small_budgets")
def test_one_model_is_measured_from_all_sides(shipped: Path, tmp_path: Path, pairs: Path) -> None:
    model = shipped / "tiny.w8a8.tflite"
    said: list[str] = []
    result = measure(job(model, tmp_path, pairs=str(pairs), threads=(1, 2), sustained_s=0.2), said.append)
    assert result.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert result.file_bytes == model.stat().st_size
    assert result.precision == "w8a8"
    isp = ISP.load(model)
    halo = 2 * isp.spec.halo
    assert (result.tile.height_packed, result.tile.width_packed) == (48 + halo, 64 + halo)  # the frame is one tile
    assert [point.threads for point in result.threads] == [1, 2]
    assert result.sustained is not None
    assert result.sustained.frames >= 1
    assert result.operators is not None
    assert (result.operators.total, len(result.operators.times)) == (4, 4)
    assert result.noise_pct is not None
    assert result.frame is not None
    assert result.tile.threads == 1
    assert result.tile.latency.runs >= MIN_PERCENTILE_RUNS
    for latency in (result.tile.latency, result.frame.latency):
        assert latency.p50_ms is not None
        assert latency.p90_ms is not None
        assert 0 < latency.p50_ms <= latency.p90_ms
    assert result.frame.megapixels == pytest.approx(96 * 128 / 1e6)
    assert result.frame.per_megapixel_p50_ms == pytest.approx(result.frame.latency.p50_ms / result.frame.megapixels)
    assert not result.frame.reads_file
    assert 0 < (result.start_memory_mb or 0) <= (result.peak_memory_mb or 0)
    calm = measuring._calm_times(3)
    assert len(calm) == 3
    assert np.median(calm) >= 1  # ms: what is shorter sees nothing of other processes
    words = {words.partition(",")[0] for words in said}
    assert {"loaded", "tile", "frame", "operators", "sustained", "picture 1 of 3"} <= words


@pytest.mark.usefixtures("small_budgets")
def test_pictures_and_the_golden_output_are_those_of_the_isp(shipped: Path, tmp_path: Path, pairs: Path) -> None:
    model = shipped / "tiny.fp32.tflite"
    planes = np.random.default_rng(1).random((1, 16, 16, 4), np.float32)
    np.save(tmp_path / "in.npy", planes)
    measure(job(model, tmp_path, pairs=str(pairs), golden=str(tmp_path / "in.npy")), lambda words: None)
    isp = ISP.load(model)
    for pair in list_pairs(pairs):
        assert np.array_equal(read_picture(tmp_path, pair.name), isp.process(pair.frame()))
    assert np.allclose(np.load(tmp_path / GOLDEN_OUTPUT)[0], isp.run(planes[0]), atol=1e-6)


def test_reference_kernels_agree_with_the_usual_ones(shipped: Path, tmp_path: Path) -> None:
    codes = np.random.default_rng(2).integers(-128, 128, (1, 16, 16, 4)).astype(np.int8)
    np.save(tmp_path / "in.npy", codes)
    model = shipped / "tiny.w8a8.tflite"
    usual = golden_output(model, tmp_path / "in.npy").astype(int)
    plain = golden_output(model, tmp_path / "in.npy", kernels="reference").astype(int)
    assert np.abs(usual - plain).max() <= 1


@pytest.mark.usefixtures("small_budgets")
def test_reading_a_raw_file_is_part_of_the_frame(shipped: Path, tmp_path: Path) -> None:
    raw = shipped / "kodak_dc50_0012L.kdc"
    result = measure(job(shipped / "tiny.w8a8.tflite", tmp_path, raw=str(raw)), lambda words: None)
    assert result.frame is not None
    assert result.frame.reads_file
    assert result.frame.megapixels == pytest.approx(read_raw(raw).mosaic.size / 1e6)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_isp_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.tflite"
    path.write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(IspFileError, match=r"noise\.tflite"):
        measure(job(path, tmp_path), lambda words: None)


@pytest.mark.usefixtures("small_budgets")
def test_with_a_delegate_everything_is_what_the_delegate_does(
    shipped: Path, tmp_path: Path, pairs: Path, sevens: Path
) -> None:
    model = shipped / "tiny.w8a8.tflite"
    np.save(tmp_path / "in.npy", np.zeros((1, 16, 16, 4), np.int8))
    asked = job(model, tmp_path, pairs=str(pairs), golden=str(tmp_path / "in.npy"), delegate=str(sevens))
    result = measure(asked, lambda words: None)
    assert result.runtime.endswith(", sevens.so")
    assert set(np.load(tmp_path / GOLDEN_OUTPUT).flat) == {7}
    for pair in list_pairs(pairs):
        assert len(set(read_picture(tmp_path, pair.name).flat)) == 1
    assert result.operators is not None
    assert (result.operators.total, result.operators.delegated) == (4, 1)
    assert result.operators.not_delegated == ("CONV_2D",)
    assert result.operators.times == ()


@pytest.mark.usefixtures("small_budgets")
def test_a_delegate_that_is_not_there_is_told(shipped: Path, tmp_path: Path) -> None:
    asked = job(shipped / "tiny.w8a8.tflite", tmp_path, delegate=str(tmp_path / "absent.so"))
    with pytest.raises(UsageError, match=r"absent\.so' is not a file"):
        measure(asked, lambda words: None)


class Clock:
    """Stands in for `time`: stands still but for what networks and frames are said to take."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def perf_counter_ns(self) -> int:
        return round(self.now * 1e9)


@pytest.mark.parametrize(
    ("tile_s", "frame_s"),
    [(0.001, 0.02), (0.02, 0.3), (0.5, 4.0), (2.5, 20.0)],
)
def test_one_model_stays_within_a_minute_by_default_and_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, shipped: Path, tmp_path: Path, tile_s: float, frame_s: float
) -> None:
    """However much its times scatter, up to a network that takes 20 s a frame."""
    clock, rng = Clock(), np.random.default_rng(0)
    for module in (timing, measuring, operating):
        monkeypatch.setattr(module, "time", clock)
    spent = {"tile": 0, "frame": 0}

    def takes(what: str, seconds: float) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> np.ndarray:
            clock.now += seconds * rng.uniform(0.7, 1.3)
            spent[what] += 1
            return np.zeros((2, 2, 3), np.uint8)

        return call

    monkeypatch.setattr(measuring, "_calm_times", lambda runs: [1.0, 1.0])
    invoke = takes("tile", tile_s)

    def best_ms(data: bytes, height: int, width: int) -> float:
        for _ in range(1 + operating.CUT_RUNS):
            invoke()
        return 1.0

    monkeypatch.setattr(LiteRtRuntime, "invoke", invoke)
    monkeypatch.setattr(ISP, "process", takes("frame", frame_s))
    monkeypatch.setattr(operating, "_best_ms", best_ms)
    said: list[str] = []
    result = measure(job(shipped / "tiny.w8a8.tflite", tmp_path), said.append)
    assert clock.now <= 60
    assert result.frame is not None
    for what, latency in (("tile", result.tile.latency), ("frame", result.frame.latency)):
        assert latency.runs <= timing.MAX_RUNS
        assert [w for w in said if w.startswith(f"{what}, run")] == [
            f"{what}, run {n + 1}" for n in range(latency.runs + 1)
        ]
    assert spent["frame"] == result.frame.latency.runs + 1
    if frame_s < 1:  # what an ordinary ISP takes is known well within that time
        assert result.tile.latency.runs >= measuring.TILE_RUNS
        assert result.frame.latency.runs >= measuring.FRAME_RUNS


def test_heat_is_told_from_five_frames_on_either_side(monkeypatch: pytest.MonkeyPatch, shipped: Path) -> None:
    clock, durations = Clock(), iter([0.1] * 5 + [0.15] * 2 + [0.2] * 99)

    def process(isp: ISP, source: object) -> None:
        clock.now += next(durations)

    monkeypatch.setattr(measuring, "time", clock)
    monkeypatch.setattr(ISP, "process", process)
    isp = ISP.load(shipped / "tiny.w8a8.tflite")
    warmed = measuring._sustain(isp, "x.dng", 1.7, lambda words: None)
    assert warmed.frames == 12
    assert (warmed.first_p50_ms, warmed.last_p50_ms) == (pytest.approx(100), pytest.approx(200))
    short = measuring._sustain(isp, "x.dng", 0.7, lambda words: None)
    assert (short.frames, short.first_p50_ms) == (4, None)


@pytest.mark.parametrize(("threads", "sustained_s"), [((), 0.0), ((1, 2), 0.0), ((1, 2, 4), 0.2)])
@pytest.mark.parametrize("budget_s", [45.0, 9.0, 0.5])
def test_a_smaller_budget_shortens_every_part(
    monkeypatch: pytest.MonkeyPatch, shipped: Path, tmp_path: Path, budget_s: float, threads: tuple[int, ...],
    sustained_s: float,
) -> None:  # fmt: skip
    asked: list[float] = []

    def note(call: Callable[[], object], *, seconds: float, **rest: object) -> Latency:
        asked.append(seconds)
        return timing.summarise(1.0, [])

    monkeypatch.setattr(measuring, "repeat", note)
    monkeypatch.setattr(measuring, "operators", lambda *where, seconds, delegate: asked.append(seconds))
    monkeypatch.setattr(measuring, "SYNTHETIC_SIZE", (96, 128))
    asking = job(shipped / "tiny.w8a8.tflite", tmp_path, budget_s=budget_s, threads=threads, sustained_s=sustained_s)
    measure(asking, lambda words: None)
    assert len(asked) == 3 + 2 * len(threads)
    assert sum(asked) <= budget_s - sustained_s
    assert sum(asked) >= 0.75 * (budget_s - sustained_s)
    assert asked[0] / asked[1] == pytest.approx(measuring.TILE_SECONDS / measuring.FRAME_SECONDS)
