"""What compressed networks learn from: crops of pairs, of raws, or of photos sent back to raws.

A teacher's rendering of any of them is a perfectly aligned target, so raws without truth are enough. Batches depend
on the seed and the step alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from eguot_sdk.errors import UsageError
from eguot_train.checkpoint import LoadedRun
from eguot_train.data.crops import PhotoCrops, RawCrops
from eguot_train.data.pseudo import PseudoRaws
from eguot_train.data.samples import (
    Listed,
    frame_of,
    list_samples,
    photo_of,
    read_held,
    read_pair,
    samples_hash,
    there,
)
from eguot_train.data.window import Role
from eguot_train.fits import alignment_from_state
from eguot_train.reference import Alignment

from .calibration import crop_side, own_data, procedural_pairs, tell

T = TypeVar("T")
PREFETCH = 2


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where to learn from: folders, data sets or shards. None of them: those of the run, else procedural scenes."""

    pairs: Path | None = None
    raw: Path | None = None
    srgb: Path | None = None

    def __post_init__(self) -> None:
        if self.pairs is not None and (self.raw is not None or self.srgb is not None):
            raise UsageError("give --pairs DIR, or --raw DIR with or without --srgb DIR, not both")
        if self.srgb is not None and self.raw is None:
            raise UsageError("--srgb DIR needs --raw DIR: photos are sent back to raws like those")


class Material:
    """Draws batches: planes [B, 4, c, c] and, where known, true pictures [B, 3, 2c, 2c], all in [0, 1]."""

    def __init__(self, loaded: LoadedRun, folders: Folders, *, seed: int, batch: int, multiple: int = 1) -> None:
        """`multiple`: of another network that sees the same crops."""
        multiple = math.lcm(loaded.net.multiple, multiple)
        self.seed, self.batch = seed, batch
        self.hashes: dict[str, str] = {}
        self._photos: PhotoCrops | None = None
        self._pseudo: PseudoRaws | None = None
        color_input = loaded.config.color_input
        pairs, raw, srgb = _resolve(loaded, folders)
        if pairs is not None:
            both = self._read(pairs, "pairs", read_pair, "usable pairs")
            frames = [frame for frame, _ in both]
            self._crops = RawCrops(
                frames, color_input, crop_side(frames, multiple=multiple), [truth for _, truth in both]
            )
        elif raw is not None:
            frames = self._read(raw, "raw", frame_of, "usable raw files")
            photos = [] if srgb is None else self._read(srgb, "srgb", photo_of, "readable photos")
            crop = crop_side(frames, photos, multiple=multiple)
            self._crops = RawCrops(frames, color_input, crop)
            if photos:
                self._photos = PhotoCrops(photos, crop)
                self._pseudo = PseudoRaws(frames, _alignment(loaded), color_input)
        else:
            print(
                "no folder given, and none of the run's own is there: learning from procedural scenes", file=sys.stderr
            )
            frames, _ = procedural_pairs()
            self._crops = RawCrops(frames, color_input, crop_side(frames, multiple=multiple))

    def _read(self, where: str | Path, role: Role, read: Callable[[Listed], T], kind: str) -> list[T]:
        """What fits in memory of a place, noting its hash and telling what cannot be read. Raises UsageError."""
        samples, notes = list_samples(where, role)
        found, skipped = read_held(samples, read)
        if not found:
            why = f" ({len(skipped)} could not be read, first: {skipped[0]})" if skipped else ""
            raise UsageError(f"{where} holds no {kind}{why}")
        tell(notes, skipped)
        self.hashes[role] = samples_hash(samples, where)
        return found

    @property
    def has_truth(self) -> bool:
        """Whether batches carry true pictures."""
        return self._crops.truths is not None or self._photos is not None

    def at(self, step: int) -> tuple[Tensor, Tensor | None]:
        """The batch of one step. Photos, where given, take every second step."""
        rng = np.random.default_rng([self.seed, 0xC0, step])
        if self._photos is not None and self._pseudo is not None and step % 2:
            crops = [self._photos.sample(rng)[0] for _ in range(self.batch)]
            return _planes([self._pseudo.make(crop, rng) for crop in crops]), _pictures(crops)
        drawn = [self._crops.sample(rng) for _ in range(self.batch)]
        truths = [truth for _, truth in drawn if truth is not None]
        return _planes([planes for planes, _ in drawn]), _pictures(truths) if truths else None

    def stream(self, steps: int, start: int = 0) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Step, planes, truth for start..steps-1, drawn ahead in one background thread."""
        with ThreadPoolExecutor(1) as pool:
            waiting = [pool.submit(self.at, step) for step in range(start, min(start + PREFETCH, steps))]
            for step in range(start, steps):
                planes, truth = waiting.pop(0).result()
                if step + PREFETCH < steps:
                    waiting.append(pool.submit(self.at, step + PREFETCH))
                yield step, planes, truth


def _resolve(loaded: LoadedRun, folders: Folders) -> tuple[str | Path | None, str | Path | None, str | Path | None]:
    """Folders asked for; else those of the run that still lie where they did."""
    if folders.pairs is not None or folders.raw is not None:
        return folders.pairs, folders.raw, folders.srgb
    own = {role: where for where, role in own_data(loaded.config)}
    if "pairs" in own:
        return own["pairs"], None, None
    srgb = loaded.config.srgb
    return None, own.get("raw"), srgb if "raw" in own and srgb is not None and there(srgb, "srgb") else None


def _alignment(loaded: LoadedRun) -> Alignment:
    """The run's own alignment of reference and target colours."""
    saved: dict[str, Any] = loaded.state.get("fixed", {})
    if not saved:
        raise UsageError("--srgb DIR needs a run trained on unpaired data: this one holds no colour alignment")
    return alignment_from_state(saved)


def _planes(crops: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


def _pictures(crops: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(crops).astype(np.float32) / 255).permute(0, 3, 1, 2).contiguous()
