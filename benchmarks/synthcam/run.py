"""The evidence on a synthetic camera: every row of the README's table, by one resumable command.

    python benchmarks/synthcam/run.py --out runs/synthcam                     # rows of the README
    python benchmarks/synthcam/run.py --out runs/synthcam --rows supervised,pseudo --steps 500
    python benchmarks/synthcam/run.py --out runs/scenes --scenes 84        # 84 procedural scenes a side, no photos

Photos are split by scene into raw scenes, target scenes and test scenes; a synthetic camera (its seed is the split's
number) shoots the first and the last. Protocols: `disjoint`, no scene on two sides; `shuffled`, raws and targets show
the same scenes, unaligned (the field's). Test scenes are never shared, and nothing is chosen by them. A row that
has its result is not run again.
"""

from __future__ import annotations

import csv
import json
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from eguot_sdk.cli import Program
from eguot_sdk.evaluation import Render, evaluate
from eguot_sdk.isp import ISP
from eguot_sdk.likeness import PictureSet, summarise
from eguot_sdk.pairs import Pair, list_pairs
from eguot_sdk.raw import RawFrame
from eguot_train.checkpoint import load_run
from eguot_train.config import Mode
from eguot_train.cost import cost_terms
from eguot_train.data.batches import load_sources, pictures
from eguot_train.data.crops import PHOTO_SUFFIXES, find_files, load_photo
from eguot_train.data.scenes import make_scene
from eguot_train.data.splits import synthetic_split
from eguot_train.fits import align
from eguot_train.recipes import for_machine
from eguot_train.reference import Alignment
from eguot_train.render import reference_render, render_frame
from eguot_train.trainer import train

PHOTOS = Path(__file__).resolve().parents[2] / "examples" / "photos"

METRICS = ("psnr_db", "ssim", "de2000", "psnr_affine_db")


@dataclass(frozen=True)
class Row:
    """One line of the table: a training mode with settings, and what it shows."""

    mode: Mode
    settings: tuple[str, ...]
    shows: str
    pairs: float = 1.0
    """Share of the raw scenes that are also given as pairs."""
    outliers: float = 0.0
    """Share of the target photos that are replaced by atypical ones."""
    left_out: bool = False
    """Leave the place of those photos empty instead: what their absence alone costs."""
    find_pairs: bool = False
    """Look for raws and photos of one scene: under `shuffled` every raw has its photo, and all are found."""


COMMITTEE = "experts=colour,structure,frequency"
SHARES = "omega=0.02,0.02,0.02"
ALONE = ("pseudo=0", "warmup=0.5")
"""No pseudo-pairs: after half of the steps spent on the aligned reference rendering the picture is left to transport
and the committee, as in the paper."""
C2_ALONE = (*ALONE, "cost_weights=0,0,0,1,0")
"""A cost that does not see colour (`train/LOG.md`, T8 b)."""
BALANCED = ("psi_target=linear", "weighted_alignment=false")
"""Every target counts in full everywhere: in the transport and in the alignment."""
ROWS: dict[str, Row] = {
    "unweighted": Row("unpaired", ("transport=0", "weighted_alignment=false"), "pseudo-pairs, plain alignment"),
    "pseudo": Row("unpaired", ("transport=0",), "unpaired, transport off (pseudo-pairs only)"),
    "unpaired": Row("unpaired", (), "**unpaired**"),
    "found": Row("unpaired", (), "unpaired, pairs looked for", find_pairs=True),
    "balanced": Row("unpaired", ("psi_target=linear",), "unpaired, balanced transport"),
    "committee": Row("unpaired", (COMMITTEE, SHARES), "unpaired with the committee"),
    "no-colour": Row("unpaired", ("experts=structure,frequency", SHARES), "committee without the colour expert"),
    "no-structure": Row("unpaired", ("experts=colour,frequency", SHARES), "committee without the structure expert"),
    "no-frequency": Row("unpaired", ("experts=colour,structure", SHARES), "committee without the frequency expert"),
    "alone": Row("unpaired", ALONE, "transport alone"),
    "alone-committee": Row("unpaired", (*ALONE, COMMITTEE), "transport and committee"),
    "alone-no-colour": Row("unpaired", (*ALONE, "experts=structure,frequency"), "without the colour expert"),
    "alone-no-structure": Row("unpaired", (*ALONE, "experts=colour,frequency"), "without the structure expert"),
    "alone-no-frequency": Row("unpaired", (*ALONE, "experts=colour,structure"), "without the frequency expert"),
    "structure-cost": Row("unpaired", C2_ALONE, "transport alone, cost of structure only"),
    "structure-cost-colour": Row("unpaired", (*C2_ALONE, "experts=colour"), "the same with the colour expert"),
    "outliers5": Row("unpaired", (), "unpaired, 5% outliers", outliers=0.05),
    "outliers10": Row("unpaired", (), "unpaired, 10% outliers", outliers=0.1),
    "outliers20": Row("unpaired", (), "unpaired, 20% outliers", outliers=0.2),
    "missing10": Row("unpaired", (), "unpaired, those 10% left out", outliers=0.1, left_out=True),
    "balanced10": Row("unpaired", ("psi_target=linear",), "balanced, 10% outliers", outliers=0.1),
    "plain": Row("unpaired", BALANCED, "balanced, plain alignment"),
    "plain10": Row("unpaired", BALANCED, "balanced, plain alignment, 10% outliers", outliers=0.1),
    "mixed5": Row("mixed", (), "mixed, 5% of the scenes as pairs", pairs=0.05),
    "mixed25": Row("mixed", (), "mixed, 25% of the scenes as pairs", pairs=0.25),
    "mixed": Row("mixed", (), "mixed, all raw scenes also as pairs"),
    "supervised5": Row("supervised", (), "supervised, those 5% of the pairs alone", pairs=0.05),
    "supervised25": Row("supervised", (), "supervised, those 25% of the pairs alone", pairs=0.25),
    "supervised": Row("supervised", (), "supervised (the architecture's own loss)"),
    "paircost": Row("paired", ("transport=0",), "pair cost alone"),
    "paired": Row("paired", (), "**paired**"),
}  # fmt: skip
DEFAULT_ROWS = ("pseudo", "unpaired", "supervised")


