"""The commands `data` (with `synth`) and `evaluate`. They need no torch, except to score a run folder."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group()
def data() -> None:
    """Make data to train and test on."""


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
