"""What ranges are learned from and what files are checked on: crops of ingested raws, companded planes in [0, 1].

Sources, first that fits: the folder asked for (pairs or raws), the run's own training data where it still lies where
it did, procedural scenes through a synthetic camera. Golden crops are drawn apart from the calibration crops.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from eguot_sdk.errors import EguotError, UsageError
from eguot_sdk.pairs import list_pairs
from eguot_sdk.raw import RawFrame, read_raw
from eguot_sdk.shading import shaded
from eguot_train.config import TrainConfig
from eguot_train.data.crops import RAW_SUFFIXES, Picture, RawCrops, find_files
from eguot_train.data.scenes import make_scene
from eguot_train.data.synth import SynthCamera

T = TypeVar("T")
MAX_FRAMES = 24
CALIBRATION_CROPS = 64
GOLDEN_CROPS = 16
CROP = 64
"""Side of a crop in packed pixels."""
JOINED = 128
"""Least side of joined crops: the smallest frame that every network of the zoo takes."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Crops and where they came from. Planes float32 [N, 4, c, c], pictures float32 [N, 3, 2c, 2c], all in [0, 1]."""

    tiles: Tensor
    """To learn ranges from."""
    golden: Tensor
    """To compare files on; the last one is a grey ramp."""
    truths: Tensor | None
    """The true pictures of `golden` without the ramp, where the source holds pairs."""
    source: dict[str, Any]
    """kind, number of files, sha256 over their names and bytes; never a path."""

    def at_side(self, side: int) -> Calibration:
        """The golden crops laid side by side on one tile of `side` packed pixels, and a ramp of that size."""
        canvas = _canvas(self.golden, side)
        truths = None if self.truths is None else _canvas(self.truths, 2 * side)
        return replace(self, golden=torch.cat([canvas, grey_ramp(side)]), truths=truths)

    def joined(self) -> Calibration:
        """The same crops four by four on larger pictures: for networks whose output depends on the whole frame."""
        side = max(JOINED, 2 * self.golden.shape[-1])

        def joined(crops: Tensor, side: int) -> Tensor:
            return torch.cat([_canvas(four, side) for four in crops.split(4)])

        truths = None if self.truths is None else joined(self.truths, 2 * side)
        golden = torch.cat([joined(self.golden[:-1], side), grey_ramp(side)])
        return replace(self, tiles=joined(self.tiles, side), golden=golden, truths=truths)

    @property
    def ramp(self) -> Tensor:
        """[1, 4, c, c]: a horizontal grey ramp over the whole range."""
        return self.golden[-1:]


def load_calibration(config: TrainConfig, folder: Path | None, *, seed: int = 0) -> Calibration:
    """Crops for a run. `folder`: pairs or raws; None: the run's own data, else procedural scenes.

    Raises UsageError where `folder` holds neither.
    """
    if folder is not None:
        return _from_folder(folder, config, seed)
    for known in (config.pairs, config.raw):
        if known is not None and Path(known).is_dir():
            try:
                return _from_folder(Path(known), config, seed)
            except EguotError:  # moved, emptied or replaced since: the next source will do
                continue
    frames, _ = procedural_pairs()  # their truth is another camera's look, not this run's
    source = {"kind": "procedural scenes", "files": len(frames), "sha256": None}
    return _draw(frames, None, config, source, seed)


def _from_folder(folder: Path, config: TrainConfig, seed: int) -> Calibration:
    if not folder.is_dir():
        raise UsageError(f"calibration: {folder} is not a folder; give one with raws or pairs")
    truths: list[Picture] | None = None
    if any(folder.glob("*_raw.png")):
        pairs = _some(list_pairs(folder))
        frames, truths = [p.frame() for p in pairs], [p.truth() for p in pairs]
        files = sorted(p for p in folder.iterdir() if p.is_file())
        source = {"kind": "pairs", "files": len(pairs)}
    else:
        files, frames = _readable(_some(find_files(folder, RAW_SUFFIXES)))
        if not frames:
            raise UsageError(f"calibration: {folder} holds no readable raws and no pairs; give a folder that does")
        source = {"kind": "raws", "files": len(frames)}
    return _draw(frames, truths, config, {**source, "sha256": _hash(files, folder)}, seed)


def _readable(paths: Sequence[Path]) -> tuple[list[Path], list[RawFrame]]:
    files, frames = [], []
    for path in paths:
        try:
            frames.append(shaded(read_raw(path), "auto"))
        except EguotError:
            continue
        files.append(path)
    return files, frames


def _some(items: Sequence[T]) -> list[T]:
    """At most MAX_FRAMES of them, evenly spread."""
    if len(items) <= MAX_FRAMES:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, MAX_FRAMES).astype(int)]


def _hash(files: Sequence[Path], folder: Path) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with open(path, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def procedural_pairs() -> tuple[list[RawFrame], list[Picture]]:
    """Sixteen small scenes through four synthetic cameras: raws and their true pictures."""
    scenes = [make_scene(seed, 240, 320) for seed in range(16)]
    frames = [SynthCamera.from_seed(i % 4).shoot(scene, f"scene-{i}") for i, scene in enumerate(scenes)]
    return frames, scenes


def _draw(
    frames: list[RawFrame], truths: list[Picture] | None, config: TrainConfig, source: dict[str, Any], seed: int
) -> Calibration:
    largest = max(min(f.height, f.width) for f in frames) // 2 - 1
    crop = min(CROP, largest // 8 * 8)
    if crop < 16:
        raise UsageError("calibration: every raw is smaller than 34 px on a side; give larger ones")
    crops = RawCrops(frames, config.color_input, crop, truths)
    planes, _ = _sample(crops, CALIBRATION_CROPS, np.random.default_rng([seed, 1]))
    golden, pictures = _sample(crops, GOLDEN_CROPS, np.random.default_rng([seed, 2]))
    return Calibration(planes, torch.cat([golden, grey_ramp(crop)]), pictures, source)


def grey_ramp(side: int) -> Tensor:
    """[1, 4, side, side]: grey from 0 at the left to 1 at the right."""
    return torch.linspace(0, 1, side).expand(1, 4, side, side)


def _canvas(crops: Tensor, side: int) -> Tensor:
    """[N, C, c, c] -> [1, C, side, side], crops in rows, repeated until the canvas is full."""
    count, crop = -(-side // crops.shape[-1]), crops.shape[-1]
    order = torch.arange(count * count) % len(crops)
    grid = crops[order].reshape(count, count, -1, crop, crop).permute(2, 0, 3, 1, 4)
    whole = grid.reshape(1, -1, count * crop, count * crop)
    return whole[..., :side, :side].contiguous()


def _sample(crops: RawCrops, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor | None]:
    drawn = [crops.sample(rng) for _ in range(count)]
    planes = torch.from_numpy(np.stack([p for p, _ in drawn])).permute(0, 3, 1, 2).contiguous()
    if drawn[0][1] is None:
        return planes, None
    pictures = np.stack([t for _, t in drawn if t is not None]).astype(np.float32) / 255
    return planes, torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
