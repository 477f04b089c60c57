"""The retraining table: architectures by training mode, on a synthetic camera and on real pairs, by one command.

    python benchmarks/retraining/run.py --out runs/retraining                 # what has no result yet, then the tables
    python benchmarks/retraining/run.py --out runs/retraining --table-only

Started several times at once, the processes share the work. Every run of a table has the same steps, batch, crop,
learning rate and seed. `supervised` is the architecture's original loss and optimiser on the pairs of the raw scenes,
`paired` EGUOT on the same pairs; `unpaired` sees the raws of those scenes and photos of other scenes; `mixed` sees all
of it. Data sets:

    synth          examples/photos shot by the synthetic camera of a split: 21 raw, 21 target and 18 test scenes
    shuffled       the same camera and test scenes, 42 scenes both raw and target; nobody says which belong together
    real           a folder of real pairs (--real) in folds: each scene is tested once, the others are raws or targets
    real-shuffled  the same folds, the other scenes both raw and target

No test scene is trained on, and but for the shuffled sets no scene is on two sides. Split 0 alone, or with `--splits N`
the means over N splits, each another drawing of the scenes and another camera. Nothing is chosen by test scenes: the
last step's average weights are scored, protocol `plain`. Differences come with 95% intervals of a paired bootstrap over
test pictures: they say nothing about seeds.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from eguot_sdk.cli import Program
from eguot_sdk.evaluation import METRICS as ALL_METRICS
from eguot_sdk.evaluation import Evaluation, ImageScore, evaluate
from eguot_sdk.pairs import list_pairs
from eguot_train.checkpoint import load_run
from eguot_train.config import TrainConfig
from eguot_train.data.batches import load_sources
from eguot_train.data.splits import real_split, synthetic_split
from eguot_train.fits import align
from eguot_train.recipes import for_machine
from eguot_train.reference import Alignment
from eguot_train.render import reference_render, render_frame
from eguot_train.trainer import train

PHOTOS = Path(__file__).resolve().parents[2] / "examples" / "photos"

MODES = ("supervised", "paired", "unpaired", "mixed")
ISPS = "qisp-s,qisp-m,efficientisp,robustisp,qisp-xs"
SYNTHETIC = {"synth": "disjoint", "shuffled": "shuffled"}
REAL = {"real": "disjoint", "real-shuffled": "shuffled"}
"""Name of a data set -> its protocol."""
METRICS = (("psnr_db", 2), ("ssim", 3), ("de2000", 2))
BOOTSTRAP = 4000


@dataclass(frozen=True)
class Job:
    """One run of the table."""

    data: str
    isp: str
    mode: str
    seed: int

    def place(self, out: Path, steps: int) -> Path:
        return out / f"{steps}-steps" / self.data / self.isp / self.mode / f"seed{self.seed}"


def make_data(name: str, out: Path, photos: Path, real: Path | None) -> Path:
    """The folder of a data set, made where absent: synth, synthN, shuffled, shuffledN, realN, real-shuffledN."""
    place = out / "data" / name
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        kind = name.rstrip("0123456789")
        part = int(name.removeprefix(kind) or 0)
        if kind in SYNTHETIC:
            synthetic_split(photos, place, SYNTHETIC[kind], part)
        else:
            assert real is not None
            real_split(real, place, REAL[kind], part)
    return place


def config_of(job: Job, data: Path, steps: int, crop: int) -> TrainConfig:
    """The config of a run: only mode, architecture and folders differ within a table."""
    folders: dict[str, Path] = {}
    if job.mode in ("unpaired", "mixed"):
        folders |= {"raw": data / "train" / "pairs", "srgb": data / "photos" / "srgb"}
    if job.mode != "unpaired":
        folders["pairs"] = data / "train" / "pairs"
    fields: dict[str, Any] = {key: str(path) for key, path in folders.items()}
    return for_machine(
        job.mode, isp=job.isp, seed=job.seed, steps=steps, crop=crop, batch=8, lr=1e-3, checkpoint_every=steps,
        sheet_every=10 * steps, **fields,
    )  # fmt: skip


def run(job: Job, data: Path, out: Path, steps: int, crop: int) -> None:
    """Train and score one run, or render one reference; a finished one is left alone."""
    place = job.place(out, steps)
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process is at it
            return
        if not (place / "result.json").is_file():
            _run(job, place, data, steps, crop)


def _run(job: Job, place: Path, data: Path, steps: int, crop: int) -> None:
    config = config_of(job, data, steps, crop) if job.isp != "R(x)" else _reference_config(data, crop)
    started = time.monotonic()
    if job.isp == "R(x)":
        alignment = align(config, load_sources(config)) if job.mode == "aligned" else Alignment()
        render = reference_render(alignment, config.color_input)
    else:
        train(config, place / "run", resume=(place / "run").exists())
        net = load_run(place / "run").net
        render = lambda frame: render_frame(net, frame, config.color_input)  # noqa: E731
    scores = evaluate(render, list_pairs(data / "test" / "pairs"), label=f"{job.data} {job.isp} {job.mode}").scores
    record = {"seconds": time.monotonic() - started, "config": asdict(config), "scores": [asdict(s) for s in scores]}
    (place / "result.json").write_text(json.dumps(record, indent=1))


def _reference_config(data: Path, crop: int) -> TrainConfig:
    return TrainConfig(
        mode="unpaired", crop=crop, raw=str(data / "train" / "pairs"), srgb=str(data / "photos" / "srgb")
    )


def scores_of(out: Path, steps: int, data: Sequence[str], isp: str, mode: str, seeds: int) -> Evaluation | None:
    """Scores over all test pictures of the folds, each the mean over seeds; None where a run is missing."""
    scores = []
    for name in data:
        by_seed = []
        for seed in range(seeds if isp != "R(x)" else 1):
            path = Job(name, isp, mode, seed).place(out, steps) / "result.json"
            if not path.is_file():
                return None
            by_seed.append(json.loads(path.read_text())["scores"])
        for images in zip(*by_seed, strict=True):
            means = {key: float(np.mean([i[key] for i in images])) for key in ALL_METRICS}
            scores.append(ImageScore(name=images[0]["name"], **means))
    return Evaluation(tuple(scores))


def difference(first: Evaluation, second: Evaluation, metric: str) -> tuple[float, float, float]:
    """Mean of first - second over images and its 95% interval by bootstrap over images."""
    gaps = np.array([getattr(a, metric) - getattr(b, metric) for a, b in zip(first.scores, second.scores, strict=True)])
    draws = np.random.default_rng(0).integers(len(gaps), size=(BOOTSTRAP, len(gaps)))
    low, high = np.quantile(gaps[draws].mean(axis=1), (0.025, 0.975))
    return float(gaps.mean()), float(low), float(high)


def table(out: Path, steps: int, data: Sequence[str], isps: Sequence[str], seeds: int) -> Iterator[str]:
    """Markdown: scores by architecture and mode, then differences to the original loss."""
    yield "| PSNR dB / SSIM / dE2000 | " + " | ".join(("original loss", *(f"EGUOT {m}" for m in MODES[1:]))) + " |"
    yield "|---|" + "---|" * len(MODES)
    found = {(i, m): scores_of(out, steps, data, i, m, seeds) for i in isps for m in MODES}
    for isp in isps:
        yield f"| {isp} | " + " | ".join(_cell(found[isp, mode]) for mode in MODES) + " |"
    for name, mode in (("R(x)", "plain"), ("aligned R(x)", "aligned")):
        if reference := scores_of(out, steps, data, "R(x)", mode, 1):
            yield f"| {name}, no training | {_cell(reference)} |" + " |" * (len(MODES) - 1)
    yield ""
    yield "| minus original loss | " + " | ".join(
        f"{m}: {metric}" for m in ("paired", "unpaired") for metric, _ in METRICS
    )
    yield "|---|" + "---|" * 6
    for isp in isps:
        cells = []
        for mode in ("paired", "unpaired"):
            ours, original = found[isp, mode], found[isp, "supervised"]
            for metric, digits in METRICS:
                if ours is None or original is None:
                    cells.append("")
                    continue
                mean, low, high = difference(ours, original, metric)
                cells.append(f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]")
        yield f"| {isp} | " + " | ".join(cells) + " |"


def _cell(scores: Evaluation | None) -> str:
    return " / ".join(f"{scores.mean(metric):.{digits}f}" for metric, digits in METRICS) if scores else "not run"


@click.command(cls=Program)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--photos", type=click.Path(path_type=Path, exists=True), default=PHOTOS,
              help="[default: those of examples/]")  # fmt: skip
@click.option("--real", type=click.Path(path_type=Path, exists=True), help="Folder of at least eight real pairs.")
@click.option(
    "--folds", type=click.IntRange(1, 4), default=4, show_default=True, help="Folds of the real pairs to run."
)
@click.option("--sets", help="Data sets.  [default: synth,shuffled; with --real all four]")
@click.option("--splits", type=click.IntRange(min=1), default=1, show_default=True, help="Of each synthetic set.")
@click.option("--isps", default=ISPS, show_default=True)
@click.option("--modes", default=",".join(MODES), show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=400, show_default=True)
@click.option("--crop", type=int, default=32, show_default=True, help="Packed pixels.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--table-only", is_flag=True, help="Train nothing.")
def main(
    out: Path, photos: Path, real: Path | None, folds: int, sets: str | None, splits: int, isps: str, modes: str,
    steps: int, crop: int, seeds: int, table_only: bool,
) -> None:  # fmt: skip
    """Run what has no result yet, print the tables and write OUT/results.md."""
    known, names = {**SYNTHETIC, **REAL}, isps.split(",")
    wanted = sets.split(",") if sets else [*(known if real else SYNTHETIC)]
    if unknown := sorted({*wanted} - {*known} | {*modes.split(",")} - {*MODES}):
        raise click.UsageError(f"unknown {unknown[0]!r}: sets are {', '.join(known)}, modes {', '.join(MODES)}")
    if {*wanted} & {*REAL} and real is None and not table_only:
        raise click.UsageError("the real pairs are not part of this repository: --real FOLDER")
    folders_of = {
        name: [f"{name}{fold}" for fold in range(folds)]
        if name in REAL
        else [name, *(f"{name}{split}" for split in range(1, splits))]
        for name in wanted
    }
    jobs = [
        Job(data, isp, mode, seed)
        for folders in folders_of.values()
        for seed in range(seeds)
        for data in folders
        for isp, mode in [("R(x)", "plain"), ("R(x)", "aligned"), *((i, m) for i in names for m in modes.split(","))]
        if isp != "R(x)" or seed == 0
    ]
    for folder in dict.fromkeys(job.data for job in jobs) if not table_only else ():
        make_data(folder, out, photos, real)
    for job in jobs if not table_only else ():
        run(job, out / "data" / job.data, out, steps, crop)
    text = []
    for name, folders in folders_of.items():
        text += [f"### {name} ({', '.join(folders)}), {steps} steps, {seeds} seed{'s' if seeds > 1 else ''}", ""]
        text += [*table(out, steps, folders, names, seeds), ""]
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.md").write_text("\n".join(text))
    click.echo("\n".join(text))


if __name__ == "__main__":
    main()
