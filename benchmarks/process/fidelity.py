"""How near the default ISP comes to the picture that is true, against LibRaw on the same mosaic.

    python benchmarks/process/fidelity.py --pairs FOLDER     # real pairs; without it, only the synthetic cameras

Truth is the camera's own JPEG for real pairs, and the photo itself for the held-out photos (`split.json`, part `test`)
shot by synthetic cameras that the ISP never saw. No picture of either was trained on, and nothing was chosen by these
scores. LibRaw gets the mosaic as a DNG with white balance and matrix: its default AHD, without automatic
brightness (`AHD`) and with it (`AHD, auto`). It does not know a camera's look, which the affine fit takes away.
Mean dE2000 is of the pictures as they are. The first two charts found among the real pairs, and their 24 patches, also
get a table: against the camera's JPEG and against the published sRGB values, after one exposure factor each.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import rawpy
from numpy.typing import NDArray

from eguot_sdk import ISP, RawFrame
from eguot_sdk.cli import Program
from eguot_sdk.ingest import balanced_gains, color_matrix
from eguot_sdk.metrics import delta_e_2000, psnr_affine, ssim
from eguot_sdk.pairs import list_pairs
from eguot_train.data.synth import dng_bytes
from eguot_train.default_isp import held_out

ROOT = Path(__file__).resolve().parents[2]
UInt8 = NDArray[np.uint8]
SUBJECTS = {
    "canon_g2_0304": "colour chart",
    "canon_g2_0305": "colour chart, nearer",
    "canon_s40_0101": "colour chart",
    "canon_s40_0105": "colour chart, nearer",
}
# Centres of the patches in the corners, x and y of 640 x 480: top left, top right, bottom left, bottom right.
CHARTS = {
    "canon_g2_0304": ((84, 84), (553, 82), (86, 364), (553, 362)),
    "canon_s40_0101": ((94, 89), (533, 89), (94, 351), (533, 350)),
}
# ColorChecker Classic, row by row: the published chromaticities of 2005 (D50) in 8-bit sRGB, adapted by Bradford and
# clipped, as colour-science 0.4.7 computes them ("ColorChecker 2005").
PUBLISHED = (
    (115, 81, 67), (199, 147, 129), (91, 122, 156), (90, 108, 64), (130, 128, 176), (92, 190, 172),
    (224, 124, 47), (68, 91, 170), (198, 82, 97), (94, 58, 106), (159, 189, 63), (230, 162, 39),
    (35, 63, 147), (67, 149, 74), (180, 49, 57), (238, 198, 20), (193, 84, 151), (0, 136, 170),
    (245, 245, 243), (200, 202, 202), (161, 163, 163), (121, 121, 122), (82, 84, 86), (49, 49, 51),
)  # fmt: skip


def libraw(frame: RawFrame, *, auto: bool) -> UInt8:
    """LibRaw's picture of a frame, lying as the sensor lay."""
    known = dataclasses.replace(
        frame, white_balance=frame.white_balance or balanced_gains(frame)[0], matrix=color_matrix(frame)[0]
    )
    with rawpy.imread(io.BytesIO(dng_bytes(known))) as raw:
        picture: UInt8 = raw.postprocess(use_camera_wb=True, no_auto_bright=not auto, user_flip=0)
    return picture


def synthetic() -> Iterator[tuple[str, RawFrame, UInt8]]:
    """Held-out photos, each shot by a camera of its own."""
    for name, picture, camera in held_out(ROOT / "examples" / "photos"):
        yield name, camera.shoot(picture, name), picture


def real(folder: Path) -> Iterator[tuple[str, RawFrame, UInt8]]:
    """The pairs of a folder."""
    for pair in list_pairs(folder):
        yield pair.name, pair.frame(), pair.truth()


def scores(picture: UInt8, truth: UInt8) -> tuple[float, float, float]:
    """PSNR after the affine fit, mean dE2000, SSIM."""
    return psnr_affine(picture, truth), float(np.mean(delta_e_2000(picture, truth))), ssim(picture, truth)


