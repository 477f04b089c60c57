"""What a training run draws from: its folders, loaded and hashed, and the batch of every step.

Every item of a batch has a generator of its own, seeded by the run's seed, the step and the item's place in the batch
of all ranks: a resumed run sees what the unbroken one would have, and ranks share out what one process would draw.
Of shards each rank sees its own samples, through a window that depends on the step alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eguot_sdk.errors import EguotError, UsageError
from eguot_sdk.pairs import PairLike
from eguot_sdk.raw import RawFrame
from eguot_sdk.registration import register

from ..config import TrainConfig
from ..reference import Alignment
from ..render import reference_render
from .crops import PhotoCrops, Picture, RawCrops, load_photo
from .datasets import Item, open_dataset, pairs_of, photos_of, raws_of, split_scenes
from .found import found_pairs
from .pseudo import PseudoRaws
from .shards import Role, ShardSample, ShardStream, Window, is_shards, shard_files

T = TypeVar("T")
C = TypeVar("C", RawCrops, PhotoCrops)
PREFETCH = 2
CALIBRATION = 0x7FFFFFFF
"""A step that no run reaches: its batch calibrates the cost. Of shards it sees the first window."""


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
    """Which of the run's photos each target is a crop of; -1 where it came from a shard."""
    pseudo: Tensor | None = None
    """The raws that would have made `target`."""
    pair_raw: Tensor | None = None
    pair_truth: Tensor | None = None
    pair_mask: Tensor | None = None
    """Where each truth matches its raw, [B, 1, 2c, 2c], 1 or 0; with `register_pairs`."""

    def __len__(self) -> int:
        return next(len(x) for x in (self.raw_t, self.pair_raw) if x is not None)

    def split(self, parts: int) -> list[Batch]:
        """Micro-batches of equal size."""
        if parts == 1:
            return [self]
        size = len(self) // parts
        names = ("raw_v", "raw_t", "target", "pseudo", "pair_raw", "pair_truth", "pair_mask")
        return [
            Batch(
                target_index=self.target_index[i : i + size],
                **{n: x[i : i + size] for n in names if (x := getattr(self, n)) is not None},
            )
            for i in range(0, size * parts, size)
        ]


@dataclass(frozen=True, slots=True)
class HeldPair:
    """A pair in memory."""

    name: str
    raw: RawFrame
    picture: Picture
    found: bool = False
    """Nobody said that the two belong together, and they may be some pixels apart."""

    def frame(self) -> RawFrame:
        """The raw."""
        return self.raw

    def truth(self) -> Picture:
        """uint8 sRGB [H, W, 3] of the size of the mosaic."""
        return self.picture


@dataclass(slots=True)
class Sources:
    """Loaded folders of a run. Of shards: rank 0's first window, from which fits, noise and sample sheets are made."""

    frames: list[RawFrame] = field(default_factory=list)
    photos: list[Picture] = field(default_factory=list)
    photo_names: list[str] = field(default_factory=list)
    pairs: list[PairLike] = field(default_factory=list)
    shards: dict[Role, list[Path]] = field(default_factory=dict)
    """Role -> tar files, for the roles that come in shards."""
    skipped: list[str] = field(default_factory=list)
    """One line per file that could not be used."""
    notes: list[str] = field(default_factory=list)
    """What else a person should know of the folders."""
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
    """Read the folders a mode needs; each may be shards or any layout that `datasets.open_dataset` knows.

    Of a data set with parts the training part is read. Where --raw and --srgb name one folder of pairs, its scenes are
    split. Files that cannot be read are listed. Raises UsageError naming the option that is missing or empty.
    """
    sources = Sources()
    if config.unpaired:
        if config.raw is None or config.srgb is None:
            raise UsageError(f"{config.mode} training needs --raw DIR and --srgb DIR")
        if is_shards(config.raw):
            sources.frames = _first_window(config, sources, "raw", ShardSample.frame)
        else:
            _read_raws(sources, Path(config.raw), _half(sources, config.raw, config.srgb, 0))
        if is_shards(config.srgb):
            sources.photos = _first_window(config, sources, "srgb", ShardSample.photo)
            sources.photo_names = [""] * len(sources.photos)
        else:
            _read_photos(sources, Path(config.srgb), _half(sources, config.srgb, config.raw, 1))
    if config.paired:
        if config.pairs is None:
            raise UsageError(f"{config.mode} training needs --pairs DIR")
        if is_shards(config.pairs):
            sources.pairs += _first_window(config, sources, "pairs", _checked_pair)
        else:
            _read_pairs(sources, Path(config.pairs))
    if config.unpaired and config.find_pairs and not sources.shards:
        for photo, frame, truth in found_pairs(sources.frames, sources.photos, config.color_input):
            sources.pairs.append(HeldPair(sources.photo_names[photo], frame, truth, found=True))
        count = sum(isinstance(pair, HeldPair) and pair.found for pair in sources.pairs)
        if count:
            what = "photos that show a raw's scene in the same framing"
            sources.notes.append(f"{what}: {count}, used as pairs too (--set find_pairs=false: leave them unpaired)")
    return sources


