"""What compressed networks learn from: crops of pairs, of raws, or of photos sent back to raws.

A teacher's rendering of any of them is a perfectly aligned target, so raws without truth are enough. Batches depend
on the seed and the step alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eguot_sdk.errors import UsageError
from eguot_sdk.pairs import list_pairs
from eguot_train.checkpoint import LoadedRun
from eguot_train.data.batches import folder_hash
from eguot_train.data.crops import RAW_SUFFIXES, PhotoCrops, RawCrops, find_files, load_photos, load_raws
from eguot_train.data.pseudo import PseudoRaws
from eguot_train.reference import Alignment

from .calibration import procedural_pairs

CROP = 64
PREFETCH = 2


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where to learn from. None of them: the folders of the run itself, else procedural scenes."""

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

    def __init__(self, loaded: LoadedRun, folders: Folders, *, seed: int, batch: int) -> None:
        self.seed, self.batch = seed, batch
        self.hashes: dict[str, str] = {}
        self._photos: PhotoCrops | None = None
        self._pseudo: PseudoRaws | None = None
        color_input = loaded.config.color_input
        pairs, raw, srgb = _resolve(loaded, folders)
        if pairs is not None:
            listed = list_pairs(pairs)
            frames, truths = [p.frame() for p in listed], [p.truth() for p in listed]
            self.hashes["pairs"] = folder_hash(sorted(p for p in pairs.iterdir() if p.is_file()), pairs)
            self._crops = RawCrops(frames, color_input, CROP, truths)
        elif raw is not None:
            frames, _ = load_raws(raw)
            self.hashes["raw"] = folder_hash(find_files(raw, RAW_SUFFIXES), raw)
            self._crops = RawCrops(frames, color_input, CROP)
            if srgb is not None:
                photos, _, _ = load_photos(srgb)
                self._photos = PhotoCrops(photos, CROP)
                self._pseudo = PseudoRaws(frames, _alignment(loaded), color_input)
        else:
            frames, _ = procedural_pairs()
            self._crops = RawCrops(frames, color_input, CROP)

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

    def stream(self, steps: int) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Step, planes, truth for 0..steps-1, drawn ahead in one background thread."""
        with ThreadPoolExecutor(1) as pool:
            waiting = [pool.submit(self.at, step) for step in range(min(PREFETCH, steps))]
            for step in range(steps):
                planes, truth = waiting.pop(0).result()
                if step + PREFETCH < steps:
                    waiting.append(pool.submit(self.at, step + PREFETCH))
                yield step, planes, truth


def _resolve(loaded: LoadedRun, folders: Folders) -> tuple[Path | None, Path | None, Path | None]:
    """Folders asked for; else those of the run that still lie where they did."""
    if folders.pairs is not None or folders.raw is not None:
        return folders.pairs, folders.raw, folders.srgb
    config = loaded.config
    own = [Path(p) if p is not None and Path(p).is_dir() else None for p in (config.pairs, config.raw, config.srgb)]
    if own[0] is not None:
        return own[0], None, None
    return None, own[1], own[2] if own[1] is not None else None


def _alignment(loaded: LoadedRun) -> Alignment:
    """The run's own alignment of reference and target colours."""
    saved: dict[str, Any] = loaded.state.get("fixed", {})
    if not saved:
        raise UsageError("--srgb DIR needs a run trained on unpaired data: this one holds no colour alignment")
    (a, b), (c, d) = saved["chroma"]
    return Alignment(tuple(saved["tone"]), ((a, b), (c, d)))


def _planes(crops: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


def _pictures(crops: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(crops).astype(np.float32) / 255).permute(0, 3, 1, 2).contiguous()
