"""The whole road in one run: photos and raws -> a trained ISP -> a mobile file -> developed pictures -> a table.

`make demo` runs it. Everything is made from shipped files: examples/photos split by scene (split.json) into those a
synthetic camera shoots, those whose look is wanted, and those kept for the test; no scene is on two sides. The
supervised net sees the aligned truth of its raws and is there to compare with: it is what pairs would have given.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from eguot_compress.convert import convert
from eguot_devices.profile import Asked, profile
from eguot_devices.report import to_table, write_report
from eguot_devices.schema import ModelProfile
from eguot_sdk import ISP
from eguot_sdk.output import write_image
from eguot_train.data.synth import synth_folder
from eguot_train.recipes import for_machine
from eguot_train.trainer import train

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT / "examples" / "photos"
RAW = ROOT / "tests" / "data" / "canon_s40_0117.crw"
STEPS = 600
MARK = "made-by-demo.txt"
CELL_WIDTH, CROP, LABEL_HEIGHT, GAP = 640, 320, 28, 8

Picture = NDArray[np.uint8]


def main() -> None:
    """Run every stage and say at the end what came out and where it lies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "demo-out", help="folder for everything, made anew")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of each of the two nets")
    arguments = parser.parse_args()
    out: Path = arguments.out
    started = time.monotonic()
    if out.exists():
        if any(out.iterdir()) and not (out / MARK).is_file():
            parser.error(
                f"--out {out}: holds something else than an earlier demo, and would be deleted: name a new folder"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARK).write_text("Made by examples/demo.py, which deletes this folder when it runs again.\n")

    with stage("shoot the photos with a synthetic camera"):
        shoot(out)
    with stage(f"train without pairs, {arguments.steps} steps"):
        data = {"raw": str(out / "train" / "raw"), "srgb": str(out / "photos" / "srgb")}
        train(for_machine("unpaired", **data, steps=arguments.steps), out / "unpaired")
    with stage(f"train with pairs to compare, {arguments.steps} steps"):
        pairs = str(out / "train" / "pairs")
        train(for_machine("supervised", pairs=pairs, steps=arguments.steps), out / "supervised")
    with stage("convert both to 8 bits for phones and boards"):
        for run in ("unpaired", "supervised"):
            convert(out / run, out, precisions=("w8a8",), echo=say)
    trained, supervised = out / "unpaired.w8a8.tflite", out / "supervised.w8a8.tflite"
    with stage(f"develop {RAW.name}, a raw of a real camera"):
        pictures = {
            "LibRaw": libraw(RAW),
            "default ISP": ISP.load().process(RAW),
            "just trained, unpaired": ISP.load(trained).process(RAW),
        }
        write_image(out / f"{RAW.stem}-default.jpg", pictures["default ISP"])
        write_image(out / f"{RAW.stem}-unpaired.jpg", pictures["just trained, unpaired"])
        sheet = write_image(out / "contact-sheet.jpg", contact_sheet(pictures), quality=90)
    with stage("measure all three on this machine"):
        asked = Asked(raw=RAW, pairs=out / "test" / "pairs")
        report = profile(["default", trained, supervised], asked=asked, pictures=out / "pictures")
        write_report(report, out, pictures=out / "pictures", pairs=asked.pairs)

    print()
    print(to_table(report))
    print()
    (device,) = report.devices
    print(summary({model.name: model for model in device.models}, arguments.steps))
    print(f"contact sheet: {sheet}")
    print(f"everything else: {out}   ({time.monotonic() - started:.0f} s)")
    if device.failed:
        sys.exit(1)


def shoot(out: Path) -> None:
    """Photos by side, and what one camera makes of two of the sides: raws to train on, pairs to test on."""
    split: dict[str, list[str]] = json.loads((PHOTOS / "split.json").read_text(encoding="utf-8"))
    for side, names in split.items():
        (out / "photos" / side).mkdir(parents=True)
        for name in names:
            shutil.copy(PHOTOS / name, out / "photos" / side / name)
    synth_folder(out / "train", srgb=out / "photos" / "raw")
    synth_folder(out / "test", srgb=out / "photos" / "test")


def libraw(raw: Path) -> Picture:
    """LibRaw's own picture, with the white balance of the shot."""
    import rawpy

    with rawpy.imread(str(raw)) as opened:
        picture: Picture = opened.postprocess(use_camera_wb=True)
    return picture


def contact_sheet(pictures: dict[str, Picture]) -> Picture:
    """Side by side under their names: the whole picture, and its middle pixel by pixel."""
    height, width = min(p.shape[:2] for p in pictures.values())
    cell_height = round(CELL_WIDTH * height / width)
    sheet = Image.new(
        "RGB",
        (len(pictures) * (CELL_WIDTH + GAP) + GAP, LABEL_HEIGHT + cell_height + CROP + 3 * GAP),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for i, (name, picture) in enumerate(pictures.items()):
        left = GAP + i * (CELL_WIDTH + GAP)
        draw.text((left, GAP // 2), name, fill="black", font=ImageFont.load_default(LABEL_HEIGHT - GAP))
        whole = Image.fromarray(picture)
        small = whole.resize((CELL_WIDTH, cell_height), Image.Resampling.LANCZOS)
        sheet.paste(small, (left, LABEL_HEIGHT + GAP))
        x, y = (whole.width - CELL_WIDTH) // 2, (whole.height - CROP) // 2
        sheet.paste(whole.crop((x, y, x + CELL_WIDTH, y + CROP)), (left, LABEL_HEIGHT + cell_height + 2 * GAP))
    return np.asarray(sheet)


def summary(models: dict[str, ModelProfile], steps: int) -> str:
    """One line a person remembers."""
    quality = {
        name: model.accuracy.psnr_db
        for name, model in ((n, models.get(f"{n}.w8a8.tflite")) for n in ("unpaired", "supervised"))
        if model is not None and model.accuracy is not None
    }
    if len(quality) < 2:
        return "not every ISP could be measured"
    return (
        f"after {steps} steps, on scenes neither has seen: {quality['unpaired']:.2f} dB without pairs, "
        f"{quality['supervised']:.2f} dB with them"
    )


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Say what begins, and how long it took."""
    say(f"== {name}")
    started = time.monotonic()
    yield
    say(f"   {time.monotonic() - started:.0f} s")


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
