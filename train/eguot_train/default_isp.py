"""The recipe of the default ISP that ships with the SDK: any Bayer camera in, one pleasant look out.

Photos anyone may use (examples/photos) and procedural scenes are shot by hundreds of synthetic cameras, all of the
same house look, so the network learns demosaicing, noise and tone for cameras it never saw, in daylight and at up to
16 times its ISO; white balance and camera matrix are ingest's. The truth is known, so transport, which adds nothing
there (README, Results) and takes more than half of a step, is off. The photos that `split.json` names as `test` are
left out and scored afterwards.

    python -m eguot_train.default_isp --out runs/default     # train; writes runs/default-pairs and runs/default-shipped
    eguot-sdk convert runs/default-shipped/default --format tflite --precision w8a8 --out sdk/eguot_sdk/models \
        --calibration runs/default-pairs/train

`eguot-sdk train --init default` starts from the float network, which ships as the run folder `models/default` here.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from eguot_sdk.bayer import CFA_PHASES
from eguot_sdk.errors import EguotError, UsageError
from eguot_sdk.pairs import write_pair

from .checkpoint import load_run, prefixed, save_checkpoint, write_file
from .data.crops import load_photo
from .data.scenes import make_scene
from .data.synth import Look, SynthCamera
from .recipes import for_machine
from .trainer import train

HOUSE_LOOK = Look(lift=0.45, contrast=0.35, saturation=1.1, hue=0.0)
HOUSE_EXPOSURE = 0.88
"""With the look: a middle grey of 0.18 comes out at 0.26 linear, as cameras of the time and of today render it."""
CAMERAS_PER_PHOTO = 6
ARCHITECTURE = "qisp-m"
SCENES = 120
NIGHT_ISO = 16.0
"""Every second training picture is shot at 1 to so many times the ISO of daylight, the logarithm drawn evenly."""


def house_camera(seed: int) -> SynthCamera:
    """The camera of a seed, phase and all, with the house look."""
    cfa = CFA_PHASES[seed % 4]
    return dataclasses.replace(SynthCamera.from_seed(seed, cfa), look=HOUSE_LOOK, exposure=HOUSE_EXPOSURE)


def house_pictures(photos: Path, parts: tuple[str, ...]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Photos of the named parts of `split.json`, cropped to even size."""
    split = json.loads((photos / "split.json").read_text())
    for part in parts:
        for name in split[part]:
            photo = load_photo(photos / name)
            yield Path(name).stem, photo[: photo.shape[0] // 2 * 2, : photo.shape[1] // 2 * 2]


def held_out(photos: Path) -> Iterator[tuple[str, NDArray[np.uint8], SynthCamera]]:
    """The photos that are left out of training, and the camera, seen by no training either, that shoots each."""
    for name, picture in house_pictures(photos, ("test",)):
        yield name, picture, _camera_of("test", name, 0)


def _camera_of(part: str, name: str, take: int) -> SynthCamera:
    return house_camera(zlib.crc32(f"{part}/{name}/{take}".encode()))


def _by_turns(camera: SynthCamera, turn: int) -> SynthCamera:
    """The camera in daylight where `turn` is even, else at an ISO drawn by the camera's seed."""
    if turn % 2 == 0:
        return camera
    return camera.at_iso(NIGHT_ISO ** np.random.default_rng([camera.seed, 0x150]).uniform())


def make_pairs(photos: Path, out: Path) -> None:
    """Write OUT/train and OUT/test: pairs folders of synthetic cameras. A camera is drawn anew for every picture."""
    for part, parts, cameras in (("train", ("raw", "srgb"), CAMERAS_PER_PHOTO), ("test", ("test",), 1)):
        folder = out / part
        folder.mkdir(parents=True)
        for name, picture in house_pictures(photos, parts):
            for take in range(cameras):
                camera = _camera_of(part, name, take)
                write_pair(folder, f"{name}_{take}", _by_turns(camera, take).shoot(picture, name), picture)
    for seed in range(SCENES):
        picture = make_scene(seed, 480, 640)
        camera = _by_turns(house_camera(seed), seed)
        write_pair(out / "train", f"scene_{seed:03d}", camera.shoot(picture, f"scene_{seed}"), picture)


def strip_run(run: Path, out: Path) -> None:
    """Copy a run's EMA weights and config, without folders, optimisers and logs: what ships."""
    loaded = load_run(run)
    config = dataclasses.replace(loaded.config, pairs=None, val=None)
    out.mkdir(parents=True)
    write_file(out / "config.json", config.to_json().encode())
    save_checkpoint(out, loaded.step, prefixed("ema", loaded.net.state_dict()), {"data": loaded.state["data"]})


@click.command()
@click.option("--photos", type=click.Path(path_type=Path, exists=True), default="examples/photos", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder; its pairs lie beside it.")
@click.option("--steps", type=click.IntRange(min=1), default=40_000, show_default=True)
@click.option("--resume", is_flag=True)
def main(photos: Path, out: Path, steps: int, resume: bool) -> None:
    """Make the pairs beside OUT (OUT-pairs) and train."""
    pairs, shipped = (out.with_name(f"{out.name}-{what}") for what in ("pairs", "shipped"))
    try:
        if shipped.exists():
            raise UsageError(f"{shipped} exists: move it away, or name another --out")
        if not pairs.exists():
            begun = pairs.with_name(f"{pairs.name}.part")
            shutil.rmtree(begun, ignore_errors=True)
            make_pairs(photos, begun)
            begun.rename(pairs)
        config = for_machine(
            "paired", isp=ARCHITECTURE, pairs=str(pairs / "train"), val=str(pairs / "test"), steps=steps,
            val_every=5000, transport=0.0,
        )  # fmt: skip
        train(config, out, resume=resume)
        strip_run(out, shipped / "default")
    except EguotError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
