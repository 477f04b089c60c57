"""The default ISP against the reference rendering, on held-out scenes shot by cameras it never saw.

    python -m eguot_train.default_isp --out runs/default --steps 1   # makes runs/default-pairs
    python benchmarks/default_isp/run.py --pairs runs/default-pairs

`aligned R(x)` is fitted without pairs between the training raws and the photos. LibRaw is `postprocess()` with camera
white balance, no automatic brightness and its AHD demosaic, on the same mosaics written as DNG; it does not know the
house look, so only its score after the affine fit says something.
"""

from __future__ import annotations

import io
from pathlib import Path

import click
import numpy as np
import rawpy

from eguot_sdk.cli import Program
from eguot_sdk.evaluation import evaluate
from eguot_sdk.isp import ISP
from eguot_sdk.pairs import list_pairs
from eguot_sdk.raw import RawFrame
from eguot_train.config import TrainConfig
from eguot_train.data.batches import Sources
from eguot_train.data.synth import dng_bytes
from eguot_train.fits import align
from eguot_train.reference import Alignment
from eguot_train.render import reference_render


def libraw(frame: RawFrame) -> np.ndarray:
    """LibRaw's default rendering of the same mosaic."""
    with rawpy.imread(io.BytesIO(dng_bytes(frame))) as raw:
        return raw.postprocess(use_camera_wb=True, no_auto_bright=True)


@click.command(cls=Program)
@click.option("--pairs", "folder", type=click.Path(path_type=Path, exists=True), required=True)
def main(folder: Path) -> None:
    """Print the table."""
    test = list_pairs(folder / "test")
    seen = list_pairs(folder / "train")[::3]
    sources = Sources(frames=[p.frame() for p in seen], photos=[p.truth() for p in seen])
    alignment = align(TrainConfig(mode="unpaired"), sources)
    with ISP.load() as isp:
        rows = {
            "R(x)": reference_render(Alignment()),
            "aligned R(x)": reference_render(alignment),
            "LibRaw, AHD": libraw,
            "default ISP": isp.process,
        }
        click.echo("| | PSNR dB | SSIM | dE2000 | PSNR after affine fit |\n|---|---|---|---|---|")
        for name, render in rows.items():
            s = evaluate(render, test, label=name).summary()
            click.echo(
                f"| {name} | {s['psnr_db']:.2f} | {s['ssim']:.3f} | {s['de2000']:.2f} | {s['psnr_affine_db']:.2f} |"
            )


if __name__ == "__main__":
    main()
