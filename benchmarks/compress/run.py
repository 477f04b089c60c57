"""What compression costs: the README's table of compressed networks, by one resumable command.

    python benchmarks/compress/run.py --out runs/compress                   # trains, compresses, scores, times, prints
    python benchmarks/compress/run.py --out runs/compress --only measure    # times and prints again (quiet machine)

The photos of examples/photos that `split.json` names `raw` and `srgb` (42) are shot by synthetic camera 0 for training,
those named `test` (18) for scoring; nothing is chosen by the latter. Each network is trained supervised, quantised
after training, and trained with rounding; each becomes a file, and files are scored through LiteRT on whole frames.
The twin is the torch network with the rounding of the file. A stage that has its result is not run again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from eguot_compress.convert import convert
from eguot_compress.exact_picture import exact_picture
from eguot_compress.fake_quant import quantise_body
from eguot_compress.material import Folders
from eguot_compress.ptq import quantize
from eguot_compress.qat import qat
from eguot_compress.quant_run import load_quantised, load_scales, unfinished_name
from eguot_devices.timing import repeat
from eguot_sdk.cli import Program
from eguot_sdk.evaluation import evaluate
from eguot_sdk.ingest import Ingest, dequantise
from eguot_sdk.isp import ISP
from eguot_sdk.ispfile import describe, read_spec
from eguot_sdk.pairs import Pair, list_pairs
from eguot_sdk.raw import RawFrame
from eguot_sdk.runtimes import open_runtime
from eguot_sdk.spec import IspSpec
from eguot_train.checkpoint import LoadedRun, load_run
from eguot_train.data.synth import synth_folder
from eguot_train.recipes import for_machine
from eguot_train.render import frame_planes, to_uint8
from eguot_train.trainer import train

PHOTOS = Path(__file__).resolve().parents[2] / "examples" / "photos"

SEED = 0
TILE = 256
"""Side of the tile that is timed, packed pixels; both files of a network get the same."""
ROUNDS, SECONDS = 3, 1.5
"""Files are timed in turn, so that a busy moment hits all."""


@dataclass(frozen=True)
class Row:
    """How long a network trains."""

    steps: int
    qat_steps: int


ROWS = {
    "qisp-s": Row(1500, 600),
    "qisp-m": Row(1500, 600),
    "efficientisp": Row(1500, 600),
    "robustisp": Row(1500, 600),
}
KINDS = {"float": "fp32", "ptq": "w8a8", "qat": "w8a8"}
"""Run of a network -> precision of its file."""


def make_data(photos: Path, out: Path) -> None:
    """OUT/train and OUT/test, each with raw/ and pairs/."""
    if out.exists():
        return
    split = json.loads((photos / "split.json").read_text())
    building = out.with_name(out.name + ".part")
    shutil.rmtree(building, ignore_errors=True)
    for part, keys in (("train", ("raw", "srgb")), ("test", ("test",))):
        folder = building / "photos" / part
        folder.mkdir(parents=True)
        for name in (n for key in keys for n in split[key]):
            shutil.copy(photos / name, folder / name)
        synth_folder(building / part, srgb=folder, seed=SEED)
    building.rename(out)


def make_runs(isp: str, pairs: Path, out: Path) -> None:
    """OUT/float, OUT/ptq and OUT/qat."""
    config = for_machine("supervised", isp=isp, pairs=str(pairs), steps=ROWS[isp].steps, seed=SEED)
    run = out / "float"
    if not run.exists() or load_run(run).step < config.steps:
        train(config, run, resume=run.exists())
    folders = Folders(pairs=pairs)
    if not (out / "ptq").exists():
        quantize(run, out / "ptq", folders=folders, seed=SEED)
    if not (out / "qat").exists():
        begun = unfinished_name(out / "qat").is_dir()
        qat(run, out / "qat", folders=folders, steps=ROWS[isp].qat_steps, seed=SEED, resume=begun)


def make_file(run: Path, precision: str, pairs: Path) -> tuple[Path, dict[str, Any]]:
    """RUN's .tflite beside it, and what conversion found out."""
    folder = run.with_name(f"{run.name}-file")
    found, path = folder / "parity.json", folder / f"{run.name}.{precision}.tflite"
    if not found.is_file():
        (result,) = convert(run, folder, precisions=[precision], calibration=pairs)
        scales = result.parity.scales
        record = {"scales": scales.total if scales else 0, "scales_differing": scales.differing if scales else 0,
                  "banding_lsb": result.parity.banding_lsb}  # fmt: skip
        found.write_text(json.dumps(record))
    return path, json.loads(found.read_text())


def twin_render(run: Path, loaded: LoadedRun, spec: IspSpec) -> Callable[[RawFrame], np.ndarray]:
    """How the torch network with the rounding of the file renders whole frames, of the int8 planes that the file gets.

    Ingest's tables put one int8 sample in seventy on another step than rounded float planes lie on.
    """
    held = load_quantised(run, loaded.net)
    assert held is not None
    body = quantise_body(held[0], bits=8)
    body.load_state(held[1])
    body.eval()

    def render(frame: RawFrame) -> np.ndarray:
        planes, (y, x) = frame_planes(frame, loaded.config.color_input, loaded.net.halo, loaded.net.multiple)
        stored = np.empty((*planes.shape[2:], 4), np.int8)
        Ingest(frame, spec).fill(stored, -loaded.net.halo, -loaded.net.halo)
        planes = torch.from_numpy(dequantise(stored, spec.input)).permute(2, 0, 1)[None]
        return to_uint8(
            exact_picture(body, loaded.net.shuffle, planes)[0, :, y : y + frame.height, x : x + frame.width]
        )

    return render


