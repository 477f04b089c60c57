"""Small folders in the layouts of the field's data sets, shot by a phone-like 10-bit camera."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eguot_sdk.ingest import pack
from eguot_train.data.scenes import make_scene
from eguot_train.data.synth import SynthCamera, dng_bytes

SIDE = 64
Shot = tuple[NDArray[np.uint16], NDArray[np.uint8]]


def phone(bits: int = 10, black: tuple[int, int, int, int] = (58, 60, 61, 62), cfa: str = "RGGB") -> SynthCamera:
    """A camera with the levels of the field's phone raws."""
    return replace(SynthCamera.from_seed(4, cfa), bits=bits, black=black, white=2**bits - 1)


def shots(camera: SynthCamera, count: int, first: int = 0) -> list[Shot]:
    """Mosaics and their pictures; each scene holds some black and some clipped white."""
    result = []
    for i in range(first, first + count):
        scene = make_scene(i, SIDE, SIDE)
        scene[:6, :6] = 0
        scene[-6:, -6:] = 255
        bright = replace(camera, exposure=3.0)
        clipped = bright.shoot(scene, f"shot{i}").mosaic[-6:, -6:]
        mosaic = camera.shoot(scene, f"shot{i}").mosaic.copy()
        mosaic[-6:, -6:] = clipped
        result.append((mosaic, scene))
    return result


def write_matched(part: Path, raw: str, photo: str, suffix: str, drawn: list[Shot], start: int = 0) -> None:
    """PART/raw/N.png and PART/photo/N.suffix."""
    (part / raw).mkdir(parents=True)
    (part / photo).mkdir(parents=True)
    for i, (mosaic, scene) in enumerate(drawn, start):
        Image.fromarray(mosaic).save(part / raw / f"{i}.png")
        Image.fromarray(scene).save(part / photo / f"{i}{suffix}", quality=95)


def make_zrr(root: Path) -> Path:
    """Twelve training pairs and three test pairs."""
    write_matched(root / "train", "huawei_raw", "canon", ".jpg", shots(phone(), 12))
    write_matched(root / "test", "huawei_raw", "canon", ".jpg", shots(phone(), 3, 20))
    (root / "full_resolution" / "huawei_raw").mkdir(parents=True)
    return root


def make_mai(root: Path, bits: int = 10, black: tuple[int, int, int, int] = (58, 60, 61, 62)) -> Path:
    """The same as MAI21 has it, with parts below raw_images."""
    camera = phone(bits, black)
    for part, count, first in (("train", 12, 0), ("val", 2, 20), ("test", 2, 30)):
        write_matched(root / "raw_images" / part, "mediatek_raw", "fujifilm", ".png", shots(camera, count, first))
    return root


def make_ntire(root: Path, kind: Callable[[NDArray[np.uint16]], NDArray[np.generic]] = lambda planes: planes) -> Path:
    """Ten raws as planes, ten photos of other scenes with the same numbers, two test raws with their pictures."""
    for part, count, first in (("train", 10, 0), ("test", 2, 40)):
        (root / part / "raws").mkdir(parents=True)
        (root / part / "jpegs").mkdir()
        for i, (mosaic, scene) in enumerate(shots(phone(), count, first)):
            np.save(root / part / "raws" / f"{i:04d}.npy", kind(pack(mosaic)))
            if part == "test":
                Image.fromarray(scene).save(root / part / "jpegs" / f"{i:04d}.png")
        if part == "train":
            for i in range(10):
                Image.fromarray(make_scene(100 + i, 80, 72)).save(root / part / "jpegs" / f"{i:04d}.jpg", quality=95)
    return root


def make_ispw(root: Path) -> Path:
    """Four DNGs and the JPEGs of the same shots."""
    camera = SynthCamera.from_seed(3)
    for part in ("phone", "camera"):
        (root / part).mkdir(parents=True)
    for i in range(4):
        scene = make_scene(i, SIDE, SIDE)
        (root / "phone" / f"IMG_{i}.dng").write_bytes(dng_bytes(camera.shoot(scene, f"s{i}")))
        Image.fromarray(scene).save(root / "camera" / f"IMG_{i}.jpg", quality=95)
    return root
