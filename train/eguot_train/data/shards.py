"""Shards: data sets as tar files, written in one go and read piece by piece, for what no folder or memory holds.

A shard is an uncompressed tar, as WebDataset's are, with the members of a pairs folder, those of one sample side by
side: NAME_raw.png and NAME.json, NAME_srgb.jpg or .png, or all three; other members are passed over. Untarred, it is
a pairs folder. A set is a folder of .tar files, one .tar, or a pattern such as train-{000..127}.tar or part-*.tar.

Nothing is unpacked: headers say where members lie, samples are decoded as they are needed. The order is a function of
the seed and the epoch, over shards and inside each, so a run can go on from any position. Damaged samples take
their place in the order, are left out and named once.
"""

from __future__ import annotations

import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from glob import has_magic
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from PIL import Image

from eguot_sdk.errors import CorruptRaw, OutputError, UsageError
from eguot_sdk.output import written_beside
from eguot_sdk.pairs import RAW_SUFFIX, TRUTH_SUFFIXES, decode_frame, encode_frame
from eguot_sdk.paths import visible_files
from eguot_sdk.raw import RawFrame

from .crops import Picture, load_photo
from .window import Role, Stream

Use = Literal["raw", "srgb", "pairs", "test"]
"""What shards are read for: a role in training, or scoring."""
PARTS_FOR: dict[Use, tuple[str, ...]] = {
    "raw": ("raw", "all"),
    "srgb": ("srgb", "all"),
    "pairs": ("train", "all"),
    "test": ("test", "val", "all"),
}
"""Folders of a prepared set to read, the first that is there."""
SHARD_BYTES = 512 << 20
MAX_MEMBER_BYTES = 1 << 30
MAX_MEMBERS = 1 << 20
MAX_HEADER_BYTES = 1 << 20
MAX_SHARDS = 1 << 20
NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, slots=True)
class Sample:
    """What goes into a shard under one name: a raw, a picture of the same size and orientation, or one of them."""

    name: str
    frame: RawFrame | None = None
    picture: Picture | bytes | None = None
    """sRGB uint8 [H, W, 3], stored as PNG, or the bytes of a JPEG or PNG file, stored as they are."""


