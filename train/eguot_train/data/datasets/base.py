"""What every data set is to the rest of the project: named items on disk, in parts, with the values of their raws.

An `Item` is one picture: a raw, a photo, or a pair of both; nothing is read until asked for. A `Dataset` groups items
into parts (train, val, test, or "all"). Levels and CFA of raws that do not say theirs come, in this order, from
DIR/dataset.json, from what was published about the data set, or from the data (`levels.py`).

DIR/dataset.json, all keys optional: `cfa` (RGGB GRBG GBRG BGGR), `black` (a number, or four in the order R, Gr, Gb,
B), `white`, `white_balance` (gains R, G, B), `scene_separator` (an item's scene is its name up to the last such text;
without it they are unknown).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eguot_sdk.bayer import CFA_PHASES
from eguot_sdk.errors import CorruptRaw, EguotError, RawError, UsageError
from eguot_sdk.ingest import unpack
from eguot_sdk.pairs import Pair, read_mosaic, read_picture
from eguot_sdk.paths import visible_files
from eguot_sdk.raw import RawFrame, read_raw
from eguot_sdk.shading import shaded

Kind = Literal["pairs", "zrr", "mai", "ntire26", "ispw", "raws", "photos", "unpaired"]
PARTS = ("train", "val", "test")
ALL = "all"
SETTINGS_FILE = "dataset.json"
MAX_NPY_BYTES = 1 << 30

Four = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class RawValues:
    """What raws without metadata need to become frames, and where it came from."""

    cfa: str
    black: Four
    """Counts, R, Gr, Gb, B."""
    white: float
    origin: str
    """"dataset.json", "published", "detected", for messages."""
    white_balance: tuple[float, float, float] | None = None
    """Gains R, G, B of all raws. None: each is estimated alone, of which a crop tells little."""

    def __post_init__(self) -> None:
        if not isinstance(self.cfa, str) or self.cfa not in CFA_PHASES:
            raise UsageError(f"{self.origin}: cfa must be one of {', '.join(CFA_PHASES)}, not {self.cfa!r}")
        if not max(self.black) < self.white <= 65535 or min(self.black) < 0:
            raise UsageError(f"{self.origin}: black {list(self.black)} and white {self.white:g} are no levels")
        if self.white_balance is not None and not all(0 < gain < math.inf for gain in self.white_balance):
            raise UsageError(
                f"{self.origin}: white_balance must be three gains R, G, B, not {list(self.white_balance)}"
            )


@dataclass(frozen=True, slots=True)
class Item:
    """One picture of a data set. `frame` and `truth` read it; both raise EguotError naming the file."""

    name: str
    raw: Path | None = None
    photo: Path | None = None
    scene: str | None = None
    """None: unknown."""
    values: RawValues | None = None
    """Of the raw; None where the file says itself."""

    @property
    def label(self) -> str:
        """Its name, for messages."""
        return self.name

    @property
    def paired(self) -> bool:
        """Whether there are both a raw and the picture it should become."""
        return self.raw is not None and self.photo is not None

    def files(self) -> list[Path]:
        """What lies on disk."""
        return [path for path in (self.raw, self.photo) if path is not None]

    def frame(self) -> RawFrame:
        """The raw."""
        if self.raw is None:
            raise UsageError(f"{self.name} has no raw")
        suffix = self.raw.suffix.lower()
        if suffix not in (".npy", ".png"):
            return shaded(read_raw(self.raw), "auto")
        if self.values is None:
            raise UsageError(f"{self.raw}: its CFA phase and levels are unknown; give them in {SETTINGS_FILE}")
        mosaic = read_npy(self.raw) if suffix == ".npy" else read_mosaic(self.raw)
        values = self.values
        try:
            frame = RawFrame.from_array(
                mosaic, cfa=values.cfa, black=values.black, white=values.white, white_balance=values.white_balance
            )
            return replace(frame, source=str(self.raw))
        except RawError as error:
            raise type(error)(f"{self.raw}: {error}") from error

    def truth(self) -> NDArray[np.uint8]:
        """uint8 sRGB [H, W, 3] of the photo, as it lies in the file."""
        if self.photo is None:
            raise UsageError(f"{self.name} has no picture")
        return read_picture(self.photo)


@dataclass(frozen=True, slots=True)
class FlatItem(Item):
    """An item of the flat pairs folder, which carries a JSON of its own."""

    pair: Pair | None = None

    def files(self) -> list[Path]:
        """What lies on disk."""
        assert self.pair is not None
        return [*(path for path in (self.raw, self.photo) if path is not None), self.pair.json_path]

    def frame(self) -> RawFrame:
        """The raw."""
        assert self.pair is not None
        return self.pair.frame()

    def truth(self) -> NDArray[np.uint8]:
        """uint8 sRGB [H, W, 3] of the size of the mosaic."""
        assert self.pair is not None
        return self.pair.truth()


@dataclass(frozen=True, slots=True)
class Dataset:
    """A folder whose layout was recognised."""

    kind: Kind
    title: str
    root: Path
    parts: Mapping[str, tuple[Item, ...]]
    values: RawValues | None = None
    """Of all raws without metadata; None where there are none."""
    notes: tuple[str, ...] = field(default=())
    """What a person should know: missing partners, folders left aside."""

    def part(self, wanted: Literal["train", "test"]) -> tuple[Item, ...]:
        """Items to train on or to test on: the part of that name, or all where the folder has no parts.

        A data set with parts is never tested on another part than `test` (or `val`): UsageError.
        """
        names = ("train",) if wanted == "train" else ("test", "val")
        for name in (*names, ALL):
            if name in self.parts:
                return self.parts[name]
        raise UsageError(f"{self.root}: has {', '.join(self.parts)}, but no {names[0]} part; name the folder of one")

    def items(self) -> tuple[Item, ...]:
        """All items of all parts."""
        return tuple(item for items in self.parts.values() for item in items)

    def with_values(self, values: RawValues) -> Dataset:
        """The same, every raw without metadata having these values."""
        parts = {
            name: tuple(replace(i, values=values) if i.raw is not None else i for i in items)
            for name, items in self.parts.items()
        }
        return replace(self, parts=parts, values=values)


def pairs_of(items: Iterable[Item]) -> list[Item]:
    """Items that have both sides."""
    return [item for item in items if item.paired]


def raws_of(items: Iterable[Item]) -> list[Item]:
    """Items that have a raw."""
    return [item for item in items if item.raw is not None]


def photos_of(items: Iterable[Item]) -> list[Item]:
    """Items that have a photo."""
    return [item for item in items if item.photo is not None]


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items, evenly from first to last."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def settings_file(*folders: Path) -> Path | None:
    """The dataset.json of the first folder that has one."""
    return next((f / SETTINGS_FILE for f in folders if (f / SETTINGS_FILE).is_file()), None)


def read_settings(*folders: Path) -> dict[str, Any]:
    """The dataset.json of the first folder that has one, checked; {} where none has. Raises UsageError."""
    path = settings_file(*folders)
    if path is None:
        return {}
    try:
        with path.open("rb") as file:
            settings = json.loads(file.read(1 << 20))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a JSON object ({error!s:.80})") from error
    known = {"cfa", "black", "white", "white_balance", "scene_separator"}
    if not isinstance(settings, dict) or set(settings) - known:
        raise UsageError(f"{path}: expected a JSON object with keys of {', '.join(sorted(known))}")
    separator = settings.get("scene_separator", "_")
    if not isinstance(separator, str) or not separator:
        raise UsageError(f"{path}: scene_separator must be a text that is not empty, not {separator!r}")
    return settings


def one(value: Any, where: str) -> float:
    """A white level. Raises UsageError."""
    if not _plain(value):
        raise UsageError(f"{where}: white must be a number, not {value!r:.80}")
    return float(value)


def four(value: Any, where: str) -> Four:
    """One black level or four of them as four. Raises UsageError."""
    values = value if isinstance(value, list) else [value] * 4
    if len(values) != 4 or not all(map(_plain, values)):
        raise UsageError(f"{where}: black must be one number or four, not {value!r:.80}")
    return (float(values[0]), float(values[1]), float(values[2]), float(values[3]))


def three(value: Any, where: str) -> tuple[float, float, float]:
    """Gains R, G, B. Raises UsageError."""
    if not isinstance(value, list) or len(value) != 3 or not all(map(_plain, value)):
        raise UsageError(f"{where}: white_balance must be three numbers R, G, B, not {value!r:.80}")
    return (float(value[0]), float(value[1]), float(value[2]))


def _plain(value: Any) -> bool:
    """Whether a value from JSON is a number that a level or a gain can be; NaN and what no float holds are none."""
    return type(value) in (int, float) and abs(value) <= 1e9


def with_scenes(items: Sequence[Item], settings: Mapping[str, Any]) -> tuple[Item, ...]:
    """Items with the scene their names say, where `scene_separator` is given."""
    separator = settings.get("scene_separator")
    if separator is None:
        return tuple(items)
    return tuple(replace(item, scene=item.name.rsplit(separator, 1)[0]) for item in items)


def files_in(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Files directly in a folder with one of the suffixes, numbers in their names in the order of numbers."""
    return sorted(visible_files(folder, folder.iterdir(), frozenset(suffixes)), key=lambda p: natural(p.name))


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key: numbers inside a name compare as numbers."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.findall(r"[0-9]{1,18}|[^0-9]+|[0-9]+", name)]