def items_hash(items: Sequence[Item], folder: Path) -> str:
    """`folder_hash` of the raws and pictures of items."""
    files = {path for item in items for path in item.files()}
    return folder_hash(sorted(files), folder)


def _half(sources: Sources, folder: str, other: str, side: int) -> list[Item]:
    """Raws (side 0) or photos (side 1) of a folder: all of them, or those of half the scenes where it is both."""
    items = open_dataset(folder).part("train")
    if Path(folder).resolve() != Path(other).resolve():
        return [raws_of, photos_of][side](items)
    raws, photos, how = split_scenes(items)
    if side == 0:
        sources.notes.append(f"no scene is on both sides: {how}")
    return [raws, photos][side]


def _read(
    sources: Sources, role: Role, folder: Path, items: Sequence[Item], kind: str, read: Callable[[Item], T]
) -> list[T]:
    """What `read` makes of each item; notes what cannot be read, and the hash of all. Raises UsageError for none."""
    found, failed = [], []
    for item in items:
        try:
            found.append(read(item))
        except EguotError as error:
            failed.append(str(error))
    sources.skipped += failed
    if not found:
        first = f" ({len(failed)} could not be read, first: {failed[0]})" if failed else ""
        raise UsageError(f"{folder} holds no {kind}{first}")
    sources.hashes[role] = items_hash(items, folder)
    return found


def _read_raws(sources: Sources, folder: Path, items: Sequence[Item]) -> None:
    sources.frames += _read(sources, "raw", folder, items, "usable raw files", lambda item: item.frame())


def _read_photos(sources: Sources, folder: Path, items: Sequence[Item]) -> None:
    def read(item: Item) -> tuple[str, Picture]:
        assert item.photo is not None
        return item.photo.name, load_photo(item.photo)

    found = _read(sources, "srgb", folder, items, "readable photos", read)
    sources.photo_names += [name for name, _ in found]
    sources.photos += [photo for _, photo in found]


def _read_pairs(sources: Sources, folder: Path) -> None:
    dataset = open_dataset(folder)
    items = pairs_of(dataset.part("train"))
    sources.notes += dataset.notes
    held = _read(sources, "pairs", folder, items, "usable pairs", lambda item: HeldPair(item.name, *_read_pair(item)))
    sources.pairs += held


def _first_window(config: TrainConfig, sources: Sources, role: Role, read: Callable[[ShardSample], T]) -> list[T]:
    """Note a role's shards and read what their order begins with."""
    files = shard_files(str(getattr(config, role)))
    sources.shards[role] = files
    sizes = ((path.name, path.stat().st_size) for path in files)  # contents may be too large to read for a name
    sources.hashes[role] = hashlib.sha256(repr(list(sizes)).encode()).hexdigest()
    stream = ShardStream(files, role, seed=config.seed)
    found = Window(stream, config.window, read).at(0)
    sources.skipped += stream.skipped
    return found


