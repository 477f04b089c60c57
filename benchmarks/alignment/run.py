"""How good the alignment of the reference rendering is, without training anything, and where its prior comes from.

    python benchmarks/alignment/run.py prior --pairs FOLDER     # the look of real cameras, one line a pair
    python benchmarks/alignment/run.py splits                   # PSNR, CIEDE2000 of aligned R(x), synthetic cameras
    python benchmarks/alignment/run.py outliers --odd FOLDER    # how well atypical photos are told before training

Colours are 8x8 means of output pixels. `splits` uses development splits (5-12 by default), not those of the README.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eguot_sdk.cli import Programs
from eguot_sdk.metrics import delta_e_2000
from eguot_sdk.pairs import Pair, list_pairs
from eguot_train.alignment import (
    PRIOR,
    camera_alignment,
    fit_alignment,
    fit_plain_alignment,
    fit_to_pairs,
)
from eguot_train.config import TrainConfig
from eguot_train.data.batches import load_sources
from eguot_train.data.crops import PHOTO_SUFFIXES, find_files, load_photo
from eguot_train.data.splits import synthetic_split
from eguot_train.fits import align, colour_samples, pair_colours, typicality
from eguot_train.reference import Alignment

PHOTOS = Path(__file__).resolve().parents[2] / "examples" / "photos"

CONFIG = TrainConfig(mode="unpaired")


def score(alignment: Alignment, colours: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Mean PSNR in dB and CIEDE2000 over pairs of colours [n, 3]."""
    psnr, difference = [], []
    for reference, truth in colours:
        made = alignment.apply(reference.T[None, :, :, None])[0, :, :, 0].T.clamp(0, 1)
        psnr.append(-10 * float(torch.log10((made - truth).square().mean())))
        a, b = ((x.numpy()[None] * 255).round().astype(np.uint8) for x in (made, truth))
        difference.append(float(np.mean(delta_e_2000(a, b))))
    return float(np.mean(psnr)), float(np.mean(difference))


@click.group(cls=Programs)
def main() -> None:
    """Measure the alignment."""


@main.command()
@click.option("--pairs", type=click.Path(path_type=Path, exists=True), required=True)
def prior(pairs: Path) -> None:
    """Fit the look of each real pair, then their median and deviation."""
    found = []
    for pair in list_pairs(pairs):
        colours = pair_colours(CONFIG, pair)
        values = fit_to_pairs([colours])
        found.append(values)
        before, after = score(Alignment(), [colours])[0], score(camera_alignment(values), [colours])[0]
        click.echo(f"{pair.name}: {np.round(values, 3)}  {before:.1f} -> {after:.1f} dB")
    click.echo(f"median {np.round(np.median(found, 0), 3)}  deviation {np.round(np.std(found, 0), 3)}")


@main.command()
@click.option("--photos", type=click.Path(path_type=Path, exists=True), default=PHOTOS,
              help="[default: those of examples/]")  # fmt: skip
@click.option("--first", type=int, default=5, show_default=True)
@click.option("--count", type=int, default=8, show_default=True)
def splits(photos: Path, first: int, count: int) -> None:
    """Score plain moments, the prior alone and the fit, on both protocols."""
    fits: dict[str, Callable[[list[Tensor], list[Tensor]], Alignment]] = {
        "R(x)": lambda a, b: Alignment(),
        "moments": fit_plain_alignment,
        "prior alone": lambda a, b: camera_alignment(PRIOR),
        "fit": fit_alignment,
    }
    for protocol in ("disjoint", "shuffled"):
        scores: dict[str, list[tuple[float, float]]] = {name: [] for name in fits}
        for split in range(first, first + count):
            with tempfile.TemporaryDirectory() as folder:
                data = Path(folder) / "data"
                synthetic_split(photos, data, protocol, split)
                config = TrainConfig(
                    mode="unpaired", raw=str(data / "train" / "raw"), srgb=str(data / "photos" / "srgb")
                )
                source, target = colour_samples(config, load_sources(config))
                test: list[Pair] = list_pairs(data / "test" / "pairs")
                colours = [pair_colours(config, pair) for pair in test]
            for name, fit in fits.items():
                scores[name].append(score(fit(source, target), colours))
        for name, values in scores.items():
            psnr, difference = np.mean(values, 0)
            click.echo(
                f"{protocol} {name}: {psnr:.2f} dB, dE2000 {difference:.2f}, worst {np.min(values, 0)[0]:.2f} dB"
            )


@main.command()
@click.option("--photos", type=click.Path(path_type=Path, exists=True), default=PHOTOS,
              help="[default: those of examples/]")  # fmt: skip
@click.option("--odd", type=click.Path(path_type=Path, exists=True), required=True, help="Atypical pictures to plant.")
@click.option("--first", type=int, default=0, show_default=True)
@click.option("--count", type=int, default=12, show_default=True)
def outliers(photos: Path, odd: Path, first: int, count: int) -> None:
    """Area under the ROC curve of `photo_typicality` with 5, 10 and 20% of the targets replaced, split by split."""
    strange = [_reduced(load_photo(path)) for path in find_files(odd, PHOTO_SUFFIXES)]
    areas: dict[float, list[float]] = {share: [] for share in (0.05, 0.1, 0.2)}
    for split in range(first, first + count):
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data"
            synthetic_split(photos, data, "disjoint", split)
            config = TrainConfig(mode="unpaired", raw=str(data / "train" / "raw"), srgb=str(data / "photos" / "srgb"))
            sources = load_sources(config)
        whole = list(sources.photos)
        for share, found in areas.items():
            rng = np.random.default_rng(split)
            planted = rng.permutation(len(whole))[: round(share * len(whole))]
            sources.photos = list(whole)
            for place, which in zip(planted, rng.permutation(len(strange)), strict=False):
                sources.photos[place] = strange[which]
            weights = np.array(typicality(config, sources, align(config, sources)))
            low, high = weights[planted][:, None], np.delete(weights, planted)[None]
            found.append(float(np.mean((low < high) + 0.5 * (low == high))))
    for share, found in areas.items():
        click.echo(f"{share:.0%}: mean {np.mean(found):.3f}, by split {' '.join(f'{a:.2f}' for a in found)}")


def _reduced(picture: np.ndarray) -> np.ndarray:
    image = Image.fromarray(picture)
    image.thumbnail((640, 640))
    return np.asarray(image)


if __name__ == "__main__":
    main()