def score(run: Path, path: Path, pairs: list[Pair]) -> dict[str, Any]:
    """Metrics of a file, and of its twin with how far the two are apart; kept in RUN-file/score.json."""
    kept = path.with_name("score.json")
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    with ISP.load(path) as isp:
        found: dict[str, Any] = evaluate(isp.process, pairs, label=f"{run.parent.name} {run.name}").summary()
        if load_scales(run) is not None:
            twin = twin_render(run, load_run(run), read_spec(path))
            found["twin"] = evaluate(twin, pairs, label=f"{run.parent.name} {run.name} in torch").summary()
            apart = [np.abs(isp.process(f).astype(int) - twin(f)) for f in (pair.frame() for pair in pairs)]
            pixels = np.concatenate([a.max(2).ravel() for a in apart])
            found["over_2_lsb"] = float((pixels > 2).mean())
            found["max_lsb"] = int(pixels.max())
    facts = describe(path)
    found |= {"bytes": facts["bytes"], "constant_bytes": facts["constant_bytes"]}
    kept.write_text(json.dumps(found, indent=1))
    return found


def time_files(paths: list[Path]) -> list[float]:
    """Median ms of one tile, one thread, of each file; the least median over rounds that take turns."""
    best = [np.inf] * len(paths)
    for _ in range(ROUNDS):
        for i, path in enumerate(paths):
            runtime = open_runtime(path, threads=1)
            runtime.resize(TILE, TILE)
            runtime.input()[:] = 0
            latency = repeat(runtime.invoke, seconds=SECONDS, min_runs=10, on_run=lambda _: None)
            runtime.close()
            best[i] = min(best[i], latency.p50_ms or latency.first_ms)
    return [float(b) for b in best]


def table(out: Path, isps: list[str]) -> str:
    """The README's table."""
    lines = [
        "| | parameters | PSNR dB | SSIM | dE2000 | file bytes | weights | ms a tile | file against torch: dB, pixels "
        "over 2 LSB | scales equal |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for isp in isps:
        folder = out / isp
        parameters = load_run(folder / "float").net.deploy().parameter_count()
        files = {kind: folder / f"{kind}-file" for kind in KINDS}
        scores = {kind: json.loads((f / "score.json").read_text()) for kind, f in files.items()}
        times = dict(zip(KINDS, json.loads((folder / "times.json").read_text()), strict=True))
        base = scores["float"]
        for kind, found in scores.items():
            parity = json.loads((files[kind] / "parity.json").read_text())
            weights = f"{100 * found['constant_bytes'] / base['constant_bytes']:.1f}%"
            size = f"{found['bytes']:,} ({100 * found['bytes'] / base['bytes']:.0f}%)"
            speed = f"{times[kind]:.1f}" + ("" if kind == "float" else f" ({times['float'] / times[kind]:.1f}x)")
            against = equal = ""
            if kind != "float":
                against = f"{found['psnr_db'] - found['twin']['psnr_db']:+.4f}, {100 * found['over_2_lsb']:.4f}%"
                equal = f"{parity['scales'] - parity['scales_differing']} of {parity['scales']}"
            name = {"float": f"{isp}, fp32", "ptq": f"{isp}, PTQ", "qat": f"{isp}, QAT"}[kind]
            lines.append(
                f"| {name} | {parameters:,} | {found['psnr_db']:.2f} | {found['ssim']:.4f} | {found['de2000']:.2f} | "
                f"{size} | {weights} | {speed} | {against} | {equal} |"
            )
    return "\n".join(lines)


@click.command(cls=Program)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--photos", type=click.Path(path_type=Path, exists=True), default=PHOTOS,
              help="[default: those of examples/]")  # fmt: skip
@click.option("--isps", default=",".join(ROWS), show_default=True, help="Comma list of rows.")
@click.option("--only", type=click.Choice(["prepare", "measure"]), help="Everything but timing, or timing alone.")
def main(out: Path, photos: Path, isps: str, only: str | None) -> None:
    """Run what is missing and print the table."""
    names = isps.split(",")
    if only != "measure":
        make_data(photos, out / "data")
        pairs, test = out / "data" / "train" / "pairs", list_pairs(out / "data" / "test" / "pairs")
        for isp in names:
            make_runs(isp, pairs, out / isp)
            for kind, precision in KINDS.items():
                path, _ = make_file(out / isp / kind, precision, pairs)
                score(out / isp / kind, path, test)
    if only != "prepare":
        for isp in names:
            paths = [out / isp / f"{kind}-file" / f"{kind}.{precision}.tflite" for kind, precision in KINDS.items()]
            (out / isp / "times.json").write_text(json.dumps(time_files(paths)))
        click.echo(table(out, names))


if __name__ == "__main__":
    main()
