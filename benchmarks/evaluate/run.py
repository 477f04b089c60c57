"""Whether `evaluate` streams: time, cores in use and peak memory of the command on 100 pairs and on 1,000.

    python benchmarks/evaluate/run.py --out runs/evaluate

Pairs of 192 x 192 pixels: 50 procedural scenes shot by a synthetic camera, under as many names as asked for.
Memory is what the command and its processes hold together, pages that they share counted for each, looked at four times
a second. Cores in use are those the machine gives: the figure is one for a machine with nothing else to do.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import click

from eguot_devices.machine import family_memory_mb
from eguot_sdk.cli import Program
from eguot_sdk.pairs import TRUTH_SUFFIXES, write_pair
from eguot_train.data.scenes import make_scene
from eguot_train.data.synth import SynthCamera

SIDE, SCENES = 192, 50


def make(folder: Path, count: int) -> None:
    """`count` pairs, of which every SCENES-th is the same file."""
    camera = SynthCamera.from_seed(0)
    for i in range(SCENES):
        scene = make_scene(i, SIDE, SIDE)
        write_pair(folder, f"{i:05d}", camera.shoot(scene, f"scene{i}"), scene)
    for i in range(SCENES, count):
        for suffix in ("_raw.png", ".json", TRUTH_SUFFIXES[0]):
            os.link(folder / f"{i % SCENES:05d}{suffix}", folder / f"{i:05d}{suffix}")


def measure(pairs: Path, model: str, protocol: str) -> tuple[float, float, float, dict[str, float]]:
    """Seconds, cores in use, peak MB and scores of one call."""
    command = [sys.executable, "-m", "eguot_sdk.cli", "evaluate", model, "--pairs", str(pairs), "--protocol", protocol]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    peak = 0.0
    with subprocess.Popen([*command, "--out", str(pairs.parent), "--json"], stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, family_memory_mb(process.pid))
            time.sleep(0.25)
        assert process.stdout is not None
        scores = json.loads(process.stdout.read())
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds, busy / seconds, peak, scores


@click.command(cls=Program)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--model", default="default", show_default=True, help="Run folder, ISP file or `default`.")
@click.option("--protocol", default="plain", show_default=True)
@click.option("--counts", default="100,1000", show_default=True)
def main(out: Path, model: str, protocol: str, counts: str) -> None:
    """Print the table."""
    click.echo("| pairs | seconds | pairs a second | cores in use | peak MB | PSNR dB |")
    click.echo("|---|---|---|---|---|---|")
    for count in map(int, counts.split(",")):
        folder = out / f"pairs-{count}"
        if not folder.is_dir():
            make(folder, count)
        seconds, cores, peak, scores = measure(folder, model, protocol)
        assert scores["images"] == count
        row = f"{seconds:.1f} | {count / seconds:.1f} | {cores:.2f} | {peak:.0f} | {scores['psnr_db']:.2f}"
        click.echo(f"| {count} | {row} |")


if __name__ == "__main__":
    main()
