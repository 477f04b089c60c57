"""The commands `data` (`synth`, `check`, `prepare`) and `evaluate`. No torch is needed but for scoring a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from eguot_sdk.bayer import CFA_PHASES
from eguot_sdk.evaluation import PROTOCOLS, Evaluation, Protocol
from eguot_sdk.output import SUFFIXES

from . import MAX_SEED


def _picture(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Refuse a suffix before the work, not after."""
    if value is not None and value.suffix.lower() not in SUFFIXES:
        raise click.BadParameter(f"expected a name that ends in one of {', '.join(SUFFIXES)}, not {value.name!r}")
    return value


@click.group()
def data() -> None:
    """Make, check and prepare data to train and test on."""


@data.command()
@click.option("--srgb", type=click.Path(path_type=Path), help="Folder of photos (JPEG, PNG, TIFF, WebP) to unprocess.")
@click.option("--scenes", type=click.IntRange(min=0), default=0, help="Also shoot this many procedural scenes.")
@click.option("--first-scene", type=click.IntRange(min=0), default=0, show_default=True,
              help="Of the procedural ones. A scene is the same for every --seed: test sets need others.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to create.")
@click.option("--cfa", type=click.Choice(CFA_PHASES), default="RGGB", show_default=True, help="Bayer phase.")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, show_default=True, help="Which camera.")
def synth(srgb: Path | None, scenes: int, first_scene: int, out: Path, cfa: str, seed: int) -> None:
    """Shoot photos with a synthetic camera: OUT/raw/NAME.dng and OUT/pairs, with the photo as the truth.

    The seed fixes the camera (look, colour matrix, levels, noise) whatever the folder.
    """
    from eguot_sdk.errors import EguotError

    from .data.synth import synth_folder

    result = synth_folder(out, srgb=srgb, scenes=scenes, first_scene=first_scene, cfa=cfa, seed=seed)
    for problem in result.failed:
        click.echo(f"skipped: {problem}", err=True)
    click.echo(f"{len(result.written)} pictures: {out / 'raw'} and {out / 'pairs'}", err=True)
    if result.failed:
        raise EguotError(f"{len(result.failed)} photos could not be used; the others are written")


@data.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--out",
    "picture",
    type=click.Path(path_type=Path),
    callback=_picture,
    metavar="PICTURE",
    help="Draw what was found, as .jpg, .png or .tiff.",
)
def check(folder: Path, as_json: bool, picture: Path | None) -> None:
    """Say what a folder is: layout, counts, levels, CFA phase, damaged files.

    Knows ZRR, MAI21, Fujifilm UltraISP / MAI22, NTIRE 2026 unpaired, ISPW, flat pairs, and folders of raws or photos.
    The exit code is 1 where the data contradict the levels or the phase, or where files are damaged.
    """
    from eguot_sdk.errors import EguotError

    from .data.datasets.check import check as check_folder
    from .data.datasets.check import draw

    found = check_folder(folder)
    drawn = {"picture": str(picture)} if picture is not None and found.whole else {}
    if as_json:
        click.echo(json.dumps(found.as_dict() | drawn, indent=1))
    else:
        _tell(found.as_dict())
    if picture is not None and drawn:
        draw(picture, found)
        click.echo(f"wrote {picture}", err=True)
    if found.wrong:
        raise EguotError(f"{folder}: {found.wrong[0]}; {found.remedy}")
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
        if values["white_balance"] is not None:
            red, _, blue = values["white_balance"]
            click.echo(f"  white balance of all raws: red {red:.2f}, blue {blue:.2f}")
    elif any(counts["raws"] for counts in facts["parts"].values()):
        seen = f", as the pictures show: {facts['phase_seen']}" if facts["phase_seen"] else ""
        click.echo(f"  levels and CFA phase: those of each raw{seen}")
    if facts["sampled"] and not facts["wrong"]:
        click.echo(f"  {facts['sampled']} raws looked at: nothing contradicts levels or CFA phase")
    for title, shown in (("wrong", "wrong"), ("damaged", "cannot be used"), ("notes", "note")):
        for line in facts[title]:
            click.echo(f"  {shown}: {line}")


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
    shards = "1 shard" if len(result.shards) == 1 else f"{len(result.shards)} shards"
    click.echo(f"{result.samples} samples in {shards}: {out}", err=True)
    if result.damaged:
        raise EguotError(f"{len(result.damaged)} files could not be used; the others are written")


