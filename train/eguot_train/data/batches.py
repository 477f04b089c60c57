"""What a training run draws from: its folders, loaded and hashed, and the batch of every step.

Every item of a batch has a generator of its own, seeded by the run's seed, the step and the item's place in the batch
of all ranks: a resumed run sees what the unbroken one would have, and ranks share out what one process would draw.
Of shards, and of folders that would take more than HELD_BYTES of memory, each rank sees its own samples, through a
window that depends on the step alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eguot_sdk.chatter import quiet
from eguot_sdk.errors import EguotError, UsageError
from eguot_sdk.pairs import PairLike
from eguot_sdk.progress import progress_bar
from eguot_sdk.raw import RawFrame
from eguot_sdk.registration import register

from ..config import TrainConfig
from ..reference import Alignment
from ..render import reference_render
from .crops import PhotoCrops, Picture, RawCrops, photo_fits, raw_fits
from .datasets import Item, open_dataset, pairs_of, photos_of, raws_of, split_scenes
from .found import found_pairs
from .pseudo import PseudoRaws
from .samples import HELD_BYTES, bytes_of, frame_of, items_hash, photo_of, read_pair
from .shards import ShardSample, ShardStream, is_shards, shard_files
from .window import ItemStream, Role, Stream, Window

T = TypeVar("T")
C = TypeVar("C", RawCrops, PhotoCrops)
PREFETCH = 2
CALIBRATION = 0x7FFFFFFF
"""A step that no run reaches: its batch calibrates the cost. Of what is streamed it sees the first window."""
TRIED = 8
"""Items that say how large a folder will be."""


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
    """Which of the run's photos each target is a crop of; -1 where photos are streamed."""
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


@dataclass(frozen=True, slots=True)
class Streamed:
    """What is read while training."""

    open: Callable[[int, int], Stream[Any]]
    """Rank and number of ranks -> the samples in the order of the run's seed."""
    window: int
    """Samples in memory at once."""


@dataclass(slots=True)
class Sources:
    """Loaded folders of a run. Of what is streamed: rank 0's first window, for fits, noise and sample sheets."""

    frames: list[RawFrame] = field(default_factory=list)
    photos: list[Picture] = field(default_factory=list)
    photo_names: list[str] = field(default_factory=list)
    pairs: list[PairLike] = field(default_factory=list)
    streamed: dict[Role, Streamed] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    """One line per file that could not be used."""
    notes: list[str] = field(default_factory=list)
    """What else a person should know of the folders."""
    hashes: dict[str, str] = field(default_factory=dict)
    """Folder role -> sha256 over the names and bytes of its files."""


