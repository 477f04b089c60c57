"""Reports and pairs to test with, and a target that measures in this process with small budgets."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eguot_devices import measure as measuring
from eguot_devices import timing
from eguot_devices.schema import (
    Accuracy,
    DeviceReport,
    Energy,
    Failure,
    FrameProfile,
    Latency,
    Machine,
    ModelProfile,
    Operators,
    OpTime,
    PairsFacts,
    Parity,
    RawFacts,
    Report,
    Sustained,
    ThreadPoint,
    TileProfile,
)
from eguot_sdk.pairs import write_pair
from eguot_sdk.raw import RawFrame

# Modules beside the tests, not tests themselves.
sys.path.insert(0, str(Path(__file__).parent))


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


@pytest.fixture(scope="session")
def sevens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delegate library that takes the last operator of a model and answers with sevens."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a delegate with")
    library = tmp_path_factory.mktemp("delegate") / "sevens.so"
    source = Path(__file__).with_name("sevens.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return library


@pytest.fixture
def small_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few runs and a small mosaic."""
    monkeypatch.setattr(timing, "MAX_RUNS", 8)  # not by time, which a busy machine has none of
    monkeypatch.setattr(measuring, "SYNTHETIC_SIZE", (96, 128))
    monkeypatch.setattr(measuring, "OPERATOR_SECONDS", 0.1)


@pytest.fixture
def report() -> Report:
    """A report with one model measured, one failed, and every optional part given."""
    latency = Latency(first_ms=9.0, p50_ms=4.0, p50_low_ms=3.9, p50_high_ms=4.3, p90_ms=5.5, p99_ms=None, runs=40)
    few = Latency(first_ms=99.0, p50_ms=None, p50_low_ms=None, p50_high_ms=None, p90_ms=None, p99_ms=None, runs=3)
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
            latency=few,
            per_megapixel_p50_ms=None,
            per_megapixel_p90_ms=None,
        ),
        threads=(ThreadPoint(threads=2, tile=latency, frame=few),),
        operators=Operators(
            total=6,
            delegated=5,
            not_delegated=("DEPTH_TO_SPACE",),
            times=(OpTime(name="CONV_2D", ms=3.0), OpTime(name="DEPTH_TO_SPACE", ms=1.0)),
            times_source="counted",
        ),
        sustained=Sustained(
            seconds=60.0,
            frames=500,
            first_p50_ms=100.0,
            last_p50_ms=140.0,
            first_temperature_c=40.0,
            last_temperature_c=71.0,
            first_frequency_mhz=2400.0,
            last_frequency_mhz=None,
        ),
        energy=Energy(per_megapixel_mj=120.0, watts=4.5, source="RAPL package"),
        start_memory_mb=37.5,
        peak_memory_mb=101.0,
        accuracy=Accuracy(protocol="plain", images=8, psnr_db=24.5, ssim=0.91, de2000=5.25, psnr_affine_db=29.0),
        parity=Parity(reference="golden pair", max_levels=1.0, beyond_one_level=0.0, psnr_db=61.0),
        other_load_cores=0.5,
        noise_pct=3.0,
    )
    machine = Machine(
        system="Linux 6 x86_64",
        cpu="Some CPU",
        soc=None,
        cores=2,
        memory_mb=8000.0,
        governor="powersave",
        python="3.11.7",
        packages={"numpy": "2.4.6"},
        delegates=("XNNPACK",),
        emulated=None,
    )
    return Report(
        created_utc="2026-01-02T03:04:05+00:00",
        command="eguot-sdk profile look.w8a8.tflite broken.tflite --device local",
        sdk_version="0.1.0",
        raw=RawFacts(name="IMG.dng", sha256="cd" * 32, width=2000, height=1500),
        pairs=PairsFacts(name="night", sha256="ef" * 32, images=8),
        devices=(
            DeviceReport(
                device="local",
                machine=machine,
                models=(model,),
                failed=(Failure(name="broken.tflite", message="broken.tflite: not a TFLite model"),),
                notes=("busy machine",),
            ),
        ),
    )
