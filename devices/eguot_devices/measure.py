"""Measure one ISP file in this process, which should be a fresh one: see `worker`.

Order matters: memory first, then the tile, then frames, then everything else, so that the peak is that of developing
frames. Budgets keep one model under a minute. The pictures of pairs and the output of the golden input are written
down and judged by who asked: a board need not spend its time on metrics.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eguot_sdk.errors import EguotError
from eguot_sdk.ingest import Ingest
from eguot_sdk.isp import ISP
from eguot_sdk.pairs import list_pairs
from eguot_sdk.raw import RawFrame, read_raw
from eguot_sdk.runtimes import open_runtime
from eguot_sdk.spec import IspSpec
from eguot_sdk.tiling import plan

from .machine import EnergyMeter, OtherLoad, emulator, frequency_mhz, memory_mb, temperature_c
from .operators import operators
from .schema import Energy, FrameProfile, Latency, ModelProfile, Sustained, ThreadPoint, TileProfile
from .timing import MIN_PERCENTILE_RUNS, noise_pct, repeat, summarise

TILE_SECONDS, TILE_RUNS = 8.0, 20
FRAME_SECONDS, FRAME_RUNS = 25.0, 10
OPERATOR_SECONDS = 5.0
CALM_RUNS = 20
MODEL_SECONDS = 45.0
"""What the budgets above and loading come to; a smaller one shortens all of them."""
SYNTHETIC_SIZE = (1536, 2048)
EMULATED_SIZE = (96, 128)
"""An emulated processor is asked for correctness, and would take minutes for megapixels."""
MAX_EMULATED_RUNS = 4
GOLDEN_OUTPUT = "golden.npy"

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
    golden: str | None
    """A .npy with the golden input as the model takes it: int8 or float32 [1, h, w, 4]."""
    outputs: str
    """Folder that gets NAME.png for each pair and golden.npy."""
    threads: tuple[int, ...]
    """Numbers of threads to sweep over."""
    sustained_s: float
    """0: not asked for."""
    budget_s: float | None
    """Seconds for all speed runs; None: about 45."""
    delegate: str | None = None
    """TFLite delegate library that computes what it can."""


def measure(job: Job, on_progress: OnProgress) -> ModelProfile:
    """Speed, memory and what pictures come out of one ISP file. Raises EguotError."""
    path = Path(job.model)
    emulated = emulator() is not None
    share = budget_share(job)
    start_memory_mb = memory_mb()[0]
    start = time.perf_counter()
    isp = ISP.load(path, delegate=job.delegate)
    load_ms = (time.perf_counter() - start) * 1e3
    on_progress("loaded")
    frame = synthetic_frame(EMULATED_SIZE if emulated else SYNTHETIC_SIZE) if job.raw is None else read_raw(job.raw)
    height, width = _tile_size(isp, frame)
    timed = partial(_repeat, share=share, emulated=emulated, on_progress=on_progress)
    calm_runs = 0 if emulated else max(MIN_PERCENTILE_RUNS, round(CALM_RUNS * share))
    calm = _calm_times(calm_runs)
    others = OtherLoad()
    tile = _measure_tile(path, isp.spec, frame, (height, width), timed, delegate=job.delegate)
    megapixels = frame.mosaic.size / 1e6
    source = frame if job.raw is None else job.raw
    energy = EnergyMeter()
    energy_start = time.monotonic()
    frames = _measure_frames(isp, source, megapixels, lambda: energy.sample(), timed)
    used = energy.joules()
    seconds = time.monotonic() - energy_start
    other_load_cores = others.cores()
    peak_memory_mb = memory_mb()[1]
    calm += _calm_times(calm_runs)
    sweep = tuple(
        _sweep_point(path, isp.spec, frame, source, (height, width), n, timed, on_progress, job.delegate)
        for n in job.threads
    )
    ops_seconds = 0.0 if emulated else OPERATOR_SECONDS * share
    on_progress("operators")
    ops = operators(path, height, width, seconds=ops_seconds, delegate=job.delegate)
    sustained = _sustain(isp, source, job.sustained_s, on_progress) if job.sustained_s > 0 else None
    _render(isp, job, on_progress)
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
        threads=sweep,
        operators=ops,
        sustained=sustained,
        energy=None
        if used is None
        else Energy(
            per_megapixel_mj=used[0] * 1e3 / (megapixels * (frames.latency.runs + 1)),
            watts=used[0] / seconds,
            source=used[1],
        ),
        start_memory_mb=start_memory_mb,
        peak_memory_mb=peak_memory_mb,
        accuracy=None,
        parity=None,
        other_load_cores=other_load_cores,
        noise_pct=noise_pct(calm) if calm else None,
    )


def budget_share(job: Job) -> float:
    """What part of its seconds each speed run gets, so that all of them together stay within the job's budget."""
    if job.budget_s is None:
        return 1.0
    wanted = MODEL_SECONDS + len(job.threads) * (TILE_SECONDS + FRAME_SECONDS / 2)
    return min(1.0, max(job.budget_s - job.sustained_s, 0.0) / wanted)