def load_sources(config: TrainConfig, *, show: bool = False) -> Sources:
    """Read the folders a mode needs; each may be shards or any layout that `datasets.open_dataset` knows.

    `show`: with a progress bar on stderr, and LibRaw's own words about damaged files kept off it.

    A folder that would take more than HELD_BYTES is only opened, and streamed as shards are.
    Of a data set with parts the training part is read. Where --raw and --srgb name one folder of pairs, its scenes are
    split. Files that cannot be read are listed. Raises UsageError naming the option that is missing or empty.
    """
    sources = Sources()
    if config.unpaired:
        if config.raw is None or config.srgb is None:
            raise UsageError(f"{config.mode} training needs --raw DIR and --srgb DIR")
        if is_shards(config.raw, "raw") and is_shards(config.srgb, "srgb"):
            _refuse_same_shards(config.raw, config.srgb)
        if is_shards(config.raw, "raw"):
            sources.frames = _open_shards(config, sources, "raw", frame_of)
        else:
            items = _half(sources, config.raw, config.srgb, 0)
            _, sources.frames = _read(config, sources, "raw", items, "usable raw files", frame_of, frame_of, show)
        if is_shards(config.srgb, "srgb"):
            sources.photos = _open_shards(config, sources, "srgb", photo_of)
            sources.photo_names = [""] * len(sources.photos)
        else:
            items = _half(sources, config.srgb, config.raw, 1)
            names, sources.photos = _read(config, sources, "srgb", items, "readable photos", photo_of, photo_of, show)
            sources.photo_names = names
        if "srgb" in sources.streamed:
            sources.notes.append("photos are read on the way, so outliers.csv and outliers.jpg will not be written")
    if config.paired:
        if config.pairs is None:
            raise UsageError(f"{config.mode} training needs --pairs DIR")
        if is_shards(config.pairs, "pairs"):
            sources.pairs += _open_shards(config, sources, "pairs", _checked_pair)
        else:
            dataset = open_dataset(config.pairs)
            sources.notes += dataset.notes
            items = pairs_of(dataset.part("train"))
            _, pairs = _read(config, sources, "pairs", items, "usable pairs", _held_pair, _checked_pair, show)
            sources.pairs += pairs
    if config.unpaired and config.find_pairs and not sources.streamed:
        for photo, frame, truth in found_pairs(sources.frames, sources.photos, config.color_input):
            if raw_fits(frame, config.crop):  # one that gives no crops would count as one that raws have
                sources.pairs.append(HeldPair(sources.photo_names[photo], frame, truth, found=True))
        count = sum(isinstance(pair, HeldPair) and pair.found for pair in sources.pairs)
        if count:
            what = "photos that show a raw's scene in the same framing"
            sources.notes.append(f"{what}: {count}, used as pairs too (--set find_pairs=false: leave them unpaired)")
    elif config.unpaired and config.find_pairs:
        sources.notes.append("raws and photos of one scene are not looked for among files that are read on the way")
    _tell_small(config, sources)
    return sources


def _refuse_same_shards(raw: str, srgb: str) -> None:
    """Raises UsageError where one shard would give raws and photos of the same scenes."""
    if {file.resolve() for file in shard_files(raw, "raw")} & {file.resolve() for file in shard_files(srgb, "srgb")}:
        raise UsageError(
            f"--raw {raw} and --srgb {srgb} name the same shards, so the same scenes: `data prepare --unpaired` makes "
            "shards of raws and of photos of different ones"
        )


def _tell_small(config: TrainConfig, sources: Sources) -> None:
    """Note how much of each kind gives no crops, though fits look at it."""
    crop = config.crop
    for kind, fit in (
        ("raws", [raw_fits(frame, crop) for frame in sources.frames]),
        ("photos", [photo_fits(photo, crop) for photo in sources.photos]),
        ("pairs", [raw_fits(pair.raw, crop) for pair in sources.pairs if isinstance(pair, HeldPair)]),
    ):
        small = fit.count(False)
        if small:
            which = f"{small} of {len(fit)} {kind} are smaller than the crop of {2 * crop} px"
            sources.notes.append(f"{which} and never drawn (--set crop takes a smaller one)")


def _half(sources: Sources, folder: str, other: str, side: int) -> list[Item]:
    """Raws (side 0) or photos (side 1) of a folder: all of them, or those of half the scenes where it is both."""
    dataset = open_dataset(folder)
    items = dataset.part("train")
    one = Path(folder).resolve() == Path(other).resolve()
    if side == 0 or not one:
        sources.notes += dataset.notes
    if not one:
        return [raws_of, photos_of][side](items)
    raws, photos, how = split_scenes(items)
    if side == 0:
        sources.notes.append(how)
    return [raws, photos][side]


