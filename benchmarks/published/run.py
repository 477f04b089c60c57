"""Published rows on ZRR and NTIRE 2026 unpaired: training and scores by their protocol, beside the published figures.

    python benchmarks/published/run.py zrr --data ZRR --out runs/zrr --isps pynet,qisp-s --modes supervised,paired
    python benchmarks/published/run.py ntire26 --data NTIRE --out runs/ntire26
    python benchmarks/published/run.py zrr --data ZRR --out runs/zrr --model RUN       # score what is trained already

The folder is the data set as it is handed out (README, Data sets); it may be larger than memory. Resumable: what has a
result is left alone. Steps, batch and crop are those of `train` on this machine unless given, the last step's average
weights are scored, nothing is chosen by test data. With several seeds: mean and spread over them.

    zrr       trained on the training part, scored on all of the test part at its 448 pixels. `plain` is the picture as
              handed out (original GT), `aligned` the same registered to the output, pixels without a match left out.
    ntire26   trained on raws and photos of other scenes; pictures have twice the size of the planes, and the truth is
              brought to it. Where the test raws have no truth, as those of the challenge, pictures are written for its
              server.

`supervised` is the architecture's original loss (without VGG, whose weights are not at hand). `unpaired` on ZRR takes
raws of the first half of the training pairs and photos of the second, and looks for no pairs between them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np

from eguot_sdk.cli import Program
from eguot_sdk.evaluation import Evaluation, Protocol, evaluate
from eguot_sdk.output import write_image
from eguot_sdk.pairs import PairLike
from eguot_sdk.progress import progress_bar
from eguot_train.config import Mode, TrainConfig
from eguot_train.data.batches import load_sources
from eguot_train.data.datasets import Dataset, open_dataset, pairs_of, raws_of
from eguot_train.evaluate import evaluate_model, render_of
from eguot_train.fits import align
from eguot_train.lpips import Lpips
from eguot_train.recipes import for_machine
from eguot_train.reference import Alignment
from eguot_train.render import reference_render
from eguot_train.trainer import train

Name = Literal["zrr", "ntire26"]
METRICS = (("psnr_db", 2), ("ssim", 4), ("ms_ssim", 4), ("de2000", 2), ("lpips", 3))
WINDOW = 512
"""Small pictures in memory at once, of a set larger than memory."""


@dataclass(frozen=True)
class Published:
    """A published row; None: not told."""

    name: str
    protocol: Protocol
    source: str
    differs: str
    """How it came about otherwise than our rows."""
    psnr_db: float | None = None
    ssim: float | None = None
    ms_ssim: float | None = None
    de2000: float | None = None
    lpips: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """A data set's protocol and its published rows."""

    protocols: tuple[Protocol, ...]
    modes: tuple[Mode, ...]
    counts: dict[str, int]
    """Pairs of each part that the published rows had."""
    published: tuple[Published, ...]


BENCHMARKS: dict[Name, Benchmark] = {
    "zrr": Benchmark(
        protocols=("plain", "aligned"),
        modes=("supervised", "paired", "unpaired", "mixed"),
        counts={"train": 46_839, "test": 1_204},
        published=(
            Published(
                "PyNET in PyTorch", "plain", "README of github.com/aiff22/PyNET-PyTorch",
                "levels 5 to 0 trained in turn, with VGG in the loss; no black level; PSNR before rounding to 8 bits",
                psnr_db=21.17, ms_ssim=0.8623,
            ),
            Published(
                "ISPDiffuser", "plain", "its paper; github.com/RenYangSCU/ISPDiffuser",
                "issue 12 there: the best of ten samples, chosen by the truth", psnr_db=21.77, ssim=0.754,
            ),
        ),
    ),
    "ntire26": Benchmark(
        protocols=("ntire26",),
        modes=("unpaired",),
        counts={},
        published=(
            Published(
                "Armangeon et al., 7K parameters, third in SSIM and dE", "ntire26", "arXiv 2605.07495, abstract",
                "the challenge's hidden test set; pseudo-pairs by DINOv2", psnr_db=22.569, ssim=0.675, de2000=8.067,
            ),
        ),
    ),
}  # fmt: skip