def synthetic_frame(size: tuple[int, int] = SYNTHETIC_SIZE) -> RawFrame:
    """A 12-bit mosaic, of 3 megapixels unless told, with smooth colours, edges and noise: the same everywhere."""
    height, width = size
    rng = np.random.default_rng(0)
    mosaic = np.empty((height, width), np.uint16)
    x = np.arange(width)
    for row in range(height):  # row by row, for this must not be the peak of memory
        scene = 0.4 + 0.25 * np.sin(x / 97) * np.cos(row / 61) + 0.2 * ((x // 128 + row // 128) % 2)
        scene[row % 2 :: 2] *= 0.6 + 0.1 * (row % 2)  # red and blue are the weaker colours of a sensor
        mosaic[row] = np.clip(256 + 3839 * scene + rng.normal(0, 12, width), 0, 4095)
    return RawFrame.from_array(mosaic, cfa="RGGB", black=256, white=4095, white_balance=(1.7, 1.0, 1.4))


def golden_output(
    path: Path, golden: Path, *, kernels: Literal["usual", "reference"] = "usual", delegate: str | None = None
) -> NDArray[Any]:
    """What a model makes of a golden input, as it stores it. `reference`: LiteRT's plain kernels, slow and simple."""
    try:
        values = np.load(golden, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise EguotError(f"{golden.name}: not an array file ({error})") from error
    if kernels == "reference":
        return _reference_output(path, values)
    runtime = open_runtime(path, threads=1, delegate=delegate)
    try:
        runtime.resize(values.shape[1], values.shape[2])
        runtime.input()[...] = values
        runtime.invoke()
        return np.array(runtime.output())
    finally:
        runtime.close()


def _reference_output(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=path.read_bytes(), num_threads=1, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    entry = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(entry, list(values.shape))
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry, values)
    interpreter.invoke()
    out: NDArray[Any] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return out


def _tile_size(isp: ISP, frame: RawFrame) -> tuple[int, int]:
    """The input that `process` gives the network for this frame, in packed pixels, halo included."""
    ingest = Ingest(frame, isp.spec)
    return plan(ingest.height, ingest.width, isp.spec, isp.tile, threads=isp.threads).input_size


def _repeat(
    call: Callable[[], object],
    what: str,
    seconds: float,
    runs: int,
    *,
    share: float,
    emulated: bool,
    on_progress: OnProgress,
) -> Latency:
    most = MAX_EMULATED_RUNS if emulated else None
    return repeat(
        call, seconds=seconds * share, min_runs=runs, max_runs=most, on_run=lambda n: on_progress(f"{what}, run {n}")
    )


Timed = Callable[[Callable[[], object], str, float, int], Latency]


def _measure_tile(
    path: Path,
    spec: IspSpec,
    frame: RawFrame,
    size: tuple[int, int],
    timed: Timed,
    threads: int = 1,
    delegate: str | None = None,
) -> TileProfile:
    """The network on one tile as `process` cuts them, filled with the top left of the frame."""
    start = time.perf_counter()
    runtime = open_runtime(path, threads=threads, delegate=delegate)
    try:
        runtime.resize(*size)
        init_ms = (time.perf_counter() - start) * 1e3
        Ingest(frame, spec).fill(runtime.input()[0], 0, 0)
        latency = timed(runtime.invoke, "tile", TILE_SECONDS, TILE_RUNS)
    finally:
        runtime.close()
    return TileProfile(height_packed=size[0], width_packed=size[1], threads=threads, init_ms=init_ms, latency=latency)


def _measure_frames(
    isp: ISP, source: RawFrame | str, megapixels: float, after_each: Callable[[], None], timed: Timed
) -> FrameProfile:
    def develop() -> None:
        isp.process(source)
        after_each()

    latency = timed(develop, "frame", FRAME_SECONDS, FRAME_RUNS)
    return FrameProfile(
        megapixels=megapixels,
        threads=isp.threads,
        reads_file=isinstance(source, str),
        latency=latency,
        per_megapixel_p50_ms=None if latency.p50_ms is None else latency.p50_ms / megapixels,
        per_megapixel_p90_ms=None if latency.p90_ms is None else latency.p90_ms / megapixels,
    )


def _sweep_point(
    path: Path,
    spec: IspSpec,
    frame: RawFrame,
    source: RawFrame | str,
    size: tuple[int, int],
    threads: int,
    timed: Timed,
    on_progress: OnProgress,
    delegate: str | None,
) -> ThreadPoint:
    on_progress(f"{threads} threads")
    tile = _measure_tile(path, spec, frame, size, timed, threads, delegate)
    with ISP.load(path, threads=threads, delegate=delegate) as isp:
        frames = timed(lambda: isp.process(source), f"frame on {threads} threads", FRAME_SECONDS / 2, FRAME_RUNS)
    return ThreadPoint(threads=threads, tile=tile.latency, frame=frames)


def _sustain(isp: ISP, source: RawFrame | str, seconds: float, on_progress: OnProgress) -> Sustained:
    """Develop frame after frame for so long."""
    temperature, frequency = temperature_c(), None
    samples: list[float] = []
    start = time.monotonic()
    while (elapsed := time.monotonic() - start) < seconds or not samples:
        begin = time.perf_counter()
        isp.process(source)
        samples.append((time.perf_counter() - begin) * 1e3)
        frequency = frequency or frequency_mhz()  # not before the first frame: a processor at rest is slow
        on_progress(f"sustained, {elapsed:.0f} of {seconds:.0f} s")
    tenth = max(len(samples) // 10, min(MIN_PERCENTILE_RUNS, len(samples) // 2), 1)
    return Sustained(
        seconds=time.monotonic() - start,
        frames=len(samples),
        first_p50_ms=summarise(samples[0], samples[:tenth]).p50_ms,
        last_p50_ms=summarise(samples[0], samples[-tenth:]).p50_ms,
        first_temperature_c=temperature,
        last_temperature_c=temperature_c(),
        first_frequency_mhz=frequency,
        last_frequency_mhz=frequency_mhz(),
    )


def _render(isp: ISP, job: Job, on_progress: OnProgress) -> None:
    """Pictures of the pairs, and the output of the golden input, into the folder for outputs."""
    from PIL import Image

    folder = Path(job.outputs)
    try:
        if job.golden is not None:
            output = golden_output(Path(job.model), Path(job.golden), delegate=job.delegate)
            np.save(folder / GOLDEN_OUTPUT, output, allow_pickle=False)
        pairs = [] if job.pairs is None else list_pairs(job.pairs)
        for i, pair in enumerate(pairs, 1):
            on_progress(f"picture {i} of {len(pairs)}")
            frame = replace(pair.frame(), orientation=1, pixel_aspect=1.0)
            Image.fromarray(isp.process(frame)).save(folder / f"{pair.name}.png", compress_level=1)
    except OSError as error:
        raise EguotError(f"a result cannot be written on the device: {error.strerror or error}") from error


def _calm_times(runs: int) -> list[float]:
    """Times of one fixed calculation, in ms: what they spread is the machine's noise.

    It takes some ten milliseconds, as a tile does: a shorter one ends between two turns of other processes.
    """
    values = np.arange(40_000, dtype=np.float32)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        for _ in range(2000):
            np.multiply(values, np.float32(1.0001), out=values)
        times.append((time.perf_counter() - start) * 1e3)
    return times