def _checked_pair(sample: ShardSample) -> ShardSample:
    """A pair of a shard that can be read, without what it decodes to."""
    _read_pair(sample)
    return sample


def _read_pair(sample: PairLike) -> tuple[RawFrame, Picture]:
    frame, truth = sample.frame(), sample.truth()
    if truth.shape[:2] != (frame.height, frame.width):
        sizes = f"its picture is {truth.shape[1]}x{truth.shape[0]}, its raw {frame.width}x{frame.height}"
        raise UsageError(f"{sample.name}: {sizes}")
    return frame, truth


def _prepared(frame: RawFrame, truth: Picture, config: TrainConfig, moved: bool, masked: bool) -> NDArray[np.uint8]:
    """The truth of a pair; `moved` onto R(x); `masked` by a fourth channel, 255 where the two match."""
    matched = np.ones(truth.shape[:2], bool)
    if moved:
        truth, matched = register(reference_render(Alignment(), config.color_input)(frame), truth)
    if not masked:
        return truth
    return np.concatenate([truth, np.where(matched, 255, 0).astype(np.uint8)[..., None]], 2)


class Batches:
    """Draws batches from sources; `at(step)` gives rank `rank` its part of the batch of `world` ranks."""

    def __init__(
        self,
        config: TrainConfig,
        sources: Sources,
        alignment: Alignment,
        *,
        rank: int = 0,
        world: int = 1,
        experts: bool = False,
    ) -> None:
        if config.batch % (world * config.accumulate):
            why = f" of {config.accumulate} micro-batches" if config.accumulate > 1 else ""
            raise UsageError(f"a batch of {config.batch} cannot be shared by {world} processes{why}: --set batch")
        self._config = config
        share = config.batch // world
        self._items = range(rank * share, (rank + 1) * share)
        self._raws: _Drawn[RawCrops] | None = None
        self._photos: _Drawn[PhotoCrops] | None = None
        self._pairs: _Drawn[RawCrops] | None = None
        self._pseudo = None
        colour, crop, moved = config.color_input, config.crop, config.register_pairs

        def stream(role: Role) -> ShardStream:
            return ShardStream(sources.shards[role], role, seed=config.seed, rank=rank, world=world)

        if config.unpaired:
            if "raw" in sources.shards:
                window = Window(stream("raw"), config.window, lambda s: RawCrops([s.frame()], colour, crop))
                self._raws = _Drawn(window, share / config.reuse)
            else:
                self._raws = _Drawn([RawCrops(sources.frames, colour, crop)])
            if "srgb" in sources.shards:
                photos = Window(stream("srgb"), config.window, lambda s: PhotoCrops([s.photo()], crop))
                self._photos = _Drawn(photos, share / config.reuse)
            else:
                self._photos = _Drawn([PhotoCrops(sources.photos, crop)])
            if config.pseudo > 0 or experts:  # experts see a target beside the reference rendering of its raw
                self._pseudo = PseudoRaws(sources.frames, alignment, colour)
        if config.paired and "pairs" in sources.shards:

            def both(sample: ShardSample) -> RawCrops:
                frame, truth = _read_pair(sample)
                return RawCrops([frame], colour, crop, [_prepared(frame, truth, config, moved, moved)])

            self._pairs = _Drawn(Window(stream("pairs"), config.window, both), share / config.reuse)
        elif sources.pairs:
            frames = [pair.frame() for pair in sources.pairs]
            found = [isinstance(pair, HeldPair) and pair.found for pair in sources.pairs]
            masked = moved or any(found)
            truths = [
                _prepared(frame, pair.truth(), config, moved or alone, masked)
                for frame, pair, alone in zip(frames, sources.pairs, found, strict=True)
            ]
            self._pairs = _Drawn([RawCrops(frames, colour, crop, truths)])

    def at(self, step: int) -> Batch:
        """This rank's part of the batch of one step."""
        raws_v, raws_t, pseudos, pair_raws = ([] for _ in range(4))
        targets: list[Picture] = []
        pair_truths: list[Picture] = []
        indices: list[int] = []
        for drawn in (self._raws, self._photos, self._pairs):
            if drawn is not None:
                drawn.move_to(0 if step == CALIBRATION else step)
        for item in self._items:
            rng = np.random.default_rng([self._config.seed, step, item])
            if self._raws is not None and self._photos is not None:
                raws_v.append(self._raws.pick(rng).sample(rng)[0])
                raws_t.append(self._raws.pick(rng).sample(rng)[0])
                photos = self._photos.pick(rng)
                crop, index = photos.sample(rng)
                targets.append(crop)
                indices.append(photos.kept[index] if self._photos.fixed else -1)
                if self._pseudo is not None:
                    pseudos.append(self._pseudo.make(crop, rng))
            if self._pairs is not None:
                planes, truth = self._pairs.pick(rng).sample(rng)
                assert truth is not None
                pair_raws.append(planes)
                pair_truths.append(truth)
        raw_v, raw_t, pseudo, pair_raw = (
            _planes(crops) if crops else None for crops in (raws_v, raws_t, pseudos, pair_raws)
        )
        target, pair_truth = (pictures(crops) if crops else None for crops in (targets, pair_truths))
        pair_mask = None
        if pair_truth is not None and pair_truth.shape[1] == 4:
            pair_truth, pair_mask = pair_truth[:, :3], pair_truth[:, 3:]
        return Batch(raw_v, raw_t, target, tuple(indices), pseudo, pair_raw, pair_truth, pair_mask)

    def skipped(self) -> list[str]:
        """What of the shards was left out so far, a line each."""
        return [
            line for drawn in (self._raws, self._photos, self._pairs) if drawn is not None for line in drawn.skipped()
        ]

    def realign(self, alignment: Alignment) -> None:
        """Make pseudo-raws through another alignment from the next batch on."""
        if self._pseudo is not None:
            self._pseudo.alignment = alignment

    def stream(self, start: int, stop: int, *, pause: int = 0) -> Iterator[tuple[int, Batch]]:
        """Batches of steps start..stop-1, made ahead of time in background threads (one, where windows move).

        None from `pause` on is made before all earlier ones are done with: the caller may `realign` there.
        """
        windows = any(d is not None and not d.fixed for d in (self._raws, self._photos, self._pairs))
        threads = 1 if windows else self._config.loaders
        ahead = PREFETCH * threads
        spans = [(start, pause), (pause, stop)] if start < pause < stop else [(start, stop)]
        with ThreadPoolExecutor(threads) as pool:
            for first, last in spans:
                waiting = [pool.submit(self.at, step) for step in range(first, min(first + ahead, last))]
                for step in range(first, last):
                    batch = waiting.pop(0).result()
                    if step + ahead < last:
                        waiting.append(pool.submit(self.at, step + ahead))
                    yield step, batch


class _Drawn(Generic[C]):
    """Crops to draw from: of a folder, or of the window of a shard set, which moves `pace` samples a step."""

    def __init__(self, source: list[C] | Window[C], pace: float = 0.0) -> None:
        self.source: list[C] | Window[C] = source
        self._pace = pace
        self.fixed = isinstance(source, list)
        self._held: list[C] = source if isinstance(source, list) else []

    def move_to(self, step: int) -> None:
        """Hold what is drawn from at a step."""
        if isinstance(self.source, Window):
            self._held = self.source.at(int(step * self._pace))

    def skipped(self) -> list[str]:
        """What was left out so far, a line each."""
        return self.source.stream.skipped if isinstance(self.source, Window) else []

    def pick(self, rng: np.random.Generator) -> C:
        """One sample's crops, larger ones more often, as among the pictures of a folder."""
        if len(self._held) == 1:
            return self._held[0]
        shares = np.array([crops.share for crops in self._held])
        return self._held[int(rng.choice(len(shares), p=shares / shares.sum()))]


def _planes(crops: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def pictures(crops: list[Picture]) -> Tensor:
    """uint8 pictures [H, W, 3] -> float32 [B, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.stack(crops).astype(np.float32) / 255).permute(0, 3, 1, 2)
