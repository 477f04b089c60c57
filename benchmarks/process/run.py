"""A raw on disk to a uint8 array: the default ISP against LibRaw's own developing, in one run, on the same files.

    python benchmarks/process/run.py                       # 12 and 48 megapixels, 1 and 2 threads: about 3 minutes
    python benchmarks/process/run.py --trace trace.json    # one frame as a trace, for https://ui.perfetto.dev
    python benchmarks/process/run.py --command             # the command: 100 megapixels, and a cold start

The DNGs are made by tiling the mosaic of a real raw (tests/data). Every row is a process of its own, so that its peak
of memory is its own; LibRaw's threads are OpenMP's, set to the same number. `first` includes imports and opening the
ISP; `best` is the best of the following runs. Shares of the stages are CPU time at one thread, mean of five frames.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from eguot_devices.machine import family_memory_mb
from eguot_sdk.cli import Program

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "tests" / "data" / "canon_s40_0117.crw"
SIZES = {"12": (3000, 4000), "48": (6000, 8000), "100": (8660, 11548)}
HOWS = {"isp": "default ISP", "ahd": "LibRaw, AHD", "aahd": "LibRaw, AAHD"}
TARGET_TIME, TARGET_REST = 0.8, 0.2


def make_dng(path: Path, size: tuple[int, int]) -> None:
    """A DNG of (height, width) whose mosaic repeats that of a real raw."""
    from eguot_sdk.raw import RawFrame, read_raw
    from eguot_train.data.synth import dng_bytes

    frame = read_raw(SOURCE)
    cell = frame.mosaic[: frame.height // 2 * 2, : frame.width // 2 * 2]
    repeats = [-(-side // have) for side, have in zip(size, cell.shape, strict=True)]
    mosaic = np.tile(cell, repeats)[: size[0], : size[1]]
    values = {"black": frame.black, "white": frame.white, "white_balance": frame.white_balance}
    tiled = RawFrame.from_array(mosaic, cfa=frame.cfa, matrix=frame.matrix, **values)  # type: ignore[arg-type]
    path.write_bytes(dng_bytes(tiled))


def measure_child(how: str, path: str, threads: int, runs: int) -> dict[str, float]:
    """What one process measures: seconds of the first and the best run, peak of memory."""
    start = time.perf_counter()
    develop: Callable[[], Any]
    if how == "isp":
        from eguot_sdk import ISP

        isp = ISP.load(threads=threads)

        def develop() -> Any:
            return isp.process(path)
    else:
        import rawpy

        algorithm = {"ahd": rawpy.DemosaicAlgorithm.AHD, "aahd": rawpy.DemosaicAlgorithm.AAHD}[how]

        def develop() -> Any:
            with rawpy.imread(path) as raw:
                return raw.postprocess(demosaic_algorithm=algorithm, use_camera_wb=True)

    shape = develop().shape
    first = time.perf_counter() - start
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        picture = develop()
        times.append(time.perf_counter() - start)
        del picture
    return {"first_s": first, "best_s": min(times, default=first), "peak_mb": peak_mb(), "pixels": shape[0] * shape[1]}


def peak_mb() -> float:
    """Peak of resident memory of this process; `getrusage` would count what its parent had when it was started."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


class Stages:
    """CPU seconds and spans of the stages of `ISP.process`, by wrapping the functions they consist of."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.spans: list[dict[str, Any]] = []

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        """Time every call of `owner.name` as `stage`."""
        inner = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            begin, cpu = time.perf_counter(), time.thread_time()
            try:
                return inner(*arguments, **options)
            finally:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + time.thread_time() - cpu
                self.spans.append(
                    {
                        "name": stage,
                        "ph": "X",
                        "pid": os.getpid(),
                        "tid": threading.get_native_id(),
                        "ts": begin * 1e6,
                        "dur": (time.perf_counter() - begin) * 1e6,
                    }
                )

        setattr(owner, name, timed)


def stages(path: str, threads: int, frames: int) -> Stages:
    """So many frames, after a first one that is not counted; seconds are those of one."""
    from eguot_sdk import isp as isp_module
    from eguot_sdk.ingest import Ingest
    from eguot_sdk.runtimes.litert import LiteRtRuntime

    isp = isp_module.ISP.load(threads=threads)
    isp.process(path)
    found = Stages()
    import rawpy

    class Opened(rawpy.RawPy):  # type: ignore[misc]
        """Counts what LibRaw does itself."""

    for name in ("open_file", "unpack"):
        found.wrap(Opened, name, "LibRaw: open, unpack")
    rawpy.RawPy = Opened
    found.wrap(isp_module, "read_raw", "read")
    found.wrap(Ingest, "__init__", "ingest: tables")
    found.wrap(Ingest, "fill", "ingest: fill")
    found.wrap(LiteRtRuntime, "invoke", "network")
    found.wrap(isp_module, "_store_flipped", "store")
    found.wrap(isp_module.ISP, "process", "process")
    whole = 0.0
    for _ in range(frames):
        cpu = time.process_time()
        picture = isp.process(path)
        whole += time.process_time() - cpu
        del picture
    found.seconds["whole process"] = whole
    found.seconds = {name: seconds / frames for name, seconds in found.seconds.items()}
    return found


def in_child(*arguments: str, threads: int) -> dict[str, Any]:
    """Run this file again, alone, and read its JSON."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(arguments)], env=environment, capture_output=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def print_speed(folder: Path, sizes: list[str], threads: list[int], runs: int) -> None:
    """The table of times and memory, and whether the targets are met."""
    click.echo("| megapixels | threads | | first s | best s | against AHD | peak MB |\n|---|---|---|---|---|---|---|")
    for size in sizes:
        for count in threads:
            rows = {}
            for how in HOWS:
                repeats = 1 if how == "aahd" else runs
                rows[how] = in_child(how, str(folder / f"{size}.dng"), str(count), str(repeats), threads=count)
            for how, row in rows.items():
                ratio = row["best_s"] / rows["ahd"]["best_s"]
                click.echo(
                    f"| {size} | {count} | {HOWS[how]} | {row['first_s']:.2f} | {row['best_s']:.2f} | {ratio:.2f} "
                    f"| {row['peak_mb']:.0f} |"
                )
            ours, theirs = rows["isp"], rows["ahd"]
            met = ours["best_s"] <= TARGET_TIME * theirs["best_s"] and ours["peak_mb"] <= theirs["peak_mb"]
            click.echo(f"{size} MP, {count} threads: targets {'met' if met else 'NOT MET'}", err=True)