def score(render: Render, pairs: Sequence[Pair], label: str) -> dict[str, Any]:
    """Means over the test pairs, and what each expert watches over: Lab colours, structure (C2), spectra."""
    kept: list[np.ndarray] = []

    def watched(frame: RawFrame) -> np.ndarray:
        kept.append(render(frame))
        return kept[-1]

    result = evaluate(watched, pairs, label=label).summary()
    made, wanted, structure = PictureSet(), PictureSet(), []
    for picture, pair in zip(kept, pairs, strict=True):
        truth = pair.truth()
        made.add(summarise(picture))
        wanted.add(summarise(truth))
        structure.append(float(cost_terms(pictures([truth]), pictures([picture]))[0, 3]))
    return result | made.distances(wanted) | {"structure": float(np.mean(structure))}


def make_scenes(out: Path, count: int) -> Path:
    """A folder of procedural scenes to use as photos: 18 to test on, `count` raw and `count` target scenes.

    More scenes are the same ones and others, and the test is the same, so that counts compare.
    """
    if not out.is_dir():
        building = out.with_name(out.name + ".part")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        names = [f"scene-{seed:05}.png" for seed in range(2 * count + 18)]
        for seed, name in enumerate(names):
            Image.fromarray(make_scene(seed, 480, 640)).save(building / name)
        split = {"raw": names[18::2], "srgb": names[19::2], "test": names[:18]}
        (building / "split.json").write_text(json.dumps(split))
        building.rename(out)
    return out


def row_data(data: Path, row: Row, odd: Path | None = None) -> Path:
    """The split's data with the row's share of pairs and of outliers among the targets; made once.

    Outliers are pictures of the folder `odd` at the photos' size; without it, photos made strange by OUTLIERS.
    """
    if row.pairs == 1.0 and row.outliers == 0.0:
        return data
    kind = "-left-out" if row.left_out else "" if odd is None or not row.outliers else "-odd"
    out = data.with_name(f"{data.name}-pairs{row.pairs:g}-outliers{row.outliers:g}{kind}")
    if out.is_dir():
        return out
    building = out.with_name(out.name + ".part")
    shutil.rmtree(building, ignore_errors=True)
    (building / "train" / "pairs").mkdir(parents=True)
    (building / "photos" / "srgb").mkdir(parents=True)
    pairs = list_pairs(data / "train" / "pairs")
    for pair in pairs[: max(1, round(row.pairs * len(pairs)))]:
        for path in (pair.raw_path, pair.json_path, pair.truth_path):
            shutil.copy(path, building / "train" / "pairs" / path.name)
    photos = sorted((data / "photos" / "srgb").iterdir())
    rng = np.random.default_rng(zlib.crc32(data.name.encode()))  # other ones in each split
    replaced = list(rng.permutation(len(photos))[: round(row.outliers * len(photos))])
    strange = [] if odd is None else sorted(find_files(odd, PHOTO_SUFFIXES))
    order = rng.permutation(len(strange))
    for i, path in enumerate(photos):
        if i in replaced and row.left_out:
            continue
        if i in replaced:
            which = replaced.index(i)
            if strange:
                image = Image.fromarray(load_photo(strange[order[which % len(order)]]))
                image.thumbnail((640, 640))
            else:
                picture = OUTLIERS[which % len(OUTLIERS)](load_photo(path).astype(np.float32) / 255)
                image = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))
            image.save(building / "photos" / "srgb" / f"outlier_{path.stem}.png")
        else:
            shutil.copy(path, building / "photos" / "srgb" / path.name)
    for part in ("train/raw", "test"):
        shutil.copytree(data / part, building / part)
    building.rename(out)
    return out