def config_of(mode: Mode, isp: str, seed: int, data: Path, steps: int | None, crop: int | None) -> TrainConfig:
    """The config of a row: its folders, and this machine's defaults for the rest."""
    folders = {"raw": str(data), "srgb": str(data)} if mode in ("unpaired", "mixed") else {}
    if mode != "unpaired":
        folders["pairs"] = str(data)
    given: dict[str, Any] = {k: v for k, v in (("steps", steps), ("crop", crop)) if v is not None}
    return for_machine(mode, isp=isp, seed=seed, window=WINDOW, find_pairs=False, **folders, **given)


def run(config: TrainConfig, place: Path, dataset: Dataset, protocols: Sequence[Protocol], lpips: Lpips | None) -> None:
    """Train one row into `place` and score it under each protocol."""
    if not _scored(place, dataset, protocols):
        train(config, place / "run", resume=(place / "run").exists())
        score(place / "run", place, dataset, protocols, lpips)


def score(model: Path, place: Path, dataset: Dataset, protocols: Sequence[Protocol], lpips: Lpips | None) -> None:
    """Scores of a run or file as PLACE/PROTOCOL.json and .csv, or its pictures where there is no truth."""
    pairs = _test_pairs(dataset)
    if not pairs:
        render = render_of(model)
        (place / "pictures").mkdir(parents=True, exist_ok=True)
        for item in progress_bar(raws_of(dataset.part("test")), label="pictures"):
            write_image(place / "pictures" / f"{item.name}.png", render(item.frame()))
    for protocol in protocols if pairs else ():
        _keep(evaluate_model(model, pairs, protocol=protocol, lpips=lpips), place)


def baselines(config: TrainConfig, out: Path, dataset: Dataset, protocols: Sequence[Protocol]) -> None:
    """Rows without training: R(x), and with its colours fitted to the photos of an unpaired run."""
    for name in ("R(x)", "aligned R(x)"):
        place = out / name
        if _scored(place, dataset, protocols) or not _test_pairs(dataset):
            continue
        alignment = align(config, load_sources(config)) if name != "R(x)" else Alignment()
        render = reference_render(alignment, config.color_input)
        for protocol in protocols:
            _keep(evaluate(render, _test_pairs(dataset), label=name, protocol=protocol), place)


def _test_pairs(dataset: Dataset) -> list[PairLike]:
    return list(pairs_of(dataset.part("test")))


def _scored(place: Path, dataset: Dataset, protocols: Sequence[Protocol]) -> bool:
    if not _test_pairs(dataset):
        return (place / "pictures").is_dir() and len(list((place / "pictures").iterdir())) == len(dataset.part("test"))
    return all((place / f"{protocol}.json").is_file() for protocol in protocols)


def _keep(evaluation: Evaluation, place: Path) -> None:
    evaluation.write_csv(place / f"{evaluation.protocol}.csv")
    summary = evaluation.summary() | {"skipped": list(evaluation.skipped)}
    (place / f"{evaluation.protocol}.json").write_text(json.dumps(summary, indent=1))


def table(benchmark: Benchmark, rows: dict[str, list[Path]]) -> Iterator[str]:
    """Markdown, one table a protocol: our rows (name -> folders of the seeds), then the published ones."""
    for protocol in benchmark.protocols:
        yield f"Protocol `{protocol}`:"
        yield ""
        yield "| | PSNR dB | SSIM | MS-SSIM | dE2000 | LPIPS | pictures |"
        yield "|---|---|---|---|---|---|---|"
        for name, places in rows.items():
            files = [place / f"{protocol}.json" for place in places]
            found = [json.loads(file.read_text()) for file in files if file.is_file()]
            if found:
                yield f"| {name} | {' | '.join(_cells(found))} | {found[0]['images']:,} |"
        for row in benchmark.published:
            if row.protocol == protocol:
                values = [getattr(row, metric) for metric, _ in METRICS]
                cells = ["" if v is None else f"{v:.{d}f}" for v, (_, d) in zip(values, METRICS, strict=True)]
                images = f"{benchmark.counts['test']:,}" if benchmark.counts else "hidden"
                yield f"| *published:* {row.name} | {' | '.join(cells)} | {images} |"
        yield ""
    for row in benchmark.published:
        yield f"- {row.name}: {row.source}. Differs: {row.differs}."


