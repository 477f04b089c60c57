"""`profile`: several ISP files on one device, measured one after the other, into one report.

It checks what was asked before anything is measured, names data by name and hash and never by path, and goes on
where one model fails. How a device is reached is `targets`', what is measured `measure`'s.
"""

from __future__ import annotations

import datetime
import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from eguot_sdk.errors import EguotError, UsageError
from eguot_sdk.isp import DEFAULT_ISP
from eguot_sdk.pairs import Pair, list_pairs
from eguot_sdk.progress import Progress, progress_bar
from eguot_sdk.raw import read_raw

from .measure import SYNTHETIC_SIZE, Job
from .schema import Failure, Machine, ModelProfile, PairsFacts, RawFacts, Report
from .targets import open_target

DEFAULT = "default"
"""Names the ISP inside the package."""
BUSY_SHARE = 0.1
"""Share of the cores that others may keep busy before a report says so."""


def profile(
    models: Sequence[str | Path],
    *,
    device: str = "local",
    raw: str | Path | None = None,
    pairs: str | Path | None = None,
) -> Report:
    """Measure ISP files (or `default`) on a device, with progress on stderr.

    `raw`: the file to develop; without it a mosaic of 3 megapixels that is the same everywhere. `pairs`: a pairs
    folder to score the same loaded ISP on. Raises UsageError, RawError, or EguotError where the device
    cannot be asked; a model that fails is in `failed`.
    """
    target = open_target(device)
    jobs = _jobs(models, raw, pairs)
    raw_facts = _raw_facts(raw)
    pairs_facts = None if pairs is None else _pairs_facts(Path(pairs))
    machine = target.machine()
    measured: list[ModelProfile] = []
    failed: list[Failure] = []
    with progress_bar(len(jobs), label=f"profile on {target.device}") as bar:
        for job in jobs:
            try:
                measured.append(target.measure(job, partial(_show, bar, job.name)))
            except EguotError as error:
                failed.append(Failure(name=job.name, message=str(error)))
            bar.update(1)
    return Report(
        device=target.device,
        created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=machine,
        raw=raw_facts,
        pairs=pairs_facts,
        models=tuple(measured),
        failed=tuple(failed),
        notes=_notes(machine, measured),
    )


def _show(bar: Progress[int], name: str, words: str) -> None:
    bar.update(0, f"{name}: {words}")


def _jobs(models: Sequence[str | Path], raw: str | Path | None, pairs: str | Path | None) -> list[Job]:
    """One job per model, each with a name of its own."""
    if not models:
        raise UsageError("name at least one ISP file to profile")
    paths = [_model_path(model) for model in models]
    counts = Counter(path.name for path in paths)
    names = [path.name if counts[path.name] == 1 else f"{path.resolve().parent.name}/{path.name}" for path in paths]
    if len(set(names)) < len(names):
        raise UsageError(f"{next(n for n in names if names.count(n) > 1)} is named twice: name each ISP file once")
    where = [None if path is None else str(Path(path).resolve()) for path in (raw, pairs)]
    return [
        Job(name=name, model=str(path.resolve()), raw=where[0], pairs=where[1])
        for name, path in zip(names, paths, strict=True)
    ]


def _model_path(model: str | Path) -> Path:
    path = Path(model)
    if str(model) == DEFAULT and not path.exists():
        path = DEFAULT_ISP
    if not path.is_file():
        raise UsageError(f"{path}: no such ISP file; give a .tflite that `convert` wrote, or `{DEFAULT}`")
    return path


def _raw_facts(raw: str | Path | None) -> RawFacts:
    if raw is None:
        height, width = SYNTHETIC_SIZE
        return RawFacts(name="synthetic", sha256=None, width=width, height=height)
    path = Path(raw)
    if not path.is_file():
        raise UsageError(f"{path}: no such raw file")
    height, width = read_raw(path).mosaic.shape
    return RawFacts(name=path.name, sha256=_sha256([path]), width=width, height=height)


def _pairs_facts(folder: Path) -> PairsFacts:
    pairs = list_pairs(folder)
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
    return hashlib.sha256(lines.encode()).hexdigest()


def _notes(machine: Machine, models: Sequence[ModelProfile]) -> tuple[str, ...]:
    notes = []
    for model in models:
        others = model.other_load_cores
        if others is not None and others > BUSY_SHARE * machine.cores:
            notes.append(
                f"busy machine: other processes used {others:.1f} of {machine.cores} cores while {model.name} was "
                "measured, so its times are too long"
            )
    if machine.governor not in (None, "performance"):
        notes.append(f"the frequency governor is {machine.governor}: times depend on what the machine did before")
    return tuple(notes)
