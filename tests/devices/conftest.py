"""Reports and pairs to test with, and a target that measures in this process with small budgets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eguot_devices import measure as measuring
from eguot_devices import timing
from eguot_devices.schema import (
    Accuracy,
    Failure,
    FrameProfile,
    Latency,
    Machine,
    ModelProfile,
    PairsFacts,
    RawFacts,
    Report,
    TileProfile,
)
from eguot_sdk.pairs import write_pair
from eguot_sdk.raw import RawFrame


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pairs of 48 x 40 pixels: noise, for numbers and not for looks."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(5)
    for i, cfa in enumerate(("RGGB", "GBRG", "BGGR")):
        mosaic = rng.integers(64, 1024, (40, 48)).astype(np.uint16)
        frame = RawFrame.from_array(mosaic, cfa=cfa, black=64, white=1023, white_balance=(1.5, 1.0, 1.3))
        write_pair(folder, f"noise-{i}", frame, rng.integers(0, 256, (40, 48, 3)).astype(np.uint8))
    return folder


@pytest.fixture
def small_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few runs and a small mosaic."""
    monkeypatch.setattr(timing, "MAX_RUNS", 8)  # not by time, which a busy machine has none of
    monkeypatch.setattr(measuring, "SYNTHETIC_SIZE", (96, 128))


@pytest.fixture
def report() -> Report:
    """A report with one model measured, one failed, and every optional part given."""
    latency = Latency(first_ms=9.0, p50_ms=4.0, p50_low_ms=3.9, p50_high_ms=4.3, p90_ms=5.5, runs=40)
    model = ModelProfile(
        name="look.w8a8.tflite",
        sha256="ab" * 32,
        file_bytes=70_123,
        architecture="qisp-s",
        precision="w8a8",
        parameters=46_256,
        runtime="ai-edge-litert 2.3.0",
        load_ms=18.4,
        tile=TileProfile(height_packed=276, width_packed=276, threads=1, init_ms=2.5, latency=latency),
        frame=FrameProfile(
            megapixels=3.0,
            threads=2,
            reads_file=True,
            latency=Latency(first_ms=99.0, p50_ms=None, p50_low_ms=None, p50_high_ms=None, p90_ms=None, runs=3),
            per_megapixel_p50_ms=None,
            per_megapixel_p90_ms=None,
        ),
        start_memory_mb=37.5,
        peak_memory_mb=101.0,
        accuracy=Accuracy(protocol="plain", images=8, psnr_db=24.5, ssim=0.91, de2000=5.25, psnr_affine_db=29.0),
        other_load_cores=0.5,
    )
    return Report(
        device="local",
        created_utc="2026-01-02T03:04:05+00:00",
        machine=Machine(
            system="Linux 6 x86_64",
            cpu="Some CPU",
            cores=2,
            memory_mb=8000.0,
            governor="powersave",
            python="3.11.7",
            packages={"numpy": "2.4.6"},
        ),
        raw=RawFacts(name="IMG.dng", sha256="cd" * 32, width=2000, height=1500),
        pairs=PairsFacts(name="night", sha256="ef" * 32, images=8),
        models=(model,),
        failed=(Failure(name="broken.tflite", message="broken.tflite: not a TFLite model"),),
        notes=("busy machine",),
    )
