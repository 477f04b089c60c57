"""`profile`: several ISP files on one or more devices, one after the other, into one report.

It checks what was asked before anything is measured, names data by name and hash and never by path, and goes on
where one model fails. How a device is reached is `targets`', what is measured `measure`'s; `judge` scores what the
devices' own pictures and outputs are worth.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from eguot_sdk import __version__
from eguot_sdk.decoding import Decoder
from eguot_sdk.errors import EguotError, UsageError
from eguot_sdk.ispfile import read_spec
from eguot_sdk.pairs import Pair, list_pairs
from eguot_sdk.paths import DEFAULT, encoded, kind_of, named_isp, refuse_run
from eguot_sdk.progress import Progress, progress_bar

from .judge import Golden, accuracy, make_golden, parity
from .measure import SYNTHETIC_SIZE, Job
from .report import make_folder
from .schema import DeviceReport, Failure, Machine, ModelProfile, PairsFacts, RawFacts, Report
from .targets import Target, open_target

INTERRUPTED = "interrupted"
BUSY_SHARE = 0.1
"""Share of the cores that others may keep busy before a report says so."""
NOISY_PCT = 20.0
CLEANUP_S = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What to measure of every model, beyond the defaults."""

    raw: Path | None = None
    """Raw to develop; None: a mosaic of 3 megapixels that is the same everywhere."""
    pairs: Path | None = None
    """Pairs folder to score the device's pictures on."""
    threads: tuple[int, ...] = ()
    """Numbers of threads to sweep over."""
    sustained_s: float = 0.0
    """Develop frames for so long and see what heat does."""
    delegate: str | None = None
    """TFLite delegate library on the machine that measures; it is code and will run."""
    max_seconds: float | None = None
    """For one device, from connecting to the last result; what is not done by then is named as failed."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while measuring; what was not done by then is among the failures of `report`."""

    def __init__(self, report: Report) -> None:
        super().__init__(INTERRUPTED)
        self.report = report


def profile(
    models: Sequence[str | Path],
    *,
    device: str | Sequence[str] = "local",
    asked: Asked | None = None,
    benchmark_model: Path | None = None,
    pictures: Path | None = None,
    out: Path | None = None,
    command: str = "",
) -> Report:
    """Measure ISP files (or `default`) on devices, with progress on stderr.

    `benchmark_model`: LiteRT's tool, for adb devices. `pictures`: an empty folder that gets what each device made of
    the pairs, as DEVICE-MODEL/NAME.png by their places in the report. `out`: a folder that is made, if absent, once the
    arguments were checked and before anything is measured. Raises UsageError, RawError or OutputError; a device that
    cannot be reached and a model that fails are in `failed`. Ctrl-C raises Interrupted with what there is.
    """
    asked = asked or Asked()
    devices = [device] if isinstance(device, str) else list(device)
    targets = [open_target(name, benchmark_model=benchmark_model) for name in devices]
    if not devices or len(set(devices)) < len(devices):
        raise UsageError("name at least one device, and each once")
    for target in targets:
        target.check(asked.delegate)
    jobs = _jobs(models, asked)
    raw_facts = _raw_facts(asked.raw)
    pairs_facts = None if asked.pairs is None else _pairs_facts(asked.pairs)
    if out is not None:
        make_folder(out)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) if pictures is None else pictures
        golden = [_golden(job, Path(work)) for job in jobs]
        reports: list[DeviceReport] = []
        stopped = False
        for i, target in enumerate(targets):
            if stopped:
                reports.append(_nothing(target, jobs, INTERRUPTED))
            else:
                one, stopped = _on_device(i, target, jobs, golden, asked, Path(work), folder)
                reports.append(one)
    report = Report(
        created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
        sdk_version=__version__,
        raw=raw_facts,
        pairs=pairs_facts,
        devices=tuple(reports),
    )
    if stopped:
        raise Interrupted(report)
    return report


