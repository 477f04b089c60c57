"""Pictures of finished runs of the evidence: training curves, and test scenes side by side.

    python benchmarks/synthcam/pictures.py runs/shuffled --protocol shuffled --rows supervised,paired,unpaired,found

Writes OUT/curves.png and OUT/sheet.jpg. The scenes are the first of the test split by name, not chosen by result.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw

from eguot_sdk.cli import Program
from eguot_sdk.pairs import list_pairs
from eguot_train.checkpoint import load_run
from eguot_train.reference import Alignment
from eguot_train.render import reference_render, render_frame
from eguot_train.sheet import save_sheet

SIDE = 260
PANELS = {
    "loss_fidelity": "fidelity loss",
    "v_fake": "v on renderings",
    "v_real": "v on photos",
    "w_mean": "mean w(y)",
}


def draw_curves(runs: dict[str, Path], path: Path) -> None:
    """One panel a logged number, one line a row of the table."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(13, 3))
    for name, run in runs.items():
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for key, panel in zip(PANELS, panels, strict=True):
            points = [(entry["step"], entry[key]) for entry in log if key in entry]
            panel.plot(*zip(*points, strict=True) if points else ([], []), label=name, linewidth=1)
    for panel, title in zip(panels, PANELS.values(), strict=True):
        panel.set(xlabel="step", title=title)
        panel.grid(alpha=0.3)
    panels[0].set(yscale="log")
    panels[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def captioned(picture: np.ndarray, caption: str) -> np.ndarray:
    """The middle of a picture with its name in the corner."""
    top, left = (max(0, size - SIDE) // 2 for size in picture.shape[:2])
    image = Image.fromarray(np.ascontiguousarray(picture[top : top + SIDE, left : left + SIDE]))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 8 + 6 * len(caption), 14), fill=(255, 255, 255))
    draw.text((4, 2), caption, fill=(0, 0, 0))
    return np.asarray(image)


@click.command(cls=Program)
@click.argument("out", type=click.Path(path_type=Path, exists=True))
@click.option("--protocol", default="disjoint", show_default=True)
@click.option("--split", type=int, default=0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--isp", default="qisp-s", show_default=True)
@click.option("--rows", required=True, help="Rows of run.py that have their result in OUT.")
@click.option("--scenes", type=int, default=3, show_default=True)
def main(out: Path, protocol: str, split: int, seed: int, isp: str, rows: str, scenes: int) -> None:
    """Draw the curves and the sheet."""
    place = out / isp / f"{protocol}-{split}" / f"seed{seed}"
    runs = {name: place / name / "run" for name in rows.split(",")}
    missing = next((name for name, run in runs.items() if not (run / "log.jsonl").is_file()), None)
    if missing:
        raise click.UsageError(
            f"{out} holds no finished row {missing} of {isp}, {protocol}, split {split}, seed {seed}"
        )
    draw_curves(runs, out / "curves.png")
    loaded = {name: load_run(run) for name, run in runs.items()}
    sheet = []
    for pair in list_pairs(out / "data" / f"{protocol}-{split}" / "test" / "pairs")[:scenes]:
        frame = pair.frame()
        made = {name: render_frame(run.net, frame, run.config.color_input) for name, run in loaded.items()}
        everything = {"R(x)": reference_render(Alignment())(frame), **made, "truth": pair.truth()}
        sheet.append([captioned(picture, name) for name, picture in everything.items()])
    save_sheet(out / "sheet.jpg", sheet, quality=80)
    click.echo(f"{out / 'curves.png'}, {out / 'sheet.jpg'}")


if __name__ == "__main__":
    main()
