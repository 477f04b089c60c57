"""What a training run draws from: its folders, loaded and hashed, and the batch of every step.

A batch depends only on the seed, the rank and the step, so a resumed run sees what the unbroken one would have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eguot_sdk.errors import UsageError
from eguot_sdk.pairs import Pair, list_pairs
from eguot_sdk.raw import RawFrame

from ..config import TrainConfig
from ..reference import Alignment
from .crops import PHOTO_SUFFIXES, RAW_SUFFIXES, PhotoCrops, Picture, RawCrops, find_files, load_photos, load_raws
from .pseudo import PseudoRaws

PREFETCH = 2


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's crops; planes [B, 4, c, c], pictures [B, 3, 2c, 2c], all float32 in [0, 1]; None where unused.

    Memory lies channels last, which the CPU's convolutions want.
    """

    raw_v: Tensor | None = None
    """Raws for the potential step."""
    raw_t: Tensor | None = None
    """Raws for the map step."""
    target: Tensor | None = None
    """Target photos."""
    target_index: tuple[int, ...] = ()
    """Which photo each target is a crop of."""
    pseudo: Tensor | None = None
    """The raws that would have made `target`."""
    pair_raw: Tensor | None = None
    pair_truth: Tensor | None = None


@dataclass(slots=True)
class Sources:
    """Loaded folders of a run."""

    frames: list[RawFrame] = field(default_factory=list)
    photos: list[Picture] = field(default_factory=list)
    photo_names: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    """Folder role -> sha256 over the names and bytes of its files."""


def folder_hash(files: list[Path], folder: Path) -> str:
    """sha256 over the sorted relative names and contents of files."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with open(path, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def load_sources(config: TrainConfig) -> Sources:
    """Read the folders a mode needs. Raises UsageError naming the option that is missing or empty."""
    sources = Sources()
    if config.unpaired:
        if config.raw is None or config.srgb is None:
            raise UsageError(f"{config.mode} training needs --raw DIR and --srgb DIR")
        raw_folder, photo_folder = Path(config.raw), Path(config.srgb)
        sources.frames, skipped = load_raws(raw_folder)
        sources.photos, sources.photo_names, skipped_photos = load_photos(photo_folder)
        sources.skipped = skipped + skipped_photos
        sources.hashes["raw"] = folder_hash(find_files(raw_folder, RAW_SUFFIXES), raw_folder)
        sources.hashes["srgb"] = folder_hash(find_files(photo_folder, PHOTO_SUFFIXES), photo_folder)
    if config.paired:
        if config.pairs is None:
            raise UsageError(f"{config.mode} training needs --pairs DIR")
        folder = Path(config.pairs)
        sources.pairs = list_pairs(folder)
        sources.hashes["pairs"] = folder_hash(sorted(p for p in folder.iterdir() if p.is_file()), folder)
    return sources


class Batches:
    """Draws batches from sources; `at(step)` is a pure function of the seed, the rank and the step."""

    def __init__(
        self, config: TrainConfig, sources: Sources, alignment: Alignment, *, rank: int = 0, experts: bool = False
    ) -> None:
        self._config = config
        self._rank = rank
        self._raws = self._photos = self._pseudo = self._pairs = None
        if config.unpaired:
            self._raws = RawCrops(sources.frames, config.color_input, config.crop)
            self._photos = PhotoCrops(sources.photos, config.crop)
            if config.pseudo > 0 or experts:  # experts see a target beside the reference rendering of its raw
                self._pseudo = PseudoRaws(sources.frames, alignment, config.color_input)
        if config.paired:
            frames = [pair.frame() for pair in sources.pairs]
            truths = [pair.truth() for pair in sources.pairs]
            self._pairs = RawCrops(frames, config.color_input, config.crop, truths)

    def at(self, step: int) -> Batch:
        """The batch of one step."""
        rng = np.random.default_rng([self._config.seed, self._rank, step])
        size = self._config.batch
        raw_v = raw_t = target = pseudo = pair_raw = pair_truth = None
        indices: tuple[int, ...] = ()
        if self._raws is not None and self._photos is not None:
            raw_v = _planes([self._raws.sample(rng)[0] for _ in range(size)])
            raw_t = _planes([self._raws.sample(rng)[0] for _ in range(size)])
            crops = [self._photos.sample(rng) for _ in range(size)]
            target, indices = pictures([c for c, _ in crops]), tuple(i for _, i in crops)
            if self._pseudo is not None:
                pseudo = _planes([self._pseudo.make(crop, rng) for crop, _ in crops])
        if self._pairs is not None:
            drawn = [self._pairs.sample(rng) for _ in range(size)]
            pair_raw = _planes([planes for planes, _ in drawn])
            pair_truth = pictures([truth for _, truth in drawn if truth is not None])
        return Batch(raw_v, raw_t, target, indices, pseudo, pair_raw, pair_truth)

    def stream(self, start: int, stop: int) -> Iterator[tuple[int, Batch]]:
        """Batches of steps start..stop-1, made ahead of time in one background thread."""
        with ThreadPoolExecutor(1) as pool:
            waiting = [pool.submit(self.at, step) for step in range(start, min(start + PREFETCH, stop))]
            for step in range(start, stop):
                batch = waiting.pop(0).result()
                if step + PREFETCH < stop:
                    waiting.append(pool.submit(self.at, step + PREFETCH))
                yield step, batch


def _planes(crops: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def pictures(crops: list[Picture]) -> Tensor:
    """uint8 pictures [H, W, 3] -> float32 [B, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.stack(crops).astype(np.float32) / 255).permute(0, 3, 1, 2)
