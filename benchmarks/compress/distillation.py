"""What a teacher is worth to a small network: the README's table of distillation, by one resumable command.

    python benchmarks/compress/distillation.py --out runs/distillation

A camera of which there are few aligned pairs and many raws. Photos and camera are those of `run.py`: 18 scenes to score
on, and of the 42 others `--few` (evenly spread by name) as pairs, all 42 as raws without truth. The teacher starts from
the float network of the default ISP, which was trained on other synthetic cameras of another look, and is fitted to
the few pairs. The student, untrained, learns alone from the few pairs, or from the teacher's rendering of the raws
(and, where the raw is that of a pair, from nothing else): equal architecture, steps, batch, loss and seeds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from run import SEED, make_data  # beside this file

from eguot_compress.distill import BATCH, LR, distill, moving_average
from eguot_compress.finetune import FineTune, fine_tune
from eguot_compress.material import Folders, Material
from eguot_compress.quant_run import resumable, save_derived, unfinished_name
from eguot_sdk.cli import Program
from eguot_sdk.evaluation import evaluate
from eguot_sdk.pairs import Pair, list_pairs
from eguot_train.checkpoint import DEFAULT_RUN, build_isp, load_run, read_config
from eguot_train.recipes import for_machine
from eguot_train.render import render_frame
from eguot_train.trainer import train

PHOTOS = Path(__file__).resolve().parents[2] / "examples" / "photos"


def few_pairs(pairs: Path, out: Path, count: int) -> None:
    """OUT: `count` of the pairs, evenly spread by name."""
    if out.exists():
        return
    names = sorted(p.name.removesuffix("_raw.png") for p in pairs.glob("*_raw.png"))
    building_ = out.with_name(out.name + ".part")
    shutil.rmtree(building_, ignore_errors=True)
    building_.mkdir(parents=True)
    for i in range(count):
        name = names[i * len(names) // count]
        for path in (f"{name}_raw.png", f"{name}.json", f"{name}_srgb.png", f"{name}_srgb.jpg"):
            if (pairs / path).exists():
                shutil.copy(pairs / path, building_ / path)
    building_.rename(out)


def alone(pairs: Path, like: Path, out: Path, isp: str, steps: int, seed: int) -> None:
    """OUT: the student without a teacher, by the loop that distillation uses."""
    loaded = load_run(like)  # for the colour input alone
    torch.manual_seed(seed)
    student = build_isp(isp)
    average, after_step = moving_average(student)
    material = Material(loaded, Folders(pairs=pairs), seed=seed, batch=BATCH)
    plan = FineTune(steps=steps, lr=LR, label="alone")
    asked = {"data": material.hashes, "isp": isp, "steps": steps, "seed": seed}
    with resumable(out, asked, unfinished_name(out).is_dir()) as unfinished:
        fine_tune(student, material, None, plan, unfinished, after_step, {"average": average})
        config = for_machine("supervised", isp=isp, pairs=str(pairs), steps=steps, seed=seed)
        save_derived(unfinished.folder, config, average, loaded, {"command": "alone", "data": material.hashes})


def score(run: Path, test: Sequence[Pair]) -> dict[str, Any]:
    """Means over the test pairs; kept in RUN/score.json."""
    kept = run / "score.json"
    if not kept.is_file():
        loaded = load_run(run)
        net, color_input = loaded.net, loaded.config.color_input
        found = evaluate(lambda frame: render_frame(net, frame, color_input), test, label=run.name).summary()
        kept.write_text(json.dumps(found))
    return dict(json.loads(kept.read_text()))


@click.command(cls=Program)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--photos", type=click.Path(path_type=Path, exists=True), default=PHOTOS,
              help="[default: those of examples/]")  # fmt: skip
@click.option("--isp", default="efficientisp", show_default=True, help="The student.")
@click.option("--few", default=4, show_default=True, help="Pairs at hand.")
@click.option("--steps", default=900, show_default=True, help="Of student and teacher.")
@click.option("--seeds", default=3, show_default=True, help="Of the student; its rows are means.")
def main(out: Path, photos: Path, isp: str, few: int, steps: int, seeds: int) -> None:
    """Train what is missing and print the table."""
    make_data(photos, out / "data")
    pairs, raws = out / f"pairs-{few}", out / "data" / "train" / "raw"
    few_pairs(out / "data" / "train" / "pairs", pairs, few)
    teacher = out / f"teacher-{few}"
    if not teacher.exists():
        start = read_config(DEFAULT_RUN).isp
        config = for_machine("supervised", isp=start, pairs=str(pairs), init="default", steps=steps, seed=SEED)
        train(config, teacher)
    rows: dict[str, list[Path]] = {"teacher": [teacher], f"{isp} alone": [], f"{isp} taught": []}
    for seed in range(seeds):
        student, taught = (out / f"{isp}-{few}-{how}-seed{seed}" for how in ("alone", "taught"))
        if not student.exists():
            alone(pairs, teacher, student, isp, steps, seed)
        if not taught.exists():
            begun = unfinished_name(taught).is_dir()
            distill(teacher, taught, isp=isp, folders=Folders(raw=raws), steps=steps, seed=seed, resume=begun)
        rows[f"{isp} alone"].append(student)
        rows[f"{isp} taught"].append(taught)
    test = list_pairs(out / "data" / "test" / "pairs")
    click.echo("| | parameters | PSNR dB | SSIM | dE2000 |\n|---|---|---|---|---|")
    for name, runs in rows.items():
        scores = [score(run, test) for run in runs]
        psnr, ssim, de = ([s[key] for s in scores] for key in ("psnr_db", "ssim", "de2000"))
        spread = f" ± {np.std(psnr, ddof=1):.2f}" if len(psnr) > 1 else ""
        count = load_run(runs[0]).net.deploy().parameter_count()
        click.echo(f"| {name} | {count:,} | {np.mean(psnr):.2f}{spread} | {np.mean(ssim):.4f} | {np.mean(de):.2f} |")


if __name__ == "__main__":
    main()
