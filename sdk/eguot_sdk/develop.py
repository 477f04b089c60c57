"""Many raw files to many pictures: which file becomes which picture, and the run over them.

A picture is named after its raw and always lies directly in the output folder; raws of one name get pictures told
apart by the raw's suffix (IMG.dng.jpg, IMG.crw.jpg) or a number. One failing file never stops the others.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .chatter import quiet
from .errors import EguotError, OutputError, RawError, UsageError
from .output import SUFFIXES, write_image
from .progress import Progress, progress_bar

if TYPE_CHECKING:
    from .isp import ISP

# Suffixes by which a folder's raws are known; a file named on the command line may have any.
RAW_SUFFIXES = frozenset(
    f".{suffix}"
    for line in (
        "3fr arw bay cap cr2 cr3 crw cs1 dc2 dcr dcs dng drf eip erf fff gpr iiq k25 kdc mdc mef mos mrw nef nrw",
        "orf pef ptx pxn qtk raf raw rw2 rwl rwz sr2 srf srw x3f",
    )
    for suffix in line.split()
)
PICTURE_SUFFIX = {"jpg": ".jpg", "png": ".png", "tiff": ".tiff"}
Existing = Literal["fail", "overwrite", "skip"]


@dataclass(frozen=True)
class Job:
    """One raw and the picture it becomes."""

    raw: Path
    picture: Path


@dataclass
class Result:
    """How a run ended."""

    written: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: list[Path] = field(default_factory=list)

    def summary(self) -> str:
        """One line for a person."""
        places = sorted({str(p.parent) for p in self.written})
        if len(self.written) == 1:
            first = f"developed 1 picture: {self.written[0]}"
        else:
            first = f"developed {len(self.written)} pictures" + (f" into {places[0]}" if len(places) == 1 else "")
        parts = [first]
        if self.skipped:
            parts.append(f"skipped {len(self.skipped)} that exist")
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        return ", ".join(parts)


def plan(inputs: Sequence[Path], output: Path | None, *, format_: str | None, bits: int) -> list[Job]:
    """What becomes what. `output`: a picture file for one input, a folder, or None for the current folder.

    Raises UsageError where the arguments contradict each other.
    """
    raws = _raws(inputs)
    one = output is not None and _names_picture(output)
    if one and output is not None:
        if len(raws) != 1 or inputs[0].is_dir():
            raise UsageError(f"-o {output} names one picture, but there are {len(raws)} raws: name a folder")
        kind = SUFFIXES[output.suffix.lower()]
        if format_ not in (None, kind):
            raise UsageError(f"-o {output} and --format {format_} contradict each other")
        _check_bits(kind, bits)
        jobs = [Job(raws[0], output)]
    else:
        kind = format_ or ("jpg" if bits == 8 else "png")
        _check_bits(kind, bits)
        folder = output or Path()
        jobs = [Job(raw, folder / name) for raw, name in zip(raws, _names(raws, PICTURE_SUFFIX[kind]), strict=True)]
    sources = {_key(raw) for raw in raws}
    for job in jobs:
        if _key(job.picture) in sources:
            raise UsageError(f"{job.picture}: the picture would replace a raw; choose another folder")
    return jobs


def run(
    jobs: Sequence[Job],
    *,
    model: Path | None,
    threads: int | None,
    tile: int | Literal["whole"] | None,
    bits: Literal[8, 16],
    exposure: float,
    existing: Existing,
) -> Result:
    """Develop every job; a failure is one line on stderr.

    Raises only what concerns all files, such as a bad ISP file.
    """
    result = Result()
    todo = []
    for job in jobs:
        if existing == "skip" and job.picture.exists():
            result.skipped.append(job.raw)
        else:
            todo.append(job)
    if not todo:
        return result
    from .isp import ISP

    with (
        quiet() as stream,
        ISP.load(model, threads=threads, tile=tile) as isp,
        progress_bar(len(todo), label="develop", stream=stream) as bar,
    ):
        for job in todo:
            try:
                _develop(isp, job, bar, bits=bits, exposure=exposure, existing=existing)
                result.written.append(job.picture)
            except UsageError:
                raise
            except Exception as error:  # one file must not stop the others, whatever is in it
                result.failed.append(job.raw)
                _complain(bar, job.raw, error)
            bar.update()
    return result


def _develop(
    isp: ISP, job: Job, bar: Progress[int], *, bits: Literal[8, 16], exposure: float, existing: Existing
) -> None:
    from .raw import read_raw

    if existing == "fail" and job.picture.exists():
        raise OutputError(f"{job.raw}: its picture {job.picture} exists; use --overwrite or --skip-existing")
    frame = read_raw(job.raw)

    def show(done: int, tiles: int) -> None:
        bar.update(0, note=f"{job.raw.name}, tile {done} of {tiles}")

    rgb = isp.process(frame, exposure=exposure, bits=bits, progress=show)
    try:
        job.picture.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{job.picture.parent}: cannot be made ({error.strerror or error})") from error
    write_image(job.picture, rgb, exif=frame.exif)


def _complain(bar: Progress[int], raw: Path, error: Exception) -> None:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        text = f"{raw}: not enough memory; try a smaller --tile"
    elif not isinstance(error, EguotError):
        text = f"{raw}: unexpected {type(error).__name__} ({text}); please report it with the file"
    elif str(raw) not in text:
        text = f"{raw}: {text}"
    bar.message(f"Error: {text}")


def _raws(inputs: Sequence[Path]) -> list[Path]:
    """Files as named and the raws of folders, each once, in order."""
    found: dict[str, Path] = {}
    for path in inputs:
        if path.is_dir():
            try:
                inside = sorted(p for p in path.iterdir() if p.suffix.lower() in RAW_SUFFIXES and p.is_file())
            except OSError as error:
                raise RawError(f"{path}: cannot be listed ({error.strerror or error})") from error
            if not inside:
                raise RawError(f"{path}: no raw files in this folder")
            members = inside
        else:
            members = [path]
        for member in members:
            found.setdefault(_key(member), member)
    return list(found.values())


def _names_picture(output: Path) -> bool:
    if output.is_dir():
        return False
    suffix = output.suffix.lower()
    if suffix in (".bmp", ".gif", ".webp", ".heic", ".avif", ".jxl", ".jp2"):
        raise UsageError(f"-o {output}: pictures are written as {', '.join(SUFFIXES)}")
    return suffix in SUFFIXES


def _names(raws: Sequence[Path], suffix: str) -> list[str]:
    """File names of the pictures, all different also where upper and lower case count as one."""
    stems = Counter(raw.stem.lower() for raw in raws)
    taken: set[str] = set()
    names = []
    for raw in raws:
        base = raw.stem if stems[raw.stem.lower()] == 1 else raw.name
        name, number = base + suffix, 1
        while name.lower() in taken:
            number += 1
            name = f"{base}-{number}{suffix}"
        taken.add(name.lower())
        names.append(name)
    return names


def _key(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))


def _check_bits(kind: str, bits: int) -> None:
    if kind == "jpg" and bits == 16:
        raise UsageError("JPEG has 8 bits; with --bits 16 use --format png or tiff")
