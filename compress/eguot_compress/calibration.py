"""What ranges are learned from and what files are checked on: crops of ingested raws, companded planes in [0, 1].

Sources, first that fits: the folder asked for (pairs or raws), the run's own training data where it still lies where
it did, procedural scenes through a synthetic camera. Golden crops are drawn apart from the calibration crops.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from eguot_sdk.errors import EguotError, UsageError
from eguot_sdk.raw import RawFrame
from eguot_train.config import TrainConfig
from eguot_train.data.crops import Picture, RawCrops
from eguot_train.data.samples import frame_of, list_samples, read_held, read_pair, samples_hash, there
from eguot_train.data.scenes import make_scene
from eguot_train.data.synth import SynthCamera
from eguot_train.data.window import Role
from eguot_train.isps.base import IspNet

T = TypeVar("T")
MAX_FRAMES = 24
CALIBRATION_CROPS = 64
GOLDEN_CROPS = 16
CROP = 64
"""Side of a crop in packed pixels, rounded up to what the network takes."""
MULTIPLE = 16
"""Sides of crops are multiples of this, which every network of the zoo takes, or else of the network's own."""
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
    """kind, number of samples, sha256 over their names and bytes; never a path."""

    def at_side(self, side: int) -> Calibration:
        """The golden crops laid side by side on one tile of `side` packed pixels, and a ramp of that size."""
        canvas = _canvas(self.golden[:-1], side)  # cell for cell the truths'
        truths = None if self.truths is None else _canvas(self.truths, 2 * side)
        return replace(self, golden=torch.cat([canvas, grey_ramp(side)]), truths=truths)

    def suited_to(self, net: IspNet) -> Calibration:
        """Itself, or `joined` for a network whose output depends on the whole frame."""
        return self.joined(net.multiple) if net.global_context else self

    def joined(self, multiple: int = 1) -> Calibration:
        """The same crops four by four on larger pictures, whose sides are multiples of `multiple`."""
        side = rounded_up(max(JOINED, 2 * self.golden.shape[-1]), multiple)

        def joined(crops: Tensor, side: int) -> Tensor:
            return torch.cat([_canvas(four, side) for four in crops.split(4)])

        truths = None if self.truths is None else joined(self.truths, 2 * side)
        golden = torch.cat([joined(self.golden[:-1], side), grey_ramp(side)])
        return replace(self, tiles=joined(self.tiles, side), golden=golden, truths=truths)

    @property
    def ramp(self) -> Tensor:
        """[1, 4, c, c]: a horizontal grey ramp over the whole range."""
        return self.golden[-1:]


def load_calibration(config: TrainConfig, folder: Path | None, *, seed: int = 0, multiple: int = 1) -> Calibration:
    """Crops for a run. `folder`: pairs or raws, a data set or shards; None: the run's own data, else procedural scenes.

    `multiple`: that of the network. Raises UsageError where `folder` holds neither pairs nor raws.
    """
    if folder is not None:
        return _from_folder(folder, config, seed, multiple)
    for known, role in own_data(config):
        try:
            return _from_folder(known, config, seed, multiple, (role,))
        except EguotError:  # emptied or replaced since: the next source will do
            continue
    frames, _ = procedural_pairs()  # their truth is another camera's look, not this run's
    source = {"kind": "procedural scenes", "files": len(frames), "sha256": None}
    return _draw(frames, None, config, source, seed, multiple)


def own_data(config: TrainConfig) -> list[tuple[str, Role]]:
    """Pairs and raws that a run was trained on, where they still lie where they did."""
    known: list[tuple[str | None, Role]] = [(config.pairs, "pairs"), (config.raw, "raw")]
    return [(where, role) for where, role in known if where is not None and there(where, role)]


def tell(notes: Sequence[str], skipped: Sequence[str]) -> None:
    """Say on stderr what a place's layout leaves out, and what could not be read."""
    for line in (*notes, *(f"skipped {line}" for line in skipped)):
        print(line, file=sys.stderr, flush=True)


def _from_folder(
    where: str | Path, config: TrainConfig, seed: int, multiple: int, roles: Sequence[Role] = ("pairs", "raw")
) -> Calibration:
    truths: list[Picture] | None = None
    for role in roles:
        listed, notes = list_samples(where, role)
        samples = _some(listed)
        if role == "pairs":
            both, skipped = read_held(samples, read_pair)
            frames, truths = [frame for frame, _ in both], [truth for _, truth in both]
        else:
            frames, skipped = read_held(samples, frame_of)
            truths = None
        if frames:
            tell(notes, skipped)
            kind = "pairs" if role == "pairs" else "raws"
            source = {"kind": kind, "files": len(frames), "sha256": samples_hash(samples, where)}
            return _draw(frames, truths, config, source, seed, multiple)
    why = f" (first: {skipped[0]})" if skipped else ""
    raise UsageError(f"calibration: {where} holds no readable raws and no pairs{why}; give a folder that does")


def _some(items: Sequence[T]) -> list[T]:
    """At most MAX_FRAMES of them, evenly spread."""
    if len(items) <= MAX_FRAMES:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, MAX_FRAMES).astype(int)]


def procedural_pairs() -> tuple[list[RawFrame], list[Picture]]:
    """Sixteen small scenes through four synthetic cameras: raws and their true pictures."""
    scenes = [make_scene(seed, 240, 320) for seed in range(16)]
    frames = [SynthCamera.from_seed(i % 4).shoot(scene, f"scene-{i}") for i, scene in enumerate(scenes)]
    return frames, scenes


def _draw(
    frames: list[RawFrame],
    truths: list[Picture] | None,
    config: TrainConfig,
    source: dict[str, Any],
    seed: int,
    multiple: int,
) -> Calibration:
    crop = crop_side(frames, multiple=multiple)
    crops = RawCrops(frames, config.color_input, crop, truths)
    planes, _ = _sample(crops, CALIBRATION_CROPS, np.random.default_rng([seed, 1]))
    golden, pictures = _sample(crops, GOLDEN_CROPS, np.random.default_rng([seed, 2]))
    return Calibration(planes, torch.cat([golden, grey_ramp(crop)]), pictures, source)


def rounded_up(side: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `side`."""
    return -(-side // multiple) * multiple


def crop_side(frames: Sequence[RawFrame], photos: Sequence[Picture] = (), *, multiple: int = 1) -> int:
    """The largest side of crops, about CROP at most, that some of the raws, and of the photos, give.

    It is a multiple of `multiple`. Raises UsageError.
    """
    step = MULTIPLE if MULTIPLE % multiple == 0 else multiple
    largest = max(min(f.height, f.width) for f in frames) // 2 - 1
    if photos:
        largest = min(largest, max(min(p.shape[:2]) for p in photos) // 2)
    if largest < step:
        raise UsageError(f"every raw, or every photo, is smaller than {2 * step + 2} px on a side; give larger ones")
    return min(rounded_up(CROP, step), largest // step * step)


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
