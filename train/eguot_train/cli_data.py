"""The commands `data` (`synth`, `check`, `prepare`) and `evaluate`. No torch is needed but for scoring a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.group()
def data() -> None:
    """Make, check and prepare data to train and test on."""


@data.command()
@click.option("--srgb", type=click.Path(path_type=Path), help="Folder of photos (JPEG, PNG, TIFF, WebP) to unprocess.")
@click.option("--scenes", type=click.IntRange(min=0), default=0, help="Also shoot this many procedural scenes.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to create.")
@click.option(
    "--cfa", type=click.Choice(["RGGB", "GRBG", "GBRG", "BGGR"]), default="RGGB", show_default=True, help="Bayer phase."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which camera.")
def synth(srgb: Path | None, scenes: int, out: Path, cfa: str, seed: int) -> None:
    """Shoot photos with a synthetic camera: OUT/raw/NAME.dng and OUT/pairs, with the photo as the truth.

    The seed fixes the camera (look, colour matrix, levels, noise) whatever the folder.
    """
    from eguot_sdk.errors import EguotError

    from .data.synth import synth_folder

    result = synth_folder(out, srgb=srgb, scenes=scenes, cfa=cfa, seed=seed)
    for problem in result.failed:
        click.echo(f"skipped: {problem}", err=True)
    click.echo(f"{len(result.written)} pictures: {out / 'raw'} and {out / 'pairs'}", err=True)
    if result.failed:
        raise EguotError(f"{len(result.failed)} photos could not be used; the others are written")


@data.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--out", "picture", type=click.Path(path_type=Path), metavar="PICTURE", help="Draw what was found (JPEG)."
)
def check(folder: Path, as_json: bool, picture: Path | None) -> None:
    """Say what a folder is: layout, counts, levels, CFA phase, damaged files.

    Knows ZRR, MAI21, Fujifilm UltraISP / MAI22, NTIRE 2026 unpaired, ISPW, flat pairs, and folders of raws or photos.
    The exit code is 1 where the data contradict the levels or the phase, or where files are damaged.
    """
    from eguot_sdk.errors import EguotError

    from .data.datasets.check import check as check_folder

    found = check_folder(folder, picture)
    if as_json:
        click.echo(json.dumps(found.as_dict() | ({"picture": str(picture)} if picture else {}), indent=1))
    else:
        _tell(found.as_dict())
    if found.wrong:
        raise EguotError(f"{folder}: {found.wrong[0]}; correct it in {folder}/dataset.json")
    if found.damaged:
        raise EguotError(f"{len(found.damaged)} of its files cannot be used; commands will leave them out and say so")


def _tell(facts: dict[str, Any]) -> None:
    click.echo(f"{facts['title']} ({facts['kind']})")
    for name, counts in facts["parts"].items():
        click.echo(f"  {name}: {counts['pairs']} pairs, {counts['raws']} raws, {counts['photos']} photos")
    values = facts["values"]
    if values is not None:
        black = " ".join(f"{b:g}" for b in values["black"])
        levels = f"black {black} (R Gr Gb B), white {values['white']:g}, {values['origin']}"
        seen = f", as the data show: {facts['phase_seen']}" if facts["phase_seen"] else ""
        click.echo(f"  {values['cfa']}, {levels}{seen}")
    for title in ("wrong", "damaged", "notes"):
        for line in facts[title]:
            click.echo(f"  {title.removesuffix('s')}: {line}")


@data.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="SHARDS", help="Folder to create.")
@click.option("--unpaired", is_flag=True, help="OUT/raw and OUT/srgb from different scenes, instead of pairs.")
@click.option("--cluster", metavar="ADDRESS", help="Work on a Dask cluster, such as tcp://HOST:8786.")
def prepare(folder: Path, out: Path, unpaired: bool, cluster: str | None) -> None:
    """Write a data set as shards, which `train` reads piece by piece: one folder per part.

    Damaged files are listed and left out; the exit code is then 1.
    """
    from eguot_sdk.errors import EguotError

    from .data.prepare import prepare as prepare_folder

    result = prepare_folder(folder, out, unpaired=unpaired, cluster=cluster)
    for line in result.notes:
        click.echo(line, err=True)
    for line in result.damaged:
        click.echo(f"skipped: {line}", err=True)
    click.echo(f"{result.samples} samples in {len(result.shards)} shards: {out}", err=True)
    if result.damaged:
        raise EguotError(f"{len(result.damaged)} files could not be used; the others are written")


@click.command()
@click.argument("model", metavar="RUN|MODEL")
@click.option("--pairs", type=click.Path(path_type=Path), required=True, help="Folder of pairs to score on.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the CSV.  [default: the run, or beside the file]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(model: str, pairs: Path, out: Path | None, as_json: bool) -> None:
    """Score a run folder, an ISP file or `default` on a folder of pairs.

    PSNR, SSIM, CIEDE2000, and PSNR after the affine colour map that fits each image best; a CSV holds every image.
    """
    from .evaluate import csv_path, evaluate_model

    evaluation = evaluate_model(model, pairs)
    csv = evaluation.write_csv(csv_path(model, pairs, out))
    if as_json:
        click.echo(json.dumps(evaluation.summary() | {"csv": str(csv)}, indent=1))
        return
    click.echo(f"{model} on {len(evaluation.scores)} images of {pairs}, protocol {evaluation.protocol}")
    click.echo(f"  PSNR              {evaluation.mean('psnr_db'):7.2f} dB")
    click.echo(f"  PSNR, best affine {evaluation.mean('psnr_affine_db'):7.2f} dB")
    click.echo(f"  SSIM              {evaluation.mean('ssim'):7.4f}")
    click.echo(f"  CIEDE2000         {evaluation.mean('de2000'):7.2f}")
    click.echo(f"  per image: {csv}")
