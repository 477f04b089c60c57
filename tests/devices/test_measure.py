from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from eguot_devices.measure import Job, measure, synthetic_frame
from eguot_devices.timing import MIN_PERCENTILE_RUNS
from eguot_sdk.errors import IspFileError
from eguot_sdk.evaluation import evaluate
from eguot_sdk.isp import ISP
from eguot_sdk.pairs import list_pairs


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
def test_one_model_is_measured_from_all_sides(shipped: Path, pairs: Path) -> None:
    model = shipped / "tiny.w8a8.tflite"
    said: list[str] = []
    result = measure(Job(name="tiny", model=str(model), raw=None, pairs=str(pairs)), said.append)
    assert result.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert result.file_bytes == model.stat().st_size
    assert result.precision == "w8a8"
    isp = ISP.load(model)
    assert (result.tile.height_packed, result.tile.width_packed) == (int(isp.tile) + 2 * isp.spec.halo,) * 2
    assert result.tile.threads == 1
    assert result.tile.latency.runs >= MIN_PERCENTILE_RUNS
    for latency in (result.tile.latency, result.frame.latency):
        assert latency.p50_ms is not None
        assert latency.p90_ms is not None
        assert 0 < latency.p50_ms <= latency.p90_ms
    assert result.frame.megapixels == pytest.approx(96 * 128 / 1e6)
    assert result.frame.per_megapixel_p50_ms == pytest.approx(result.frame.latency.p50_ms / result.frame.megapixels)
    assert not result.frame.reads_file
    assert 0 < result.start_memory_mb <= result.peak_memory_mb
    assert {words.partition(",")[0] for words in said} == {"loaded", "tile", "frame", "accuracy"}


@pytest.mark.usefixtures("small_budgets")
def test_accuracy_is_what_evaluation_says(shipped: Path, pairs: Path) -> None:
    model = shipped / "tiny.fp32.tflite"
    accuracy = measure(Job(name="tiny", model=str(model), raw=None, pairs=str(pairs)), lambda words: None).accuracy
    expected = evaluate(ISP.load(model).process, list_pairs(pairs))  # type: ignore[arg-type]
    assert accuracy is not None
    assert accuracy.images == 3
    for metric in ("psnr_db", "ssim", "de2000", "psnr_affine_db"):
        assert getattr(accuracy, metric) == pytest.approx(expected.mean(metric), rel=1e-6)
    assert accuracy.protocol == expected.protocol


@pytest.mark.usefixtures("small_budgets")
def test_reading_a_raw_file_is_part_of_the_frame(shipped: Path) -> None:
    raw = shipped / "kodak_dc50_0012L.kdc"
    job = Job(name="tiny", model=str(shipped / "tiny.w8a8.tflite"), raw=str(raw), pairs=None)
    result = measure(job, lambda words: None)
    assert result.frame.reads_file
    from eguot_sdk import read_raw

    assert result.frame.megapixels == pytest.approx(read_raw(raw).mosaic.size / 1e6)
    assert result.accuracy is None


def test_a_file_that_is_no_isp_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.tflite"
    path.write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(IspFileError, match=r"noise\.tflite"):
        measure(Job(name="noise", model=str(path), raw=None, pairs=None), lambda words: None)
