"""A live camera: `ISP.stream` over a few hundred frames; how long each picture takes, and whether memory grows.

    python benchmarks/process/stream.py                    # 300 frames of 2 megapixels, 1 and 2 threads: half a minute
    python benchmarks/process/stream.py --frames 3000

Frames are parts of a real raw's mosaic, tiled (tests/data), each from another place, so no two in a row are alike; they
come as fast as they are taken. The time of a picture is that since the one before, the first twenty not counted. `new
pages` are those the system had to map for one picture. Resident memory is read after every picture; growth is the
median of the last tenth less that of the first. Every number of threads is a process of its own.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from eguot_sdk.cli import Program

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "tests" / "data" / "canon_s40_0117.crw"
SIZE = (1080, 1920)
WARM_UP = 20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_mb() -> float:
    """Memory of this process that is in RAM now, in 10^6 bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES / 1e6


def measure(threads: int, frames: int) -> dict[str, float]:
    """What one process measures of a stream."""
    from eguot_sdk import ISP, RawFrame
    from eguot_sdk.raw import read_raw

    raw = read_raw(SOURCE)
    cell = raw.mosaic[: raw.height // 2 * 2, : raw.width // 2 * 2]
    room = [side + 128 for side in SIZE]
    sheet = np.tile(cell, [-(-side // have) for side, have in zip(room, cell.shape, strict=True)])
    values = {"black": raw.black, "white": raw.white, "white_balance": raw.white_balance, "matrix": raw.matrix}
    like = RawFrame.from_array(sheet[: SIZE[0], : SIZE[1]], cfa=raw.cfa, **values)  # type: ignore[arg-type]

    def camera() -> Iterator[NDArray[np.uint16]]:
        for number in range(WARM_UP + frames):
            top, left = 2 * (number % 64), 2 * (number * 7 % 64)
            yield sheet[top : top + SIZE[0], left : left + SIZE[1]]

    taken, resident, faults = [], [], 0
    with ISP.load(threads=threads) as isp:
        last = time.perf_counter()
        for number, picture in enumerate(isp.stream(camera(), like=like)):
            now = time.perf_counter()
            taken.append(now - last)
            last = now
            resident.append(resident_mb())
            if number == WARM_UP - 1:
                faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            del picture
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    times, kept = np.array(taken[WARM_UP:]) * 1e3, np.array(resident[WARM_UP:])
    tenth = max(frames // 10, 1)
    return {
        **{f"p{share}_ms": float(np.percentile(times, share)) for share in (50, 90, 99)},
        "max_ms": float(times.max()),
        "new_pages": faults / frames,
        "peak_mb": float(kept.max()),
        "growth_mb": float(np.median(kept[-tenth:]) - np.median(kept[:tenth])),
    }


@click.command(cls=Program)
@click.option("--frames", default=300, show_default=True, type=click.IntRange(10))
@click.option("--threads", default="1,2", show_default=True)
@click.option("--child", hidden=True, type=int)
def main(frames: int, threads: str, child: int | None) -> None:
    """Measure and print the table.  Linux."""
    if child is not None:
        click.echo(json.dumps(measure(child, frames)))
        return
    click.echo(f"{frames} frames of {SIZE[1]} x {SIZE[0]}\n")
    click.echo("| threads | p50 ms | p90 | p99 | longest | new pages a picture | resident MB, most | growth MB |")
    click.echo("|---|---|---|---|---|---|---|---|")
    for count in threads.split(","):
        command = [sys.executable, __file__, "--frames", str(frames), "--child", count]
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        cells = [f"{found[name]:.1f}" for name in ("p50_ms", "p90_ms", "p99_ms", "max_ms", "new_pages")]
        cells += [f"{found['peak_mb']:.0f}", f"{found['growth_mb']:+.1f}"]
        click.echo(f"| {count} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