OUTLIERS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda rgb: 1 - rgb,
    lambda rgb: rgb[..., [1, 2, 0]],
    lambda rgb: np.repeat(rgb.mean(-1, keepdims=True), 3, -1),
    lambda rgb: rgb**4 * np.array([1.0, 0.35, 0.35], np.float32),
)
"""Negatives, turned hues, black and white, dark red light."""


def outlier_auc(run: Path) -> dict[str, float] | None:
    """Areas under the ROC curve of three columns of outliers.csv telling planted outliers from photos, if any.

    `typical` times `w` is `weight`.
    """
    listed = run / "outliers.csv"
    if not listed.is_file():
        return None
    rows = list(csv.DictReader(listed.read_text().splitlines()))
    planted = [r for r in rows if r["photo"].startswith("outlier_")]
    others = [r for r in rows if not r["photo"].startswith("outlier_")]
    if not planted:
        return None
    areas = {}
    for column in ("weight", "typical", "w"):
        pairs = [(float(p[column]), float(o[column])) for p in planted for o in others]
        areas[column] = float(np.mean([(p < o) + 0.5 * (p == o) for p, o in pairs]))
    return areas


def run_row(
    name: str,
    data: Path,
    out: Path,
    isp: str,
    steps: int | None,
    seed: int,
    odd: Path | None = None,
    settings: Sequence[str] = (),
) -> None:
    """Train (or only render) one row, with `settings` after its own, and write its result; a finished one is left."""
    result_path = out / "result.json"
    if result_path.is_file():
        return
    if name in ROWS:
        data = row_data(data, ROWS[name], odd)
    pairs = list_pairs(data / "test" / "pairs")
    folders = {
        "unpaired": {"raw": data / "train" / "raw", "srgb": data / "photos" / "srgb"},
        "supervised": {"pairs": data / "train" / "pairs"},
    }
    folders["paired"], folders["mixed"] = folders["supervised"], folders["unpaired"] | folders["supervised"]
    mode = ROWS[name].mode if name in ROWS else "unpaired"
    fields: dict[str, Any] = {key: str(path) for key, path in folders[mode].items()} | {"isp": isp, "seed": seed}
    if steps is not None:
        fields["steps"] = steps
    config = for_machine(mode, **fields, find_pairs=name in ROWS and ROWS[name].find_pairs)
    started = time.monotonic()
    if name in ("reference", "aligned"):
        alignment = Alignment()
        if name == "aligned":
            alignment = align(config, load_sources(config))
        result = score(reference_render(alignment, config.color_input), pairs, name)
    else:
        config = config.with_settings((*ROWS[name].settings, *settings))
        run = out / "run"
        train(config, run, resume=run.exists())
        net = load_run(run).net
        result = score(lambda frame: render_frame(net, frame, config.color_input), pairs, name)
        result["outlier_auc"] = outlier_auc(run)
    out.mkdir(parents=True, exist_ok=True)
    record = {"row": name, "isp": isp, "steps": config.steps, "seed": seed, "seconds": time.monotonic() - started}
    result_path.write_text(json.dumps({**record, **result, "config": asdict(config)}, indent=1))


def file_row(source: Path, out: Path, data: Path) -> None:
    """The int8 file of a trained row, through its real runtime."""
    result_path = out / "result.json"
    if result_path.is_file():
        return
    from eguot_compress.convert import convert

    convert(source / "run", out, formats=("tflite",), precisions=("w8a8",), calibration=data / "train" / "raw")
    with ISP.load(out / "run.w8a8.tflite") as isp:
        result = score(isp.process, list_pairs(data / "test" / "pairs"), "w8a8")
    record = json.loads((source / "result.json").read_text())
    result_path.write_text(json.dumps({**record, **result, "row": "w8a8"}, indent=1))


