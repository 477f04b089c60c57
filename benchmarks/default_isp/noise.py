"""The default ISP, or another file, on noisier raws than cameras give in daylight, beside LibRaw's AHD.

    python benchmarks/default_isp/noise.py [--model FILE] [--iso 1,4,16,64]

The held-out scenes of run.py, shot by the same synthetic cameras at so many times the ISO. Neither ISP is told how
noisy a raw is; LibRaw is as in run.py and does not denoise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from run import libraw

from eguot_sdk.cli import Program
from eguot_sdk.evaluation import evaluate
from eguot_sdk.isp import ISP
from eguot_train.data.batches import HeldPair
from eguot_train.default_isp import held_out

PHOTOS = Path(__file__).resolve().parents[2] / "examples" / "photos"


def noisy_pairs(photos: Path, times: float) -> Iterator[HeldPair]:
    """The held-out pictures and their cameras, at so many times the ISO."""
    for name, picture, camera in held_out(photos):
        yield HeldPair(name, camera.at_iso(times).shoot(picture, name), picture)


@click.command(cls=Program)
@click.option("--photos", type=click.Path(path_type=Path, exists=True), default=PHOTOS,
              help="[default: those of examples/]")  # fmt: skip
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="ISP file.  [default: the default ISP]")
@click.option("--iso", "factors", default="1,4,16,64", show_default=True, help="Times the ISO of daylight.")
def main(photos: Path, model: Path | None, factors: str) -> None:
    """Print the table: PSNR after the affine fit / SSIM / PSNR."""
    click.echo(
        "| times the ISO | LibRaw, AHD: dB after affine fit / SSIM | the ISP | the ISP, plain dB |\n|---|---|---|---|"
    )
    with ISP.load(model) as isp:
        for factor in map(float, factors.split(",")):
            pairs = list(noisy_pairs(photos, factor))
            theirs, ours = (evaluate(render, pairs, label=f"x{factor:g}").summary() for render in (libraw, isp.process))
            cells = [f"{s['psnr_affine_db']:.2f} / {s['ssim']:.3f}" for s in (theirs, ours)]
            click.echo(f"| x {factor:g} | {cells[0]} | {cells[1]} | {ours['psnr_db']:.2f} |")


if __name__ == "__main__":
    main()