def _on_device(
    number: int,
    target: Target,
    jobs: Sequence[Job],
    golden: Sequence[Golden | None],
    asked: Asked,
    work: Path,
    pictures: Path,
) -> tuple[DeviceReport, bool]:
    """Everything on one device, and whether Ctrl-C ended it. One not reached has every model among its failures."""
    end = None if asked.max_seconds is None else time.monotonic() + asked.max_seconds
    measured: list[ModelProfile] = []
    failed: list[Failure] = []
    notes: list[str] = []
    machine, stopped = UNREACHED, False
    try:
        with progress_bar(len(jobs), label=f"profile on {target.device}") as bar, target:
            try:
                target.open(partial(_show, bar, "setting up"), end)
                machine = target.machine()
            except Exception as error:
                return _nothing(target, jobs, _why(error)), False
            for i, (job, known) in enumerate(zip(jobs, golden, strict=True)):
                try:
                    outputs = work / f"{number}-{i}"
                    profiled = _one(target, job, known, asked, outputs, end, len(jobs) - i, bar, notes)
                    kept = pictures / f"{number}-{len(measured)}"
                    if profiled.accuracy is not None:
                        kept.mkdir(parents=True, exist_ok=True)
                        for path in outputs.glob("*.png"):
                            path.replace(kept / path.name)
                    measured.append(profiled)
                except Exception as error:  # what was measured before must not be lost, whatever it is
                    failed.append(Failure(name=job.name, message=_why(error)))
                bar.update(1)
    except KeyboardInterrupt:
        stopped = True
        failed += [Failure(name=job.name, message=INTERRUPTED) for job in jobs[len(measured) + len(failed) :]]
    device = DeviceReport(
        device=target.device,
        machine=machine,
        models=tuple(measured),
        failed=tuple(failed),
        notes=(*_notes(machine, measured), *_passed_over(asked, measured), *notes),
    )
    return device, stopped


def _why(error: Exception) -> str:
    return " ".join(str(error).split()) if isinstance(error, EguotError) else f"{type(error).__name__}: {error}"


def _nothing(target: Target, jobs: Sequence[Job], why: str) -> DeviceReport:
    """A device on which nothing was measured."""
    failed = tuple(Failure(name=job.name, message=why) for job in jobs)
    return DeviceReport(device=target.device, machine=UNREACHED, models=(), failed=failed, notes=())


def _one(
    target: Target,
    job: Job,
    golden: Golden | None,
    asked: Asked,
    outputs: Path,
    end: float | None,
    left: int,
    bar: Progress[int],
    notes: list[str],
) -> ModelProfile:
    """One model there, and its pictures and outputs judged here; pictures that cannot be are told in `notes`."""
    budget = None if end is None else max((end - time.monotonic() - CLEANUP_S) / left, 0.1)
    if end is not None and time.monotonic() >= end:
        raise EguotError("not begun within --max-seconds: give more, or fewer models")
    outputs.mkdir()
    job = dataclasses.replace(
        job, outputs=str(outputs), golden=None if golden is None else str(golden.input_path), budget_s=budget
    )
    profiled = target.measure(job, partial(_show, bar, job.name), end)
    scores = None
    if asked.pairs is not None and profiled.frame is not None:
        _show(bar, job.name, "scoring pictures")
        try:
            scores = accuracy(outputs, list_pairs(asked.pairs))
        except EguotError as error:
            notes.append(f"{job.name}: its pictures were not scored ({error})")
    same = None if golden is None else parity(golden, outputs, read_spec(job.model))
    return dataclasses.replace(profiled, accuracy=scores, parity=same)


def _golden(job: Job, work: Path) -> Golden | None:
    """None where there is no reference for a file: it will fail on the devices too, and say why there."""
    try:
        return make_golden(job, work)
    except EguotError:
        return None


UNREACHED = Machine(
    system="unknown",
    cpu="unknown",
    soc=None,
    cores=0,
    memory_mb=None,
    governor=None,
    python="unknown",
    packages={},
    delegates=(),
    emulated=None,
)


def _show(bar: Progress[int], name: str, words: str) -> None:
    bar.update(0, f"{name}: {words}")


def _jobs(models: Sequence[str | Path], asked: Asked) -> list[Job]:
    """One job per model, each with a name of its own; where it is measured, golden and outputs are filled in."""
    if not models:
        raise UsageError("name at least one ISP file to profile")
    paths = [_model_path(model) for model in models]
    names = _names([Path(os.path.abspath(path)) for path in paths])
    if any(not 1 <= n <= 64 for n in asked.threads):
        raise UsageError(f"threads are whole numbers from 1 to 64, not {', '.join(map(str, asked.threads))}")
    if asked.max_seconds is not None and len(paths) * asked.sustained_s >= asked.max_seconds:
        raise UsageError(
            f"--sustained {asked.sustained_s:g} of each of {len(paths)} models leaves nothing of --max-seconds "
            f"{asked.max_seconds:g}: give more, or fewer models"
        )
    raw, pairs = (None if path is None else str(path.resolve()) for path in (asked.raw, asked.pairs))
    return [
        Job(
            name=name,
            model=str(path.resolve()),
            raw=raw,
            pairs=pairs,
            golden=None,
            outputs="",
            threads=asked.threads,
            sustained_s=asked.sustained_s,
            budget_s=None,
            delegate=asked.delegate,
        )
        for name, path in zip(names, paths, strict=True)
    ]