def write_shards(
    out: Path, samples: Iterable[Sample], *, prefix: str = "shard", shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Write OUT/PREFIX-000000.tar and on, each closed when it passes `shard_bytes`; returns their paths.

    Samples are taken one at a time, so any iterator will do. A shard gets its name when it is whole. The same samples
    make the same bytes. Raises UsageError on a bad or repeated name, OutputError.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be made ({error.strerror or error})") from error
    written: list[Path] = []
    seen: set[str] = set()
    waiting = iter(samples)
    sample = next(waiting, None)
    while sample is not None:
        path = out / f"{prefix}-{len(written):06d}.tar"
        with written_beside(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            while sample is not None and tar.offset < shard_bytes:
                _check_name(sample.name, seen)
                for name, data in _members(sample):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, BytesIO(data))
                sample = next(waiting, None)
        written.append(path)
    return written


def _check_name(name: str, seen: set[str]) -> None:
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise UsageError(f"the name of a sample must be a plain file name, not {name!r}")
    if name in seen:
        raise UsageError(f"two samples are called {name}: a sample needs a name of its own")
    seen.add(name)


def _members(sample: Sample) -> Iterator[tuple[str, bytes]]:
    if sample.frame is None and sample.picture is None:
        raise UsageError(f"sample {sample.name} holds neither a raw nor a picture")
    if sample.frame is not None:
        mosaic, meta = encode_frame(sample.frame)
        yield sample.name + RAW_SUFFIX, mosaic
        yield sample.name + ".json", meta
    if isinstance(sample.picture, bytes):
        suffix = {b"\xff\xd8": "jpg", b"\x89P": "png"}.get(sample.picture[:2])
        if suffix is None:
            raise UsageError(f"sample {sample.name}: expected the bytes of a JPEG or PNG picture")
        yield f"{sample.name}_srgb.{suffix}", sample.picture
    elif sample.picture is not None:
        png = BytesIO()
        Image.fromarray(np.ascontiguousarray(sample.picture)).save(png, "PNG", compress_level=4)
        yield f"{sample.name}_srgb.png", png.getvalue()


def is_shards(where: str | Path, use: Use = "pairs") -> bool:
    """Whether an argument names a set of shards: a .tar, a pattern, or a folder with .tar files at its top.

    Of a folder that `prepare` made the part for `use` is meant.
    """
    return str(where).endswith(".tar") or _shard_folder(Path(where), use) is not None


def shard_files(where: str | Path, use: Use = "pairs") -> list[Path]:
    """The shards that a folder, file or pattern names, sorted. Raises UsageError where one is missing or none is."""
    text = str(where)
    if Path(text).is_dir():
        folder = _shard_folder(Path(text), use)
        found = sorted(_tars(folder)) if folder else []
    elif NUMBERS.search(text):
        found = [Path(p) for p in _numbered(text)]
    elif has_magic(text):
        path = Path(text)
        found = sorted(p for p in path.parent.glob(path.name) if p.is_file())
    else:
        found = [Path(text)]
    missing = next((p for p in found if not p.is_file()), None)
    if missing is not None:
        raise UsageError(f"{missing}: no such shard")
    if not found:
        raise UsageError(f"{text}: no shards; expected .tar files")
    return found


def _shard_folder(folder: Path, use: Use) -> Path | None:
    """The folder itself, or the part of it, that holds .tar files."""
    places = [folder, *(folder / part for part in PARTS_FOR[use])]
    return next((p for p in places if p.is_dir() and any(_tars(p))), None)


def _tars(folder: Path) -> Iterator[Path]:
    return visible_files(folder, folder.iterdir(), frozenset((".tar",)))


def _numbered(text: str) -> list[str]:
    """A pattern with one range {000..127} written out, zeros kept."""
    match = NUMBERS.search(text)
    if match is None:
        return [text]
    first, last = (int(number) for number in match.groups())
    if not first <= last < first + MAX_SHARDS:
        raise UsageError(f"{text}: expected a range such as {{000..127}}")
    head, tail = text[: match.start()], text[match.end() :]
    return [f"{head}{number:0{len(match[1])}d}{tail}" for number in range(first, last + 1)]


@dataclass(frozen=True, slots=True)
class ShardSample:
    """Where one sample lies; reads and decodes when asked. Errors name the shard and the sample."""

    name: str
    shard: Path
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Suffix -> offset and size of a member's bytes."""

    @property
    def label(self) -> str:
        """Shard and name, for messages."""
        shard = f"{self.shard.name}/"
        return self.name if self.name.startswith(shard) else shard + self.name

    def frame(self) -> RawFrame:
        """The raw. Raises RawError."""
        return decode_frame(self._read(RAW_SUFFIX), self._read(".json"), self.label)

    def truth(self) -> Picture:
        """The picture, uint8 [H, W, 3] sRGB, as it lies in the file. Raises EguotError."""
        suffix = self._picture()
        return load_photo(Path(f"{self.label}{suffix}"), BytesIO(self._read(suffix)), upright=False)

    def photo(self) -> Picture:
        """The picture turned upright as its EXIF says."""
        suffix = self._picture()
        return load_photo(Path(f"{self.label}{suffix}"), BytesIO(self._read(suffix)))

    def holds(self, role: Role) -> bool:
        """Whether it has what a role needs."""
        raw = RAW_SUFFIX in self.members and ".json" in self.members
        picture = any(suffix in self.members for suffix in TRUTH_SUFFIXES)
        return (raw or role == "srgb") and (picture or role == "raw")

    def _picture(self) -> str:
        return next((s for s in TRUTH_SUFFIXES if s in self.members), TRUTH_SUFFIXES[0])

    def _read(self, suffix: str) -> bytes:
        if suffix not in self.members:
            raise CorruptRaw(f"{self.label}: its {self.name}{suffix} is missing")
        offset, size = self.members[suffix]
        if not 0 <= size <= MAX_MEMBER_BYTES:
            raise CorruptRaw(f"{self.label}{suffix}: {size} bytes are no size of a member")
        try:
            with open(self.shard, "rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise CorruptRaw(f"{self.shard}: cannot be read ({error.strerror or error})") from error
        if len(data) < size:
            raise CorruptRaw(f"{self.label}{suffix}: the shard ends inside it")
        return data


class _Headers:
    """A file as tarfile reads its headers: at most so many bytes at once, for a header may claim any size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def read_index(shard: Path, role: Role) -> tuple[list[ShardSample], str | None]:
    """The samples of a shard that a role can use, from its headers alone, and what is wrong with it, if anything.

    A damaged shard gives what lies before the damage.
    """
    found: list[ShardSample] = []
    problem = None
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=cast(Any, _Headers(file)), mode="r:") as tar:
            for count, info in enumerate(tar):
                if count >= MAX_MEMBERS:
                    problem = f"{shard.name}: more than {MAX_MEMBERS} members; the rest is left out"
                    break
                tar.members = []  # type: ignore[attr-defined] # tarfile would keep every header it has seen
                name, suffix = _split(info.name)
                if not info.isreg() or suffix is None:
                    continue
                if not found or found[-1].name != name:
                    found.append(ShardSample(name, shard))
                found[-1].members[suffix] = (info.offset_data, info.size)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        problem = f"{shard.name}: damaged after {len(found)} samples ({' '.join(str(error).split()):.100})"
    return [sample for sample in found if sample.holds(role)], problem


def _split(member: str) -> tuple[str, str | None]:
    """Member name -> sample name and suffix; None for what is no part of a sample."""
    name = member.removeprefix("./")
    for suffix in (RAW_SUFFIX, ".json", *TRUTH_SUFFIXES):
        if name.endswith(suffix) and len(name) > len(suffix):
            return name.removesuffix(suffix), suffix
    return name, None


class ShardStream(Stream[ShardSample]):
    """The samples of a set in the endless order of a seed: epoch after epoch, shards and samples shuffled in each.

    `position` counts samples from the start of the run, for rank `rank` of `world` every `world`-th one, so ranks
    see different samples and together all of them. `sample` goes forward; going back starts over.
    """

    def __init__(self, files: list[Path], role: Role, *, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        super().__init__(role, seed=seed, rank=rank, world=world)
        self._files = files
        self._indices: OrderedDict[Path, list[ShardSample]] = OrderedDict()
        self._counts: dict[Path, int] = {}
        self._at = (0, 0, 0)  # epoch, shard in its order, samples of all ranks before that shard
        self._order = self._shuffled(len(files), 0)

    def sample(self, position: int) -> ShardSample:
        """The sample at a position of this rank. Raises UsageError where the set has none of the role."""
        wanted = position * self._world + self._rank
        epoch, place, before = self._at
        if wanted < before:
            epoch, place, before = 0, 0, 0
            self._order = self._shuffled(len(self._files), 0)
        while True:
            shard = self._files[self._order[place]]
            count = self._counts.get(shard)
            if count is None:
                count = len(self._index(shard))
            if wanted < before + count:
                self._at = (epoch, place, before)
                inside = self._shuffled(count, epoch, int(self._order[place]) + 1)
                return self._index(shard)[int(inside[wanted - before])]
            before, place = before + count, place + 1
            if place == len(self._files):
                if before == 0:
                    why = f": {self.skipped[0]}" if self.skipped else self._other_roles()
                    raise UsageError(f"{self._files[0].parent}: its shards hold no samples for --{self._role}{why}")
                epoch, place = epoch + 1, 0
                self._order = self._shuffled(len(self._files), epoch)

    def _other_roles(self) -> str:
        """What the shards hold instead, and who reads it."""
        roles: tuple[Role, ...] = ("raw", "srgb", "pairs")
        held = [f"--{role}" for role in roles if role != self._role and read_index(self._files[0], role)[0]]
        return f", but for {' and '.join(held)}" if held else ""

    def _index(self, shard: Path) -> list[ShardSample]:
        if shard not in self._indices:
            samples, problem = read_index(shard, self._role)
            if problem is not None:
                self.skip(problem)
            self._indices[shard], self._counts[shard] = samples, len(samples)
            while len(self._indices) > 2:
                self._indices.popitem(last=False)
        return self._indices[shard]
