from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from samples import job

from eguot_devices.judge import read_picture
from eguot_devices.measure import GOLDEN_OUTPUT, golden_output, measure, synthetic_frame
from eguot_devices.timing import MIN_PERCENTILE_RUNS
from eguot_sdk.errors import IspFileError, UsageError
from eguot_sdk.isp import ISP
from eguot_sdk.pairs import list_pairs
from eguot_sdk.raw import read_raw


def test_the_synthetic_mosaic_is_the_same_everywhere() -> None:
    frame = synthetic_frame()
    assert frame.mosaic.shape == (1536, 2048)
    assert (
        hashlib.sha256(frame.mosaic[::2, ::2].tobytes()).digest()
        == hashlib.sha256(synthetic_frame().mosaic[::2, ::2].tobytes()).digest()
    )
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
def test_a_delegate_reaches_the_runtime(shipped: Path, tmp_path: Path) -> None:
    asked = job(shipped / "tiny.w8a8.tflite", tmp_path, delegate=str(tmp_path / "absent.so"))
    with pytest.raises(UsageError, match=r"absent\.so' is not a file"):
        measure(asked, lambda words: None)
