"""Many raw files to many pictures: which file becomes which picture, and the run over them.

A picture is named after its raw and always lies directly in the output folder; raws of one name get pictures told
apart by the raw's suffix (IMG.dng.jpg, IMG.crw.jpg) or a number. One failing file never stops the others, not even one
that crashes LibRaw: raws are decoded in another process. A path that may not be looked at counts as a file, and reading
or writing it says what is wrong: os.path does so, where Path raises. While one raw is developed the next is decoded and
the picture before is encoded by a thread.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .chatter import quiet
from .errors import EguotError, OutputError, RawError, UsageError
from .output import JPEG_QUALITY, SUFFIXES, remove_leftovers, write_image
from .paths import visible_files
from .progress import Progress, progress_bar
from .raw import RAW_SUFFIXES
from .workers import map_cluster

if TYPE_CHECKING:
    from .isp import ISP
    from .raw import Overrides, RawFrame
    from .shading import LensShading

PICTURE_SUFFIX = {"jpg": ".jpg", "png": ".png", "tiff": ".tiff"}
Existing = Literal["fail", "overwrite", "skip"]
JOBS_PER_TASK = 8
"""Raws that a worker of a cluster develops with one ISP."""
LARGE_PIXELS = 50_000_000
"""A raw above this is developed and written alone, so that memory never holds two of them."""


@dataclass(frozen=True)
class Job:
    """One raw and the picture it becomes."""

    raw: Path
    picture: Path
    others: tuple[Path, ...] = ()
    """Links to the same raw, which are skipped."""


@dataclass
class Result:
    """How a run ended."""

    written: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    """Raws that failed, and why."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: paths of the pictures that were written, of the raws that were skipped or failed, and why."""
        lists = {name: [str(path) for path in getattr(self, name)] for name in ("written", "skipped", "failed")}
        return {**lists, "errors": {str(path): why for path, why in self.failed.items()}}

    def summary(self) -> str:
        """One line for a person."""
        places = sorted({str(p.parent) for p in self.written})
        if len(self.written) == 1:
            first = f"developed 1 picture: {self.written[0]}"
        else:
            first = f"developed {len(self.written)} pictures" + (f" into {places[0]}" if len(places) == 1 else "")
        parts = [first]
        if self.skipped:
            parts.append(f"skipped {len(self.skipped)}")
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        return ", ".join(parts)