def compare(title: str, pairs: Iterator[tuple[str, RawFrame, UInt8]], ways: dict[str, Any]) -> None:
    """One line a pair, and the means."""
    found: list[list[tuple[float, float, float]]] = []
    head = " | ".join(f"{way}: PSNR affine dB, dE2000, SSIM" for way in ways)
    click.echo(f"\n| {title} | {head} |\n|---|{'---|' * len(ways)}")
    for name, frame, truth in pairs:
        row = [scores(develop(frame), truth) for develop in ways.values()]
        found.append(row)
        label = f"{name} ({SUBJECTS[name]})" if name in SUBJECTS else name
        click.echo(f"| {label} | " + " | ".join(_cell(score) for score in row) + " |")
    means = np.mean(found, axis=0)
    click.echo("| **mean** | " + " | ".join(_cell(tuple(score)) for score in means) + " |")
    ours, theirs = means[0], means[1]
    ahead = ours[0] > theirs[0] and ours[1] < theirs[1] and ours[2] > theirs[2]
    click.echo(f"{title}: {'ahead of' if ahead else 'NOT ahead of'} LibRaw on all three", err=True)


def _cell(score: tuple[float, ...]) -> str:
    return f"{score[0]:.2f}, {score[1]:.2f}, {score[2]:.4f}"


def patches(picture: UInt8, corners: tuple[tuple[int, int], ...]) -> NDArray[np.float64]:
    """Linear means [24, 3] of the middle of each patch, row by row."""
    top_left, top_right, bottom_left, bottom_right = np.array(corners, np.float64)
    result = []
    for v in np.linspace(0, 1, 4):
        for u in np.linspace(0, 1, 6):
            x, y = (1 - v) * ((1 - u) * top_left + u * top_right) + v * ((1 - u) * bottom_left + u * bottom_right)
            patch = picture[round(y) - 12 : round(y) + 13, round(x) - 12 : round(x) + 13].reshape(-1, 3) / 255.0
            result.append(np.where(patch <= 0.04045, patch / 12.92, ((patch + 0.055) / 1.055) ** 2.4).mean(axis=0))
    return np.array(result)


def patch_error(seen: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[float, float]:
    """dE2000 over patches, mean and largest, after one factor that makes the greys (but white and black) as bright."""
    factor = truth[19:23].sum() / seen[19:23].sum()

    def display(linear: NDArray[np.float64]) -> UInt8:
        v = np.clip(linear, 0, 1)
        curve = np.where(v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055)
        return np.rint(curve * 255).astype(np.uint8)[None]

    shown, wanted = display(seen * factor), display(truth)
    errors = [float(delta_e_2000(shown[:, i : i + 1], wanted[:, i : i + 1])) for i in range(24)]
    return float(np.mean(errors)), max(errors)


def charts(pairs: Iterator[tuple[str, RawFrame, UInt8]], ways: dict[str, Callable[[RawFrame], UInt8]]) -> None:
    """The table of the 24 patches."""
    click.echo(
        "\n| chart | | against the camera's JPEG, mean (largest) | against the published values |\n|---|---|---|---|"
    )
    encoded = np.array(PUBLISHED) / 255.0
    published = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    for name, frame, truth in pairs:
        if name not in CHARTS or truth.shape[:2] != (480, 640):
            continue
        jpeg = patches(truth, CHARTS[name])
        rows = {way: patches(develop(frame), CHARTS[name]) for way, develop in ways.items()} | {"the JPEG": jpeg}
        for way, seen in rows.items():
            one, two = patch_error(seen, jpeg), patch_error(seen, published)
            click.echo(f"| {name} | {way} | {one[0]:.2f} ({one[1]:.2f}) | {two[0]:.2f} ({two[1]:.2f}) |")


@click.command(cls=Program)
@click.option(
    "--pairs", "folder", type=click.Path(path_type=Path, exists=True), help="Real pairs (README, pairs folder)."
)
@click.option("-m", "--model", type=click.Path(path_type=Path, exists=True), help="Another ISP than the default.")
def main(folder: Path | None, model: Path | None) -> None:
    """Print the tables."""
    with ISP.load(model) as isp:
        ways: dict[str, Callable[[RawFrame], UInt8]] = {
            "default ISP": lambda frame: np.asarray(isp.process(frame), np.uint8),
            "AHD": lambda frame: libraw(frame, auto=False),
            "AHD, auto": lambda frame: libraw(frame, auto=True),
        }
        if folder is not None:
            compare("real pair", real(folder), ways)
            charts(real(folder), ways)
        compare("synthetic camera", synthetic(), ways)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
