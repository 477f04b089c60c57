"""Measure one ISP file in this process, which should be a fresh one: see `worker`.

Order matters: memory first, then the tile, then frames, then accuracy, so that the peak is that of developing
frames and not of comparing pictures. Budgets keep one model under a minute; accuracy takes as long as its images do.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eguot_sdk.evaluation import evaluate
from eguot_sdk.ingest import Ingest
from eguot_sdk.isp import ISP
from eguot_sdk.pairs import list_pairs
from eguot_sdk.raw import RawFrame, read_raw
from eguot_sdk.runtimes import open_runtime

from .machine import OtherLoad, memory_mb
from .schema import Accuracy, FrameProfile, ModelProfile, TileProfile
from .timing import repeat

TILE_SECONDS, TILE_RUNS = 8.0, 20
FRAME_SECONDS, FRAME_RUNS = 25.0, 10
SYNTHETIC_SIZE = (1536, 2048)

OnProgress = Callable[[str], None]
"""Called with words for a person whenever something was done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One model to measure; paths are those of the machine that measures."""

    name: str
    model: str
    raw: str | None
    """Raw to develop; None: `synthetic_frame()`."""
    pairs: str | None


def measure(job: Job, on_progress: OnProgress) -> ModelProfile:
    """Speed, memory and, with pairs, accuracy of one ISP file. Raises EguotError."""
    path = Path(job.model)
    start_memory_mb = memory_mb()[0]
    start = time.perf_counter()
    isp = ISP.load(path)
    load_ms = (time.perf_counter() - start) * 1e3
    on_progress("loaded")
    frame = synthetic_frame() if job.raw is None else read_raw(job.raw)
    others = OtherLoad()
    tile = _measure_tile(path, isp, frame, on_progress)
    megapixels = frame.mosaic.size / 1e6
    source = frame if job.raw is None else job.raw
    del frame
    frames = _measure_frames(isp, source, megapixels, on_progress)
    other_load_cores = others.cores()
    peak_memory_mb = memory_mb()[1]
    accuracy = None if job.pairs is None else _measure_accuracy(isp, Path(job.pairs), on_progress)
    data = path.read_bytes()
    return ModelProfile(
        name=job.name,
        sha256=hashlib.sha256(data).hexdigest(),
        file_bytes=len(data),
        architecture=isp.spec.architecture,
        precision=isp.spec.precision,
        parameters=isp.spec.parameters,
        runtime=isp.runtime,
        load_ms=load_ms,
        tile=tile,
        frame=frames,
        start_memory_mb=start_memory_mb,
        peak_memory_mb=peak_memory_mb,
        accuracy=accuracy,
        other_load_cores=other_load_cores,
    )


def synthetic_frame() -> RawFrame:
    """A 3-megapixel 12-bit mosaic with smooth colours, edges and noise: the same numbers everywhere."""
    height, width = SYNTHETIC_SIZE
    rng = np.random.default_rng(0)
    mosaic = np.empty((height, width), np.uint16)
    x = np.arange(width)
    for row in range(height):  # row by row, for this must not be the peak of memory
        scene = 0.4 + 0.25 * np.sin(x / 97) * np.cos(row / 61) + 0.2 * ((x // 128 + row // 128) % 2)
        scene[row % 2 :: 2] *= 0.6 + 0.1 * (row % 2)  # red and blue are the weaker colours of a sensor
        mosaic[row] = np.clip(256 + 3839 * scene + rng.normal(0, 12, width), 0, 4095)
    return RawFrame.from_array(mosaic, cfa="RGGB", black=256, white=4095, white_balance=(1.7, 1.0, 1.4))


def _measure_tile(path: Path, isp: ISP, frame: RawFrame, on_progress: OnProgress) -> TileProfile:
    """The network on one tile as `process` cuts them, on one thread, filled with the top left of the frame."""
    ingest = Ingest(frame, isp.spec)
    if isp.tile == "whole":
        multiple = isp.spec.multiple
        height, width = (-(-n // multiple) * multiple + 2 * isp.spec.halo for n in (ingest.height, ingest.width))
    else:
        height = width = int(isp.tile) + 2 * isp.spec.halo
    start = time.perf_counter()
    runtime = open_runtime(path, threads=1)
    try:
        runtime.resize(height, width)
        init_ms = (time.perf_counter() - start) * 1e3
        ingest.fill(runtime.input()[0], 0, 0)
        latency = repeat(
            runtime.invoke,
            seconds=TILE_SECONDS,
            min_runs=TILE_RUNS,
            on_run=lambda run: on_progress(f"tile, run {run}"),
        )
    finally:
        runtime.close()
    return TileProfile(height_packed=height, width_packed=width, threads=1, init_ms=init_ms, latency=latency)


def _measure_frames(isp: ISP, source: RawFrame | str, megapixels: float, on_progress: OnProgress) -> FrameProfile:
    latency = repeat(
        lambda: isp.process(source),
        seconds=FRAME_SECONDS,
        min_runs=FRAME_RUNS,
        on_run=lambda run: on_progress(f"frame, run {run}"),
    )
    return FrameProfile(
        megapixels=megapixels,
        threads=isp.threads,
        reads_file=isinstance(source, str),
        latency=latency,
        per_megapixel_p50_ms=None if latency.p50_ms is None else latency.p50_ms / megapixels,
        per_megapixel_p90_ms=None if latency.p90_ms is None else latency.p90_ms / megapixels,
    )


def _measure_accuracy(isp: ISP, folder: Path, on_progress: OnProgress) -> Accuracy:
    pairs = list_pairs(folder)
    done = 0

    def render(frame: RawFrame) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        nonlocal done
        done += 1
        on_progress(f"accuracy, image {done} of {len(pairs)}")
        return isp.process(frame)  # type: ignore[return-value]  # 8 bits were asked for

    evaluation = evaluate(render, pairs, label="accuracy")
    return Accuracy(
        protocol=evaluation.protocol,
        images=len(evaluation.scores),
        psnr_db=evaluation.mean("psnr_db"),
        ssim=evaluation.mean("ssim"),
        de2000=evaluation.mean("de2000"),
        psnr_affine_db=evaluation.mean("psnr_affine_db"),
    )