def plan(
    inputs: Sequence[Path], output: Path | None, *, format_: str | None, bits: int, to_folder: bool = False
) -> list[Job]:
    """What becomes what. `output`: a picture file for one input, a folder, or None for the current folder.

    `to_folder`: it is a folder, whatever its name. Raises UsageError where the arguments contradict each other.
    """
    found = _raws(inputs)
    raws = [same[0] for same in found]
    if output is not None and not to_folder and _names_picture(output):
        if len(raws) != 1 or os.path.isdir(inputs[0]):
            raise UsageError(f"-o {output} names one picture, but there are {len(raws)} raws: name a folder")
        kind = SUFFIXES[output.suffix.lower()]
        if format_ not in (None, kind):
            raise UsageError(f"-o {output} and --format {format_} contradict each other")
        _check_bits(kind, bits)
        jobs = [Job(raws[0], output, found[0][1:])]
    else:
        kind = format_ or ("jpg" if bits == 8 else "png")
        _check_bits(kind, bits)
        folder = output or Path()
        names = _names(raws, PICTURE_SUFFIX[kind])
        jobs = [Job(same[0], folder / name, same[1:]) for same, name in zip(found, names, strict=True)]
    sources = {_key(raw) for raw in raws}
    for job in jobs:
        if _key(job.picture) in sources:
            raise UsageError(f"{job.picture}: the picture would replace a raw; choose another folder")
    return jobs


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How every raw of a run is developed; None: the default."""

    model: Path | None = None
    threads: int | None = None
    tile: int | Literal["whole"] | None = None
    delegate: Path | None = None
    bits: Literal[8, 16] = 8
    quality: int = JPEG_QUALITY
    exposure: float = 0.0
    lens_shading: LensShading = "auto"
    overrides: Overrides | None = None
    existing: Existing = "fail"


def run(jobs: Sequence[Job], settings: Settings, *, cluster: str | None = None) -> Result:
    """Develop every job, here or on the Dask cluster at an address; a failure is one line on stderr.

    Raises only what concerns all files, such as a bad ISP file.
    """
    result = Result()
    remove_leftovers([job.picture for job in jobs])
    todo = []
    for job in jobs:
        result.skipped += job.others
        if settings.existing == "skip" and os.path.exists(job.picture):
            result.skipped.append(job.raw)
        else:
            todo.append(job)
    if todo:
        with quiet() as stream, progress_bar(len(todo), label="develop", stream=stream) as bar:
            if cluster is None:
                _Run(todo, settings, result, bar).all()
            else:
                _on_cluster(todo, settings, result, bar, cluster)
    return result


def _on_cluster(jobs: Sequence[Job], settings: Settings, result: Result, bar: Progress[int], cluster: str) -> None:
    """Batches of jobs on the workers of a Dask cluster, by the same code; paths are made absolute for them."""
    there = [Job(job.raw.absolute(), job.picture.absolute()) for job in jobs]
    asked = {job.raw.absolute(): job for job in jobs}
    absolute = {
        name: path.absolute() for name in ("model", "delegate") if (path := getattr(settings, name)) is not None
    }
    develop = partial(develop_batch, replace(settings, **absolute))
    batches = [there[i : i + JOBS_PER_TASK] for i in range(0, len(there), JOBS_PER_TASK)]
    for written, failed, lines in map_cluster(develop, batches, cluster):
        for line in lines:
            bar.message(line)
        result.written += [asked[raw].picture for raw in written]
        result.failed |= {asked[raw].raw: why for raw, why in failed.items()}
        bar.update(len(written) + len(failed))


def develop_batch(settings: Settings, jobs: Sequence[Job]) -> tuple[list[Path], dict[Path, str], list[str]]:
    """Develop some jobs: the raws whose pictures are written, those that failed and why, and what there is to say."""
    said = io.StringIO()
    result = Result()
    with progress_bar(len(jobs), label="develop", stream=said) as bar:
        _Run(jobs, settings, result, bar).all()
    written = [job.raw for job in jobs if job.raw not in result.failed]
    return (
        written,
        result.failed,
        [line for line in said.getvalue().splitlines() if line.startswith(("Error:", "Note:"))],
    )


class _Run:
    """One run over many files: decoding ahead in a process, developing here, writing behind in a thread."""

    def __init__(self, jobs: Sequence[Job], settings: Settings, result: Result, bar: Progress[int]) -> None:
        self.jobs, self.settings, self.result, self.bar = jobs, settings, result, bar
        self.reading: Future[RawFrame] | None = None
        self.writing: tuple[Job, Future[None]] | None = None

    def all(self) -> None:
        """Develop every job and wait until the last picture is written."""
        from .decoding import Decoder
        from .raw import AS_IN_FILE
        from .shading import shaded

        overrides = self.settings.overrides or AS_IN_FILE
        settings = self.settings
        with Decoder() as decoder:
            decoder.start()  # gets ready while the ISP is opened

            def read(job: Job) -> RawFrame:
                if settings.existing == "fail" and os.path.exists(job.picture):
                    raise OutputError(
                        f"{job.raw}: its picture {job.picture} exists; use --overwrite or --skip-existing"
                    )
                return shaded(decoder.read(job.raw, overrides=overrides), settings.lens_shading)

            from .isp import ISP, check_bits

            with (
                ISP.load(
                    settings.model, threads=settings.threads, tile=settings.tile, delegate=settings.delegate
                ) as isp,
                ThreadPoolExecutor(1) as reader,
                ThreadPoolExecutor(1) as writer,
            ):
                check_bits(isp.spec, settings.bits)  # concerns all files
                try:
                    for number, job in enumerate(self.jobs):
                        if self.reading is None:
                            self.reading = reader.submit(read, job)
                        following = self.jobs[number + 1 : number + 2]
                        self._one(isp, job, [partial(reader.submit, read, j) for j in following], writer)
                    self._finish_writing()
                except BaseException:
                    decoder.close()  # or leaving the block would wait for what is being decoded
                    raise

    def _one(
        self, isp: ISP, job: Job, following: Sequence[Callable[[], Future[RawFrame]]], writer: ThreadPoolExecutor
    ) -> None:
        """Develop the job that is being read, have the following one read meanwhile, and have the picture written."""
        assert self.reading is not None
        reading, self.reading = self.reading, None
        try:
            frame = reading.result()
            del reading  # it holds the mosaic, which must be gone when the picture is encoded
            large = frame.mosaic.size > LARGE_PIXELS
            if large:
                self._finish_writing()
            elif following:
                self.reading = following[0]()
            for note in _notes(frame):
                self.bar.message(f"Note: {job.raw}: {note}")

            def show(done: int, tiles: int) -> None:
                self.bar.update(0, note=f"{job.raw.name}, tile {done} of {tiles}")

            rgb = isp.process(frame, exposure=self.settings.exposure, bits=self.settings.bits, progress=show)
            exif = frame.exif
            del frame
            self._finish_writing()
            self.writing = job, writer.submit(_write, job, rgb, exif, self.settings.quality)
            del rgb
            if large:
                self._finish_writing()
        except Exception as error:  # one file must not stop the others, whatever is in it
            self._failed(job, error)

    def _finish_writing(self) -> None:
        if self.writing is None:
            return
        (job, future), self.writing = self.writing, None
        try:
            future.result()
        except Exception as error:
            self._failed(job, error)
            return
        self.result.written.append(job.picture)
        self.bar.update()

    def _failed(self, job: Job, error: Exception) -> None:
        why = self.result.failed[job.raw] = _why(job.raw, error)
        self.bar.message(f"Error: {why}")
        self.bar.update()


def _write(job: Job, rgb: Any, exif: Any, quality: int) -> None:
    try:
        job.picture.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{job.picture.parent}: cannot be made ({error.strerror or error})") from error
    write_image(job.picture, rgb, exif=exif, quality=quality)


def _notes(frame: RawFrame) -> list[str]:
    """What was not in the file and had to be assumed."""
    notes = []
    if frame.white_balance is None:
        why = frame.origins.get("white_balance", "absent")
        notes.append(f"white balance {why}: estimated from the picture (grey world); --wb R,G,B sets it")
    if frame.matrix is None:
        notes.append("no camera matrix: a typical camera's is used, colours may be off")
    shading = frame.origins.get("gain_maps", "")
    if "not used" in shading:
        notes.append(f"lens shading left as it is: {shading}")
    return notes


def _why(raw: Path, error: Exception) -> str:
    """One line that names the raw."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        text = f"{raw}: not enough memory; try a smaller --tile"
    elif not isinstance(error, EguotError):
        text = f"{raw}: unexpected {type(error).__name__} ({text}); please report it with the file"
    elif str(raw) not in text:
        text = f"{raw}: {text}"
    return text


def _raws(inputs: Sequence[Path]) -> list[tuple[Path, ...]]:
    """Files as named and the raws of folders, each once, in order, with the links to the same raw after it."""
    found: dict[str, dict[str, Path]] = {}
    for path in inputs:
        for member in _inside(path) if os.path.isdir(path) else [path]:
            found.setdefault(_key(member), {}).setdefault(os.path.abspath(member), member)
    return [tuple(same.values()) for same in found.values()]


def _inside(folder: Path) -> list[Path]:
    """The raws of a folder."""
    try:
        inside = sorted(visible_files(folder, folder.iterdir(), RAW_SUFFIXES))
        if inside:
            return inside
        for below in sorted(path for path in folder.iterdir() if path.is_dir()):
            if any(visible_files(below, below.iterdir(), RAW_SUFFIXES)):
                raise RawError(f"{folder}: no raw files in this folder itself; name {below}, which has some")
    except OSError as error:
        raise RawError(f"{folder}: cannot be listed ({error.strerror or error})") from error
    raise RawError(f"{folder}: no raw files in this folder")


def _names_picture(output: Path) -> bool:
    if os.path.isdir(output):
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
