"""Quality against latency: every architecture after the same short training, as an int8 file on its runtime.

    EGUOT_TRUST_RUN=1 python benchmarks/front/run.py train --out runs/front   # resumable: train, score, convert
    EGUOT_TRUST_RUN=1 python benchmarks/front/run.py train --out runs/front --seed 1 --isps qisp-xs,qisp-s --shapes ''
    EGUOT_TRUST_RUN=1 python benchmarks/front/run.py measure --out runs/front # on a machine with nothing else to do
    EGUOT_TRUST_RUN=1 python benchmarks/front/run.py draw --out runs/front    # table, front.json, front.png

All are trained on pairs by one loss (`paired` with transport off), not their own, with equal steps, batch, crop and
rate; quality is that of the float network on the held-out pairs of development split 5 of the synthetic camera
(other scenes and another camera than the README's table), and of its w8a8 file by post-training quantisation, the mean
over seeds where there are several. Latency is milliseconds of one thread per output megapixel of a 256 x 256 tile of
packed pixels: the median of 15 runs, counted in the thread's own time, least of three rounds that take turns.
What does not convert is listed with the reason.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from eguot_compress.convert import convert
from eguot_sdk.cli import Programs
from eguot_sdk.errors import EguotError
from eguot_sdk.evaluation import evaluate
from eguot_sdk.isp import ISP
from eguot_sdk.ispfile import read_spec
from eguot_sdk.pairs import list_pairs
from eguot_sdk.runtimes import open_runtime
from eguot_train.checkpoint import load_run
from eguot_train.data.splits import synthetic_split
from eguot_train.isps.base import macs_per_pixel
from eguot_train.recipes import for_machine
from eguot_train.render import render_frame
from eguot_train.trainer import train as train_run

PHOTOS = Path(__file__).resolve().parents[2] / "examples" / "photos"

SHAPES = "Q24x2,Q32x1,Q32x2,Q32x5,Q48x4,Q64x2,Q64x4"
ISPS = "qisp-xs,qisp-s,qisp-m,qisp-l,robustisp,efficientisp,lan,microisp,punet,unet32,syenet"
SPLIT = 5
TILE, RUNS, ROUNDS = 256, 15, 3
SHOWN_DB = 3.0
"""How far below the best the picture reaches."""


def make(isp: str, out: Path, data: Path, steps: int, seed: int) -> None:
    """Train, score and convert one architecture; a finished one is left alone."""
    place = out / f"{isp.removeprefix('candidates:')}-seed{seed}"
    if (place / "quality.json").is_file():
        return
    config = for_machine(
        "paired", isp=isp, pairs=str(data / "train" / "pairs"), steps=steps, seed=seed, batch=8, crop=32, lr=1e-3,
        transport=0.0, checkpoint_every=steps, sheet_every=10 * steps,
    )  # fmt: skip
    train_run(config, place / "run", resume=(place / "run").exists())
    net = load_run(place / "run").net
    pairs = list_pairs(data / "test" / "pairs")
    record: dict[str, Any] = {
        "isp": net.name,
        "seed": seed,
        "steps": steps,
        "parameters": net.deploy().parameter_count(),
    }
    record |= {"macs_per_pixel": macs_per_pixel(net.deploy()), "mobile_safe": net.mobile_safe}
    record["float"] = evaluate(lambda f: render_frame(net, f, config.color_input), pairs, label=net.name).summary()
    for precision in ("w8a8", "fp32"):
        try:
            made = convert(
                place / "run", place, formats=("tflite",), precisions=(precision,), calibration=data / "train" / "raw"
            )[0]
            assert made.path is not None  # `convert` raises where a file falls short
            record[f"{precision}_file"] = made.path.name
        except EguotError as error:
            record[f"{precision}_refused"] = str(error)
    if "w8a8_file" in record:
        try:
            with ISP.load(place / record["w8a8_file"]) as isp_file:
                record["w8a8"] = evaluate(isp_file.process, pairs, label=f"{net.name} w8a8").summary()
        except EguotError as error:
            record["w8a8_refused"] = str(error)
    (place / "quality.json").write_text(json.dumps(record, indent=1))


def latency_ms(path: Path) -> tuple[float, float]:
    """Median of one tile's milliseconds per megapixel of output, and how far its quartiles are apart."""
    runtime, spec = open_runtime(path, threads=1), read_spec(path)
    try:
        side = spec.tile + 2 * spec.halo if spec.fixed_tile else TILE
        runtime.resize(side, side)
        rng = np.random.default_rng(0)
        stored = runtime.input()
        stored[...] = rng.integers(-128, 128, stored.shape) if stored.dtype == np.int8 else rng.random(stored.shape)
        del stored
        times = []
        for run in range(RUNS + 3):
            start = time.thread_time()
            runtime.invoke()
            if run >= 3:
                times.append((time.thread_time() - start) * 1e3 / (4 * side * side / 1e6))
    finally:
        runtime.close()
    low, _, high = statistics.quantiles(times, n=4)
    return statistics.median(times), high - low