def _cells(found: list[dict[str, Any]]) -> list[str]:
    cells = []
    for metric, digits in METRICS:
        values = [scores[metric] for scores in found if scores.get(metric) is not None]
        spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        cells.append(f"{np.mean(values):.{digits}f}{spread}" if values else "n/a")
    return cells


def differing(benchmark: Benchmark, dataset: Dataset) -> list[str]:
    """A warning for each part that is not the one of the published rows."""
    lines = []
    for part, wanted in benchmark.counts.items():
        count = len(pairs_of(dataset.parts.get(part, ())))
        if count != wanted:
            lines.append(f"Not the published split: {count:,} of {wanted:,} {part} pairs are here.")
    return lines


@click.command(cls=Program)
@click.argument("name", type=click.Choice(list(BENCHMARKS)))
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="The data set's folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--isps", default="qisp-s", show_default=True, help="Architectures, with commas.")
@click.option("--modes", help="Of supervised, paired, unpaired, mixed.  [default: all that the data set allows]")
@click.option("--steps", type=click.IntRange(min=1), help="[default: as `train` on this machine]")
@click.option("--crop", type=int, help="Packed pixels.  [default: as `train` on this machine]")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--model", "models", type=click.Path(path_type=Path, exists=True), multiple=True, help="Train nothing.")
@click.option("--lpips", type=click.Path(path_type=Path), help="Folder of LPIPS weights, as of `evaluate`.")
def main(
    name: Name, data: Path, out: Path, isps: str, modes: str | None, steps: int | None, crop: int | None, seeds: int,
    models: tuple[Path, ...], lpips: Path | None,
) -> None:  # fmt: skip
    """Train and score what has no result yet, print the table and write OUT/results.md."""
    benchmark, weights, dataset = BENCHMARKS[name], Lpips.find(lpips), open_dataset(data)
    if dataset.kind != name:
        raise click.UsageError(f"{data}: is {dataset.title}, not the folder of {name}")
    asked = modes.split(",") if modes else benchmark.modes
    if not set(asked) <= set(benchmark.modes):
        raise click.UsageError(f"--modes of {name} are {', '.join(benchmark.modes)}, not {modes}")
    rows: dict[str, list[Path]] = {}
    if models:
        for model in models:
            place = out / "models" / model.name
            place.mkdir(parents=True, exist_ok=True)
            score(model, place, dataset, benchmark.protocols, weights)
            rows[model.name] = [place]
    else:
        first = config_of("unpaired", "qisp-s", 0, data, steps, crop)
        baselines(first, out, dataset, benchmark.protocols)
        rows |= {row: [out / row] for row in ("R(x)", "aligned R(x)")}
        for isp in isps.split(","):
            for mode in [mode for mode in benchmark.modes if mode in asked]:
                row = []
                for seed in range(seeds):
                    config = config_of(mode, isp, seed, data, steps, crop)
                    row.append(out / f"{config.steps}-steps" / isp / mode / f"seed{seed}")
                    run(config, row[-1], dataset, benchmark.protocols, weights)
                rows[f"{isp}, {mode}, {config.steps:,} steps"] = row
    text = "\n".join([*differing(benchmark, dataset), "", *table(benchmark, rows)]).strip()
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.md").write_text(text + "\n")
    click.echo(text)


if __name__ == "__main__":
    main()