def _names(paths: Sequence[Path]) -> list[str]:
    """Of each file its name, after as many of its folders as tell it from the others."""
    names = []
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(f"{path.name} is named twice: name each ISP file once")
        length = next(
            n for n in range(1, len(path.parts) + 1) if [p.parts[-n:] for p in paths].count(path.parts[-n:]) == 1
        )
        names.append("/".join(path.parts[-length:]))
    return names


def _model_path(model: str | Path) -> Path:
    path = named_isp(model)
    if kind_of(path, UsageError) != "file":
        refuse_run(path)
        raise UsageError(f"{path}: no such ISP file; give a .tflite that `convert` wrote, or `{DEFAULT}`")
    return path


def _raw_facts(path: Path | None) -> RawFacts:
    if path is None:
        height, width = SYNTHETIC_SIZE
        return RawFacts(name="synthetic", sha256=None, width=width, height=height)
    if kind_of(path, UsageError) != "file":
        raise UsageError(f"{path}: no such raw file")
    with Decoder() as decoder:
        height, width = decoder.read(path).mosaic.shape
    return RawFacts(name=path.name, sha256=_sha256([path]), width=width, height=height)


def _pairs_facts(folder: Path) -> PairsFacts:
    """All pairs are read once: a damaged one is told now, not after minutes of measuring."""
    pairs = list_pairs(folder)
    for pair in pairs:
        pair.frame()
        pair.truth()
    return PairsFacts(name=folder.resolve().name, sha256=_sha256(_files(pairs)), images=len(pairs))


def _files(pairs: Sequence[Pair]) -> list[Path]:
    return sorted(path for pair in pairs for path in (pair.raw_path, pair.json_path, pair.truth_path))


def _sha256(paths: Sequence[Path]) -> str:
    """Of one file its own hash; of several that over the lines `hash name`."""
    hashes = []
    for path in paths:
        with path.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(paths) == 1:
        return hashes[0]
    lines = "".join(f"{digest} {path.name}\n" for digest, path in zip(hashes, paths, strict=True))
    return hashlib.sha256(encoded(lines)).hexdigest()


def _passed_over(asked: Asked, models: Sequence[ModelProfile]) -> list[str]:
    """What a device that runs the network alone (adb) could not do of what was asked."""
    asked_for = {
        "--raw": asked.raw, "--pairs": asked.pairs, "--threads": asked.threads, "--sustained": asked.sustained_s
    }  # fmt: skip
    options = [option for option, value in asked_for.items() if value]
    if not options or all(model.frame is not None for model in models):
        return []
    return [f"only the network ran here, on one thread: nothing was done for {', '.join(options)}"]


def _notes(machine: Machine, models: Sequence[ModelProfile]) -> tuple[str, ...]:
    notes = []
    if machine.emulated is not None:
        notes.append(
            f"emulated: not latency; {machine.emulated} runs this processor's programs, so no time here counts"
        )
    busy = [m for m in models if m.other_load_cores is not None and m.other_load_cores > BUSY_SHARE * machine.cores]
    if busy and machine.emulated is None:
        most = max(m.other_load_cores or 0.0 for m in busy)
        which = busy[0].name if len(busy) == 1 else f"{len(busy)} of {len(models)} models"
        notes.append(
            f"busy machine: other processes used up to {most:.1f} of {machine.cores} cores while {which} "
            f"{'was' if len(busy) == 1 else 'were'} measured, so times are too long"
        )
    noisy = [m for m in models if m.noise_pct is not None and m.noise_pct > NOISY_PCT]
    if noisy and machine.emulated is None:
        worst = max(m.noise_pct or 0.0 for m in noisy)
        notes.append(f"noisy machine: one and the same calculation took times that spread by up to {worst:.0f} %")
    if machine.emulated is None and machine.governor not in (None, "performance"):
        notes.append(f"the frequency governor is {machine.governor}: times depend on what the machine did before")
    return tuple(notes)