def matched(folder: Path, raws: Sequence[Path], photos: Sequence[Path]) -> tuple[list[Item], list[str]]:
    """Pairs by equal stem, then the files in no pair as items of one side, and a note for each kind of these.

    A raw belongs to the one photo of its name beside it, else to the only one anywhere where no other raw has the name:
    cameras count from IMG_0001 again in every folder. Names are stems, or paths inside `folder` where stems repeat.
    """
    beside, anywhere = _by(lambda p: (p.parent, p.stem), photos), _by(lambda p: p.stem, photos)
    of_stem = _by(lambda p: p.stem, raws)
    partner: dict[Path, Path] = {}
    for raw in raws:
        here, all_photos = beside.get((raw.parent, raw.stem), []), anywhere.get(raw.stem, [])
        if len(here) == 1 or (not here and len(all_photos) == len(of_stem[raw.stem]) == 1):
            partner[raw] = (here or all_photos)[0]
    taken = set(partner.values())
    lone_raws, lone_photos = [p for p in raws if p not in partner], [p for p in photos if p not in taken]
    unsure = {p.stem for p in lone_photos} & set(of_stem)
    names = distinct_names(folder, [*partner, *lone_raws, *lone_photos], whole=False)
    items = [
        Item(names[raw], raw, photo, scene=raw.stem if raw.stem in unsure else None) for raw, photo in partner.items()
    ]
    items += [Item(names[p], p, scene=p.stem if p.stem in unsure else None) for p in lone_raws]
    items += [Item(names[p], photo=p, scene=p.stem if p.stem in unsure else None) for p in lone_photos]
    notes = []
    for what, found in (
        ("raws without a picture", [p for p in lone_raws if p.stem not in unsure]),
        ("pictures without a raw", [p for p in lone_photos if p.stem not in unsure]),
        ("files of like names in several places", [p for p in lone_raws + lone_photos if p.stem in unsure]),
    ):
        if found:
            shown = ", ".join(p.relative_to(folder).as_posix() for p in found[:5])
            notes.append(f"{len(found)} {what}, in no pair: {shown}{', ...' if len(found) > 5 else ''}")
    return items, notes