@click.command()
@click.argument("model", metavar="RUN|MODEL")
@click.option("--pairs", type=click.Path(path_type=Path), help="Pairs, a data set with a test part, or shards.")
@click.option("--raw", type=click.Path(path_type=Path), help="Without pairs: raws to render.")
@click.option("--srgb", type=click.Path(path_type=Path), help="Without pairs: photos the renderings should look like.")
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    default="plain",
    show_default=True,
    help="aligned: truth registered to the picture first; ntire26: truth resized to the picture.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the CSV of --pairs.  [default: the run, or beside the file]",
)
@click.option(
    "--worst",
    type=click.Path(path_type=Path),
    callback=_picture,
    metavar="PICTURE",
    help="Draw the ten worst, as .jpg, .png or .tiff.",
)
@click.option(
    "--lpips",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder with alexnet-owt-7be5be79.pth and alex.pth.  [default: torch's cache and installed packages]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    model: str,
    pairs: Path | None,
    raw: Path | None,
    srgb: Path | None,
    protocol: Protocol,
    out: Path | None,
    worst: Path | None,
    lpips: Path | None,
    as_json: bool,
) -> None:
    """Score a run folder, an ISP file or `default`.

    On pairs: PSNR, SSIM, MS-SSIM, CIEDE2000, PSNR after the affine colour map that fits each image best, with 95%
    intervals over images, and LPIPS where its weights lie on this machine (none are downloaded); a CSV holds every
    image. On --raw and --srgb: how alike the two sets look.
    """
    from eguot_sdk.errors import EguotError

    from . import evaluate as scoring
    from .lpips import Lpips

    if pairs is None:
        if raw is None or srgb is None:
            raise click.UsageError("give --pairs, or --raw and --srgb")
        for option, given in (("worst", worst), ("out", out), ("lpips", lpips), ("protocol", protocol != "plain")):
            if given:
                raise click.UsageError(
                    f"--{option} needs --pairs: --raw and --srgb tell how alike two sets look, alone"
                )
        compared = scoring.compare_sets(model, raw, srgb)
        for line in compared.skipped:
            click.echo(f"skipped: {line}", err=True)
        if as_json:
            click.echo(json.dumps(compared.as_dict(), indent=1))
        else:
            click.echo(f"{model}: {compared.raws} raws of {raw} against {compared.photos} photos of {srgb}")
            _tell_likeness(compared.distances)
        if compared.skipped:
            raise EguotError(f"{len(compared.skipped)} files could not be used; the others are")
        return
    if raw is not None or srgb is not None:
        raise click.UsageError("give --pairs, or --raw and --srgb, not both")
    items, notes = scoring.pairs_to_score(pairs)
    evaluation = scoring.evaluate_model(model, items, protocol=protocol, lpips=Lpips.find(lpips))
    problems = evaluation.skipped
    learnt = scoring.trained_on(model, items, pairs)
    for line in (*notes, *([learnt] if learnt else []), *(f"skipped: {problem}" for problem in problems)):
        click.echo(line, err=True)
    # What took long to find out is shown also where a file cannot be written.
    csv, unwritten = None, None
    try:
        csv = evaluation.write_csv(scoring.csv_path(model, pairs, out, protocol))
        if worst is not None:
            scoring.worst_sheet(worst, model, items, evaluation)
    except EguotError as error:
        unwritten, worst = error, None
    if as_json:
        written = {"csv": None if csv is None else str(csv)} | ({"worst": str(worst)} if worst else {})
        facts = {"lpips": None} | evaluation.summary() | {"skipped": list(problems)} | written
        click.echo(json.dumps(facts, indent=1))
    else:
        click.echo(f"{model} on {len(evaluation.scores)} images of {pairs}, protocol {evaluation.protocol}")
        _tell_scores(evaluation)
        for what, path in (("per image", csv), ("worst", worst)):
            if path is not None:
                click.echo(f"  {what}: {path}")
    if unwritten is not None:
        raise unwritten
    if problems:
        raise EguotError(f"{len(problems)} pairs could not be scored; the others are")


def _tell_scores(evaluation: Evaluation) -> None:
    facts = evaluation.summary()
    for title, metric, unit, digits in (
        ("PSNR", "psnr_db", " dB", 2),
        ("PSNR, best affine", "psnr_affine_db", " dB", 2),
        ("SSIM", "ssim", "", 4),
        ("MS-SSIM", "ms_ssim", "", 4),
        ("CIEDE2000", "de2000", "", 2),
        ("pixels matched", "matched", "", 3),
        ("LPIPS, AlexNet", "lpips", "", 4),
    ):
        if metric in facts:
            low, high = facts["intervals_95"][metric]
            click.echo(f"  {title:<17} {facts[metric]:7.{digits}f}{unit:<3}  [{low:.{digits}f}, {high:.{digits}f}]")
        elif metric != "matched":
            click.echo(f"  {title:<17}     n/a")
    _tell_likeness(evaluation.likeness)


def _tell_likeness(found: dict[str, float]) -> None:
    titles = {"swd_lab": "sliced W1, Lab", "hellinger_uv": "Hellinger, RGB-uv", "log_spectral": "log spectral, dB"}
    for key, value in found.items():
        click.echo(f"  {titles.get(key, 'rFID'):<17} {value:7.3f}")
