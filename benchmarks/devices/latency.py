"""Are the times of `profile` those of LiteRT, and of `ISP.process`? Paired runs in one process, as ratios.

    python benchmarks/devices/latency.py [MODEL...]          # default: the default ISP

Three rows a model. `tile`: what `profile` times against a bare loop over LiteRT's Interpreter, on the same tile.
`tile, CompiledModel`: against LiteRT's newer interface, timed as its own benchmark tool
(`ai_edge_litert.tools.benchmark_litert_model`) does: run after run, each by itself, median. `frame`: what `profile`
reports for raw to picture against `ISP.process` called by hand. Rounds alternate which goes first, so that a machine
that drifts hits both; a ratio is the median over rounds, and its interval that of order statistics at 95 %.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.interpreter import Interpreter

from eguot_devices.measure import synthetic_frame
from eguot_devices.timing import median_interval, repeat
from eguot_sdk.cli import Program
from eguot_sdk.ingest import Ingest
from eguot_sdk.isp import ISP
from eguot_sdk.paths import DEFAULT_ISP
from eguot_sdk.runtimes import open_runtime
from eguot_sdk.tiling import plan

ROUNDS = 41
RUNS = 5
FRAME_SIZE = (384, 512)


def ours(call: Callable[[], object], runs: int) -> float:
    """The median that a profile would report of so many runs, ms."""
    latency = repeat(call, seconds=60.0, min_runs=runs, max_runs=runs, on_run=lambda n: None)
    assert latency.p50_ms is not None
    return latency.p50_ms


def bare(call: Callable[[], object], runs: int) -> float:
    """A plain loop: one run to warm up, then the median of the others, ms."""
    call()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def ratio(a: Callable[[], float], b: Callable[[], float]) -> tuple[float, tuple[float, float], float]:
    """Median of a/b over rounds, its interval, and the median of b."""
    ratios, seen = [], []
    for number in range(ROUNDS):
        first, second = (a, b) if number % 2 else (b, a)
        one, two = first(), second()
        x, y = (one, two) if number % 2 else (two, one)
        ratios.append(x / y)
        seen.append(y)
    interval = median_interval(ratios)
    assert interval is not None
    return statistics.median(ratios), interval, statistics.median(seen)


def compiled(path: Path, tile: np.ndarray) -> Callable[[], object]:
    """One run of LiteRT's newer interface on a tile, on one thread."""
    from ai_edge_litert.hardware_accelerator import HardwareAccelerator
    from ai_edge_litert.options import CpuOptions, Options

    options = Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=CpuOptions(num_threads=1))
    model = CompiledModel.from_file(str(path), options=options)
    model.resize_input_tensor(0, list(tile.shape), strict=False)
    inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
    inputs[0].write(tile)
    return partial(model.run_by_index, 0, inputs, outputs)


@click.command(cls=Program)
@click.argument("models", nargs=-1, type=click.Path(path_type=Path, exists=True))
def main(models: tuple[Path, ...]) -> None:
    """Print one row for each model and what was compared."""
    frame = synthetic_frame(FRAME_SIZE)
    click.echo("| model | | profile / peer | 95 % | peer ms |\n|---|---|---|---|---|")
    for path in models or (DEFAULT_ISP,):
        isp = ISP.load(path)
        ingest = Ingest(frame, isp.spec)
        height, width = plan(ingest.height, ingest.width, isp.spec, isp.tile, threads=isp.threads).input_size
        runtime = open_runtime(path, threads=1)
        runtime.resize(height, width)
        ingest.fill(runtime.input()[0], 0, 0)
        tile = np.array(runtime.input())
        interpreter = Interpreter(model_path=str(path), num_threads=1)
        entry = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(entry, tile.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(entry, tile)
        rows = {
            "tile": ratio(partial(ours, runtime.invoke, RUNS), partial(bare, interpreter.invoke, RUNS)),
            "tile, CompiledModel": ratio(
                partial(ours, runtime.invoke, RUNS), partial(bare, compiled(path, tile), RUNS)
            ),
            "frame": ratio(
                partial(ours, partial(isp.process, frame), RUNS), partial(bare, partial(isp.process, frame), RUNS)
            ),
        }
        for what, (value, (low, high), peer_ms) in rows.items():
            click.echo(f"| {path.name} | {what} | {value:.3f} | {low:.3f} to {high:.3f} | {peer_ms:.2f} |")
        isp.close()


if __name__ == "__main__":
    main()