def _read(
    config: TrainConfig,
    sources: Sources,
    role: Role,
    items: Sequence[Item],
    kind: str,
    read: Callable[[Item], T],
    glance: Callable[[Item], T],
    show: bool,
) -> tuple[list[str], list[T]]:
    """File names and what `read` makes of each item; notes what cannot be read, and the hash of all.

    Of a folder that is too large, what `glance` makes of the first window. Raises UsageError where there is none.
    """
    folder = Path(str(getattr(config, role)))
    names, found, failed = [], [], []
    held = 0
    with quiet() if show else nullcontext() as stream:
        for item in progress_bar(items, label=f"read {role}", stream=stream) if show else items:
            try:
                value = read(item)
            except EguotError as error:
                failed.append(str(error))
                continue
            found.append(value)
            names.append(_shown_name(item.photo if role == "srgb" else item.raw, item, folder))
            held += bytes_of((value.raw, value.picture) if isinstance(value, HeldPair) else value)
            if held > HELD_BYTES or (len(found) == TRIED and held / TRIED * len(items) > HELD_BYTES):
                first = _stream_items(config, sources, role, items, glance, held // len(found))
                return [""] * len(first), first
    sources.skipped += failed
    if not found:
        why = f" ({len(failed)} could not be read, first: {failed[0]})" if failed else _instead(folder, role)
        raise UsageError(f"{folder} holds no {kind}{why}")
    sources.hashes[role] = items_hash(items, folder)
    return names, found


def _shown_name(path: Path | None, item: Item, folder: Path) -> str:
    """How a person finds a file of the item again: its path inside the folder."""
    path = path or item.files()[0]
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _instead(folder: Path, role: Role) -> str:
    """What a folder holds that has nothing for its role, and what may be meant by it."""
    items = open_dataset(folder).part("train")
    raws, photos = len(raws_of(items)), len(photos_of(items))
    if role == "raw" and photos:
        return f", but {photos} photos: is it the folder for --srgb?"
    if role == "srgb" and raws:
        return f", but {raws} raws: is it the folder for --raw?"
    if role == "pairs" and items:
        return f", but {raws} raws and {photos} photos that are no pairs: train unpaired takes such"
    return ""


def _stream_items(
    config: TrainConfig, sources: Sources, role: Role, items: Sequence[Item], glance: Callable[[Item], T], each: int
) -> list[T]:
    """Note that a folder is streamed, and read what its order begins with. `each`: bytes of an item in memory."""
    folder = Path(str(getattr(config, role)))
    sizes = ((path.relative_to(folder).as_posix(), path.stat().st_size) for i in items for path in i.files())
    size = max(2, min(config.window, HELD_BYTES // each))
    total = len(items) * each / 1e9
    sources.notes.append(f"{role}: {len(items)} take {total:.1f} GB of memory, so {size} at a time are read on the way")
    return _stream(sources, role, partial(_item_stream, items, role, config.seed), size, sizes, glance)


def _item_stream(items: Sequence[Item], role: Role, seed: int, rank: int, world: int) -> ItemStream:
    return ItemStream(items, role, seed=seed, rank=rank, world=world)


def _open_shards(config: TrainConfig, sources: Sources, role: Role, read: Callable[[ShardSample], T]) -> list[T]:
    """Note a role's shards and read what their order begins with."""
    files = shard_files(str(getattr(config, role)), role)
    sizes = ((path.name, path.stat().st_size) for path in files)
    shards = "1 shard" if len(files) == 1 else f"{len(files)} shards"
    sources.notes.append(f"{role}: {shards}, of which {config.window} samples at a time are in memory")
    return _stream(sources, role, partial(_shard_stream, files, role, config.seed), config.window, sizes, read)


def _shard_stream(files: list[Path], role: Role, seed: int, rank: int, world: int) -> ShardStream:
    return ShardStream(files, role, seed=seed, rank=rank, world=world)


def _stream(
    sources: Sources,
    role: Role,
    stream: Callable[[int, int], Stream[Any]],
    size: int,
    sizes: Iterator[tuple[str, int]],
    read: Callable[[Any], T],
) -> list[T]:
    """The first window, read; the hash is of names and sizes, for contents may be too large to read for it."""
    sources.streamed[role] = Streamed(stream, size)
    sources.hashes[role] = hashlib.sha256(repr(list(sizes)).encode()).hexdigest()
    first = stream(0, 1)
    found = Window(first, size, read).at(0)
    sources.skipped += first.skipped
    return found


def _held_pair(item: Item) -> PairLike:
    return HeldPair(item.name, *read_pair(item))


def _checked_pair(sample: PairLike) -> PairLike:
    """A pair that can be read, without what it decodes to."""
    read_pair(sample)
    return sample


def _prepared(frame: RawFrame, truth: Picture, config: TrainConfig, moved: bool, masked: bool) -> NDArray[np.uint8]:
    """The truth of a pair; `moved` onto R(x); `masked` by a fourth channel, 255 where the two match."""
    matched = np.ones(truth.shape[:2], bool)
    if moved:
        truth, matched = register(reference_render(Alignment(), config.color_input)(frame), truth)
    if not masked:
        return truth
    return np.concatenate([truth, np.where(matched, 255, 0).astype(np.uint8)[..., None]], 2)


def share_of(config: TrainConfig, world: int) -> int:
    """How many items of a batch each of `world` processes draws. Raises UsageError where it does not divide."""
    if config.batch % (world * config.accumulate):
        why = f" of {config.accumulate} micro-batches" if config.accumulate > 1 else ""
        raise UsageError(f"a batch of {config.batch} cannot be shared by {world} processes{why}: --set batch")
    return config.batch // world


class Batches:
    """Draws batches from sources; `at(step)` gives rank `rank` its part of the batch of `world` ranks.

    `photo_weights`: how often crops of each photo are drawn, relative to its size.
    """

    def __init__(
        self,
        config: TrainConfig,
        sources: Sources,
        alignment: Alignment,
        *,
        photo_weights: Sequence[float] | None = None,
        rank: int = 0,
        world: int = 1,
        experts: bool = False,
        show: bool = False,
    ) -> None:
        """`show`: a progress bar on stderr where pairs are registered, which takes seconds each."""
        self._config = config
        share = share_of(config, world)
        self._items = range(rank * share, (rank + 1) * share)
        self._raws: _Drawn[RawCrops] | None = None
        self._photos: _Drawn[PhotoCrops] | None = None
        self._pairs: _Drawn[RawCrops] | None = None
        self._pseudo = None
        colour, crop, moved = config.color_input, config.crop, config.register_pairs

        def drawn(role: Role, draws: int, held: Callable[[], C], decode: Callable[[Any], C]) -> _Drawn[C]:
            if role not in sources.streamed:
                return _Drawn([held()])
            streamed = sources.streamed[role]
            return _Drawn(Window(streamed.open(rank, world), streamed.window, decode), draws * share / config.reuse)

        if config.unpaired:
            self._raws = drawn(
                "raw", 2, lambda: RawCrops(sources.frames, colour, crop), lambda s: RawCrops([s.frame()], colour, crop)
            )
            self._photos = drawn(
                "srgb",
                1,
                lambda: PhotoCrops(sources.photos, crop, photo_weights),
                lambda s: PhotoCrops([photo_of(s)], crop),
            )
            if config.pseudo > 0 or experts:  # experts see a target beside the reference rendering of its raw
                self._pseudo = PseudoRaws(sources.frames, alignment, colour)
        if config.paired or sources.pairs:

            def crops_of(pairs: Sequence[PairLike]) -> RawCrops:
                both = [read_pair(pair) for pair in pairs]
                found = [isinstance(pair, HeldPair) and pair.found for pair in pairs]
                masked = moved or any(found)
                work = list(zip(both, found, strict=True))
                bar = progress_bar(work, label="register pairs") if show and masked and len(work) > 1 else work
                truths = [_prepared(*pair, config, moved or alone, masked) for pair, alone in bar]
                return RawCrops([frame for frame, _ in both], colour, crop, truths)

            self._pairs = drawn("pairs", 1, lambda: crops_of(sources.pairs), lambda s: crops_of([s]))

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
        """What of the streams was left out so far, a line each."""
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
    """Crops to draw from: of a folder in memory, or of a window, which moves `pace` samples a step."""

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