def print_stages(path: Path) -> None:
    """The table of stages at one thread, and the share of everything that is ours."""
    found = in_child("stages", str(path), "1", "5", threads=1)
    whole, network, libraw = found["whole process"], found["network"], found["LibRaw: open, unpack"]
    found["read: tags, checks"] = found["read"] - libraw
    known = ("LibRaw: open, unpack", "read: tags, checks", "ingest: tables", "ingest: fill", "network", "store")
    found["rest"] = whole - sum(found[name] for name in known)
    click.echo(f"\n| {path.stem} MP, one thread | CPU ms | of the network |\n|---|---|---|")
    for name in (*known, "rest"):
        click.echo(f"| {name} | {1e3 * found[name]:.1f} | {found[name] / network:.1%} |")
    ours = (whole - libraw - network) / network
    click.echo(f"\nEverything but LibRaw's open and unpack and the network: {ours:.1%} of the network's time.")
    click.echo(f"{path.stem} MP, stages: target {'met' if ours <= TARGET_REST else 'NOT MET'}", err=True)


def print_command(folder: Path) -> None:
    """Peak memory of the command and its decoder on 100 megapixels, and the time from a cold start to a JPEG."""
    make_dng(folder / "100.dng", SIZES["100"])
    command = [sys.executable, "-m", "eguot_sdk.cli", "process", "--overwrite", "--threads", "1"]
    start = time.perf_counter()
    run = subprocess.Popen([*command, folder / "100.dng", "-o", folder / "100.jpg"], stderr=subprocess.DEVNULL)
    peak_mb = 0.0
    while run.poll() is None:
        peak_mb = max(peak_mb, family_memory_mb(run.pid))
        time.sleep(0.02)
    if run.returncode:
        raise click.ClickException(f"the command ended with code {run.returncode} and developed nothing")
    click.echo(f"100 MP to JPEG, 1 thread: {time.perf_counter() - start:.1f} s, peak {peak_mb:.0f} MB, both processes")
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([*command, SOURCE, "-o", folder / "one.jpg"], check=True, stderr=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    network = in_child("stages", str(SOURCE), "1", "3", threads=1)["network"]
    click.echo(f"cold start to a JPEG of 4 MP, 1 thread: {min(times):.2f} s, of which the network {network:.2f} s")


@click.command(cls=Program)
@click.option("--sizes", default="12,48", show_default=True, help=f"Megapixels, of {', '.join(SIZES)}.")
@click.option("--threads", default="1,2", show_default=True)
@click.option("--runs", default=5, show_default=True, help="After the first; AAHD runs once.")
@click.option("--trace", type=click.Path(path_type=Path), help="Only write the trace of one frame at two threads.")
@click.option("--command", is_flag=True, help="Only the command: 100 megapixels and a cold start.  Linux.")
@click.option("--child", hidden=True)
def main(sizes: str, threads: str, runs: int, trace: Path | None, command: bool, child: str | None) -> None:
    """Measure and print the tables."""
    if child is not None:
        how, path, count, *rest = json.loads(child)
        number = int(rest[0])
        result = (
            stages(path, int(count), number).seconds
            if how == "stages"
            else measure_child(how, path, int(count), number)
        )
        click.echo(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if command:
            print_command(folder)
            return
        wanted = ["12"] if trace else sizes.split(",")
        for size in wanted:
            make_dng(folder / f"{size}.dng", SIZES[size])
        if trace:
            events = stages(str(folder / "12.dng"), 2, 1).spans
            trace.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
            return
        print_speed(folder, wanted, [int(n) for n in threads.split(",")], runs)
        for size in wanted:
            print_stages(folder / f"{size}.dng")


if __name__ == "__main__":
    main()
