"""Calibration of the transport cost: what the true picture costs, and what an atypical one does (METHOD.md 1.4).

    python benchmarks/cost/run.py

Synthetic cameras of development splits 5-8, so that each raw's true picture is known; crops of 128 pixels. Terms are
scaled as in training, by their median between unrelated pictures. Wanted is a strength at which the median cost of the
true picture is at most .1 and the tenth percentile of outliers made from it at least 3: a ratio of 30. Shown are the
single terms, the default weights, and the best weights in steps of a fifth.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from eguot_sdk.cli import Program
from eguot_sdk.pairs import list_pairs
from eguot_train.config import TrainConfig
from eguot_train.cost import Cost, cost_terms
from eguot_train.data.batches import load_sources, pictures
from eguot_train.data.crops import RawCrops
from eguot_train.data.splits import synthetic_split
from eguot_train.fits import align
from eguot_train.reference import Reference

PHOTOS = Path(__file__).resolve().parents[2] / "examples" / "photos"

CROP = 64
TERMS = ("pixels (C0)", "low-pass (C1)", "mean colour", "structure (C2)", "texture (C3)")
OUTLIERS = {
    "negative": lambda y: 1 - y,
    "turned hues": lambda y: y[:, [1, 2, 0]],
    "black and white": lambda y: y.mean(1, keepdim=True).expand(-1, 3, -1, -1),
    "dark red": lambda y: y**4 * torch.tensor([1.0, 0.35, 0.35])[:, None, None],
}

MOST_TRUE, LEAST_OUTLIER = 0.1, 3.0


def terms_of(split: int, photos: Path, crops: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Scaled terms [n, 5] of the true pictures, and of each kind of outlier."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        synthetic_split(photos, data, "disjoint", split)
        config = TrainConfig(mode="unpaired", raw=str(data / "train" / "raw"), srgb=str(data / "photos" / "srgb"))
        reference = Reference(align(config, load_sources(config)))
        pairs = list_pairs(data / "train" / "pairs")
        drawn = RawCrops([p.frame() for p in pairs], config.color_input, CROP, [p.truth() for p in pairs])
        rng = np.random.default_rng(split)
        both = [drawn.sample(rng) for _ in range(crops)]
    planes = torch.from_numpy(np.stack([x for x, _ in both])).permute(0, 3, 1, 2)
    truth = pictures([y for _, y in both if y is not None])
    rendered = reference(planes)
    scales = torch.tensor(Cost().calibrate(rendered, truth.roll(1, 0)).scales)
    made = {name: cost_terms(rendered, change(truth)) / scales for name, change in OUTLIERS.items()}
    return cost_terms(rendered, truth) / scales, made


def line(name: str, weights: tuple[float, ...], true: Tensor, outliers: dict[str, Tensor]) -> tuple[float, str]:
    """The ratio at some weights, and a row of the table."""
    mix = torch.tensor(weights)
    same = float((true @ mix).median())
    tenths = {kind: float((terms @ mix).quantile(0.1)) for kind, terms in outliers.items()}
    ratio = min(tenths.values()) / max(same, 1e-9)
    cells = [f"{same:.3f}", *(f"{tenth:.2f}" for tenth in tenths.values()), f"{ratio:.1f}"]
    strengths = (LEAST_OUTLIER / max(min(tenths.values()), 1e-9), MOST_TRUE / max(same, 1e-9))
    cells.append(f"{strengths[0]:.1f} .. {strengths[1]:.1f}" + ("" if strengths[0] <= strengths[1] else " (none)"))
    return ratio, f"| {name} | {' | '.join(cells)} |"


@click.command(cls=Program)
@click.option("--photos", type=click.Path(path_type=Path, exists=True), default=PHOTOS,
              help="[default: those of examples/]")  # fmt: skip
@click.option("--crops", type=int, default=200, show_default=True, help="Of each split.")
def main(photos: Path, crops: int) -> None:
    """Print the table."""
    found = [terms_of(split, photos, crops) for split in range(5, 9)]
    true = torch.cat([t for t, _ in found])
    outliers = {kind: torch.cat([o[kind] for _, o in found]) for kind in OUTLIERS}
    click.echo(f"| weights | true, median | {' | '.join(OUTLIERS)} | ratio | strengths |")
    click.echo("|---|---|" + "---|" * (len(OUTLIERS) + 2))
    for i, name in enumerate(TERMS):
        click.echo(line(name, tuple(float(i == j) for j in range(len(TERMS))), true, outliers)[1])
    click.echo(line("default", Cost().weights, true, outliers)[1])
    grid = [w for w in itertools.product(range(6), repeat=len(TERMS)) if sum(w) == 5]
    rows = [line(f"best: {w}", w, true, outliers) for w in (tuple(x / 5 for x in whole) for whole in grid)]
    click.echo(max(rows)[1])


if __name__ == "__main__":
    main()