def table(results: Sequence[dict[str, Any]], order: Sequence[str]) -> str:
    """Markdown: one line a row, mean over splits and seeds, with the spread where there are several."""
    shows = {"reference": "R(x): white balance, matrix, gamma", "aligned": "aligned R(x), no pair used"}
    shows |= {key: row.shows for key, row in ROWS.items()} | {"w8a8": "unpaired, as w8a8 .tflite"}
    lines = [
        "| | PSNR dB | SSIM | dE2000 | PSNR after affine fit | AUC: weight, typical, w | runs |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in order:
        found = [r for r in results if r["row"] == name]
        if not found:
            continue
        cells = []
        for metric, digits in zip(METRICS, (2, 3, 2, 2), strict=True):
            values = np.array([r[metric] for r in found])
            spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.{digits}f}{spread}")
        areas = [r["outlier_auc"] for r in found if r.get("outlier_auc") is not None]
        cells.append(", ".join(f"{np.mean([a[c] for a in areas]):.2f}" for c in areas[0]) if areas else "")
        lines.append(f"| {shows[name]} | {' | '.join(cells)} | {len(found)} |")
    judged = [name for name in order if name.startswith(("alone", "structure-cost"))]
    if judged:
        watched = [(name, [r for r in results if r["row"] == name]) for name in ("aligned", *judged)]
        lines += ["", "| | dE2000 | Lab, sliced Wasserstein | structure (C2) | spectra dB |", "|---|---|---|---|---|"]
        for name, found in watched:
            means = [np.mean([r[key] for r in found]) for key in ("de2000", "swd_lab", "structure", "log_spectral")]
            lines.append(f"| {shows[name]} | {' | '.join(f'{mean:.3g}' for mean in means)} |")
    return "\n".join(lines)


@click.command(cls=Program)
@click.option("--photos", type=click.Path(path_type=Path, exists=True), default=PHOTOS,
              help="[default: those of examples/]")  # fmt: skip
@click.option("--scenes", type=click.IntRange(min=1), help="Procedural scenes a side, instead of photos.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--rows", default=",".join(DEFAULT_ROWS), show_default=True, help=f"Of {', '.join(ROWS)}.")
@click.option("--protocols", default="disjoint", show_default=True, help="disjoint, shuffled or both.")
@click.option("--splits", type=int, default=1, show_default=True, help="How many splits; each has its own camera.")
@click.option("--first", type=int, default=0, show_default=True, help="First split. 5 to 12 served to choose settings.")
@click.option("--seeds", type=int, default=1, show_default=True)
@click.option("--isps", default="qisp-s", show_default=True)
@click.option(
    "--odd", type=click.Path(path_type=Path, exists=True), help="Atypical pictures for the rows with outliers."
)
@click.option("--steps", type=int, help="Steps of every row.  [default: the recipe's]")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="For a trial: of every trained row.")
def main(
    photos: Path,
    scenes: int | None,
    out: Path,
    rows: str,
    protocols: str,
    splits: int,
    first: int,
    seeds: int,
    isps: str,
    odd: Path | None,
    steps: int | None,
    settings: tuple[str, ...],
) -> None:
    """Run what has no result yet, then print the tables and write OUT/results.md."""
    wanted = [row for row in rows.split(",") if row]
    unknown = sorted(set(wanted) - set(ROWS))
    if unknown:
        raise click.UsageError(f"unknown row {unknown[0]!r}: use {', '.join(ROWS)}")
    photos = make_scenes(out / "scenes", scenes) if scenes else photos
    text = []
    for protocol in protocols.split(","):
        for isp in isps.split(","):
            results = []
            for split in range(first, first + splits):
                data = out / "data" / f"{protocol}-{split}"
                if not data.is_dir():
                    synthetic_split(photos, data, protocol, split)
                for seed in range(seeds):
                    place = out / isp / f"{protocol}-{split}" / f"seed{seed}"
                    for row in ["reference", "aligned", *wanted]:
                        click.echo(f"{isp} {protocol} split {split} seed {seed}: {row}", err=True)
                        run_row(row, data, place / row, isp, steps, seed, odd, settings)
                        results.append(json.loads((place / row / "result.json").read_text()))
                    if "unpaired" in wanted:
                        file_row(place / "unpaired", place / "w8a8", data)
                        results.append(json.loads((place / "w8a8" / "result.json").read_text()))
            trained = [r["steps"] for r in results]
            text.append(f"### {isp}, `{protocol}`, {trained[-1]} steps\n")
            text.append(table(results, ["reference", "aligned", *wanted, "w8a8"]) + "\n")
    (out / "results.md").write_text("\n".join(text))
    click.echo("\n".join(text))


if __name__ == "__main__":
    main()