def _by(key: Callable[[Path], Any], paths: Iterable[Path]) -> dict[Any, list[Path]]:
    found: dict[Any, list[Path]] = {}
    for path in paths:
        found.setdefault(key(path), []).append(path)
    return found


def distinct_names(folder: Path, paths: Sequence[Path], *, whole: bool) -> dict[Path, str]:
    """A name for each file that no other has: its path inside `folder`; unless `whole`, its stem where that will do."""

    def path_name(path: Path) -> str:
        return "_".join(path.relative_to(folder).with_suffix("").parts)

    names = {p: path_name(p) if whole else p.stem for p in paths}
    for longer in (path_name, lambda p: path_name(p) + p.suffix.replace(".", "_")):
        often = Counter(names.values())
        names = {p: name if often[name] == 1 else longer(p) for p, name in names.items()}
    taken: set[str] = set()
    for path, name in names.items():
        name = name.replace("\\", "_")  # a folder to other systems
        while name in taken:
            name += "_"
        taken.add(name)
        names[path] = name
    return names


def read_npy(path: Path) -> NDArray[np.uint16]:
    """Planes [h, w, 4] in the order R, Gr, Gb, B, or a mosaic [H, W], as uint16 counts [H, W] that start with red.

    Whole-numbered floats are counts; floats in [0, 1] are taken times 65535. Never unpickles. Raises CorruptRaw.
    """
    try:
        if path.stat().st_size > MAX_NPY_BYTES:
            raise CorruptRaw(f"{path}: more than {MAX_NPY_BYTES >> 20} MiB")
        values = np.lib.format.open_memmap(path, mode="r")  # plain arrays alone: no archive, no pickle
        if values.dtype.kind not in "uif" or values.size == 0:
            raise CorruptRaw(f"{path}: expected numbers, found {values.dtype} {list(values.shape)}")
        if values.ndim == 3 and values.shape[2] == 4:
            mosaic = unpack(np.asarray(values))
        elif values.ndim == 2:
            mosaic = np.asarray(values)
        else:
            raise CorruptRaw(f"{path}: expected planes [h, w, 4] or a mosaic [H, W], found {list(values.shape)}")
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, EguotError):
            raise
        raise CorruptRaw(f"{path}: not a readable .npy ({' '.join(str(error).split()):.100})") from error
    low, high = float(mosaic.min()), float(mosaic.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 65535:
        raise CorruptRaw(f"{path}: values {low:g}..{high:g} are no raw counts (0..65535) and not in 0..1")
    if mosaic.dtype.kind == "f":
        if high <= 1.0:
            return np.rint(mosaic.astype(np.float32) * 65535).astype(np.uint16)
        if not np.array_equal(mosaic, np.rint(mosaic)):
            raise CorruptRaw(f"{path}: values {low:g}..{high:g} are neither whole counts nor in 0..1; save one of them")
    return mosaic.astype(np.uint16)
