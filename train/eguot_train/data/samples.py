"""What a folder, a data set or shards hold, as a list: for what reads some samples and not an endless stream.

Also how one sample of either kind is read, and how a set is told from another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from eguot_sdk.errors import EguotError, UsageError
from eguot_sdk.pairs import PairLike
from eguot_sdk.paths import encoded
from eguot_sdk.raw import RawFrame

from .crops import Picture, load_photo
from .datasets import Item, open_dataset, pairs_of, photos_of, raws_of
from .datasets.base import ALL
from .shards import ShardSample, is_shards, read_index, shard_files
from .window import Role

T = TypeVar("T")
Listed = Item | ShardSample
HELD_BYTES = 4 << 30
"""Of decoded raws and pictures in memory at once."""


def there(where: str | Path, role: Role) -> bool:
    """Whether an option of a run still names something on disk."""
    try:
        return Path(where).is_dir() or (is_shards(where, role) and bool(shard_files(where, role)))
    except UsageError:
        return False


def list_samples(where: str | Path, role: Role) -> tuple[list[Listed], tuple[str, ...]]:
    """What a place holds for a role, nothing opened yet, and notes: its training part, or all of it. May be empty.

    Raises UsageError where it is no data set.
    """
    if is_shards(where, role):
        found = [read_index(shard, role) for shard in shard_files(where, role)]
        return [s for samples, _ in found for s in samples], tuple(problem for _, problem in found if problem)
    dataset = open_dataset(where)
    items = dataset.part("train") if {"train", ALL} & set(dataset.parts) else dataset.items()
    return list({"raw": raws_of, "srgb": photos_of, "pairs": pairs_of}[role](items)), dataset.notes


def read_held(samples: Sequence[Listed], read: Callable[[Listed], T]) -> tuple[list[T], list[str]]:
    """What `read` makes of each sample, and a line for each that could not be read.

    Of more than HELD_BYTES take evenly spread ones.
    """
    found: list[T] = []
    skipped: list[str] = []
    step = 1
    for place, sample in enumerate(samples):
        if place % step:
            continue
        try:
            value = read(sample)
        except EguotError as error:
            skipped.append(str(error))
            continue
        if not found:
            step = max(1, -(-len(samples) * bytes_of(value) // HELD_BYTES))
        found.append(value)
    return found, skipped


def samples_hash(samples: Sequence[PairLike], where: str | Path) -> str:
    """sha256 that tells other samples apart: over names and bytes of files, or names and sizes of shards."""
    shards = sorted({s.shard for s in samples if isinstance(s, ShardSample)})
    if shards:
        return hashlib.sha256(repr([(p.name, p.stat().st_size) for p in shards]).encode()).hexdigest()
    return items_hash([s for s in samples if isinstance(s, Item)], Path(where))


def items_hash(items: Sequence[Item], folder: Path) -> str:
    """sha256 over the sorted names inside `folder` and the contents of all files of items."""
    digest = hashlib.sha256()
    for path in sorted({path for item in items for path in item.files()}):
        digest.update(encoded(path.relative_to(folder).as_posix()) + b"\0")
        with open(path, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def frame_of(sample: Listed) -> RawFrame:
    """The raw."""
    return sample.frame()


def photo_of(sample: Listed) -> Picture:
    """The photo, uint8 [H, W, 3] sRGB, upright."""
    if isinstance(sample, ShardSample):
        return sample.photo()
    assert sample.photo is not None
    return load_photo(sample.photo)


def read_pair(sample: PairLike) -> tuple[RawFrame, Picture]:
    """Raw and truth. Raises UsageError where they differ in size."""
    frame, truth = sample.frame(), sample.truth()
    if truth.shape[:2] != (frame.height, frame.width):
        sizes = f"its picture is {truth.shape[1]}x{truth.shape[0]}, its raw {frame.width}x{frame.height}"
        raise UsageError(f"{sample.name}: {sizes}")
    return frame, truth


def bytes_of(value: Any) -> int:
    """Memory that a raw, a picture or a tuple of both takes."""
    if isinstance(value, tuple):
        return sum(map(bytes_of, value))
    return int(value.mosaic.nbytes if isinstance(value, RawFrame) else value.nbytes)