def dominated(row: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Whether another int8 file is no slower and better, or no worse and faster."""
    return any(
        other["ms"] <= row["ms"]
        and other["psnr"] >= row["psnr"]
        and (other["ms"], other["psnr"]) != (row["ms"], row["psnr"])
        for other in rows
    )


@click.group(cls=Programs)
def main() -> None:
    """Quality against latency of all architectures."""


OUT = click.option("--out", type=click.Path(path_type=Path), required=True)


@main.command()
@OUT
@click.option("--isps", default=ISPS, show_default=True)
@click.option("--shapes", default=SHAPES, show_default=True, help="Of candidates.py.")
@click.option("--steps", type=click.IntRange(min=1), default=400, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--photos", type=click.Path(path_type=Path, exists=True), default=PHOTOS,
              help="[default: those of examples/]")  # fmt: skip
def train(out: Path, isps: str, shapes: str, steps: int, seed: int, photos: Path) -> None:
    """Train, score and convert what has no result yet."""
    data = out / "data"
    if not data.is_dir():
        out.mkdir(parents=True, exist_ok=True)
        synthetic_split(photos, data, "disjoint", SPLIT)
    for isp in [name for name in isps.split(",") if name] + [f"candidates:{s}" for s in shapes.split(",") if s]:
        make(isp, out, data, steps, seed)


@main.command()
@OUT
def measure(out: Path) -> None:
    """Latency of every file of the first seed, one after the other: it does not depend on the weights."""
    records = {path.parent: json.loads(path.read_text()) for path in sorted(out.glob("*-seed0/quality.json"))}
    times: dict[tuple[Path, str], list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for folder, record in records.items():
            for precision in ("w8a8", "fp32"):
                if f"{precision}_file" in record:
                    measured = latency_ms(folder / record[f"{precision}_file"])
                    times.setdefault((folder, precision), []).append(measured)
    for folder in records:
        found = {}
        for precision in ("w8a8", "fp32"):
            if (folder, precision) in times:
                ms, spread = min(times[folder, precision])
                found[precision] = {"ms_per_megapixel": ms, "spread_ms": spread}
                click.echo(f"{folder.name} {precision}: {ms:.1f} ms per megapixel, quartiles {spread:.1f} apart")
        (folder / "latency.json").write_text(json.dumps(found, indent=1))


def rows_of(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One row an architecture, PSNR the mean over its seeds: those with an int8 file by their time, then the others."""
    rows, others = [], []
    for path in sorted(out.glob("*-seed0/quality.json")):
        name = path.parent.name.removesuffix("-seed0")
        seeds = [json.loads(p.read_text()) for p in sorted(out.glob(f"{name}-seed*/quality.json"))]
        row = seeds[0] | {"seeds": len(seeds), "latency": json.loads((path.parent / "latency.json").read_text())}
        row["float_psnr"] = statistics.mean(record["float"]["psnr_db"] for record in seeds)
        if "w8a8" in row["latency"] and all("w8a8" in record for record in seeds):
            row["ms"] = row["latency"]["w8a8"]["ms_per_megapixel"]
            row["psnr"] = statistics.mean(record["w8a8"]["psnr_db"] for record in seeds)
            rows.append(row)
        else:
            others.append(row)
    return sorted(rows, key=lambda row: row["ms"]), others


@main.command()
@OUT
def draw(out: Path) -> None:
    """The table and the picture."""
    rows, others = rows_of(out)
    click.echo("| | parameters | MAC/pixel | int8 ms/MP | fp32 ms/MP | float PSNR | int8 PSNR | seeds | on the front |")
    click.echo("|---|---|---|---|---|---|---|---|---|")
    for row in [*rows, *others]:
        fp32 = row["latency"].get("fp32", {}).get("ms_per_megapixel")
        int8 = f"{row['ms']:.1f}" if "ms" in row else "no int8 file"
        quality = f"{row['psnr']:.2f}" if "psnr" in row else ""
        front = "" if "ms" not in row or dominated(row, rows) else "yes"
        click.echo(
            f"| {row['isp']} | {row['parameters']:,} | {row['macs_per_pixel']:,.0f} | {int8} "
            f"| {f'{fp32:.1f}' if fp32 else ''} | {row['float_psnr']:.2f} | {quality} | {row['seeds']} | {front} |"
        )
    for row in others:
        click.echo(f"{row['isp']}: {row.get('w8a8_refused', '')}", err=True)
    (out / "front.json").write_text(json.dumps([*rows, *others], indent=1))
    picture(rows, others, out / "front.png")


def picture(rows: list[dict[str, Any]], others: list[dict[str, Any]], path: Path) -> None:
    """Points by name, the front as a line; what is far below or has no int8 file is listed above it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    floor = max(row["psnr"] for row in rows) - SHOWN_DB
    for row in rows:
        if row["psnr"] >= floor:
            ours = row["isp"].startswith("qisp")
            axes.scatter(row["ms"], row["psnr"], color="tab:blue" if ours else "tab:orange", zorder=3)
            above = not dominated(row, rows)
            axes.annotate(
                row["isp"], (row["ms"], row["psnr"]), xytext=(0, 6 if above else -6), textcoords="offset points",
                fontsize=8, rotation=70, ha="left" if above else "right", va="bottom" if above else "top",
            )  # fmt: skip
    left = [f"{r['isp']} {r['psnr']:.1f}" for r in rows if r["psnr"] < floor]
    left += [f"{r['isp']} {r['float_psnr']:.1f} (float)" for r in others]
    if left:
        axes.set_title("below the axis, dB: " + ", ".join(left), fontsize=8)
    front = [row for row in rows if not dominated(row, rows)]
    axes.step([r["ms"] for r in front], [r["psnr"] for r in front], where="post", color="tab:blue", alpha=0.4)
    axes.set(
        xscale="log",
        xlabel="ms per output megapixel, one CPU thread",
        ylabel="PSNR dB on held-out pairs, after equal short training",
    )
    axes.margins(x=0.12, y=0.25)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
