"""A data set as shards: each file decoded once, in processes of this machine or on a cluster, damaged ones listed.

Each task makes one shard from a fixed run of items, so the result does not depend on how many workers there were.
A finished set lies in OUT with `prepared.json`, one that was begun with `unfinished`, which is done again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

from eguot_sdk.chatter import quiet
from eguot_sdk.errors import EguotError, OutputError, UsageError
from eguot_sdk.output import written_beside
from eguot_sdk.progress import progress_bar
from eguot_sdk.workers import core_count, map_cluster, map_processes, require_cluster

from .datasets import Dataset, Item, open_dataset, split_scenes
from .datasets.check import read_item
from .datasets.levels import check_values
from .shards import Sample, write_shards

ITEMS_PER_SHARD = 512
SUMMARY = "prepared.json"
BEGUN = "unfinished"
"""Lies in OUT until the set is whole, so that only shards of `prepare` are ever written over."""
KEPT_BYTES = (b"\xff\xd8", b"\x89P")
"""Pictures that are JPEG or PNG go into shards as they are."""


@dataclass(frozen=True, slots=True)
class Task:
    """One shard to write."""

    folder: Path
    prefix: str
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` did."""

    shards: tuple[str, ...]
    samples: int
    damaged: tuple[str, ...]
    notes: tuple[str, ...]


def prepare(folder: Path, out: Path, *, unpaired: bool = False, cluster: str | None = None) -> Prepared:
    """Write OUT/PART/*.tar for the parts of a data set, or OUT/raw and OUT/srgb from different scenes with `unpaired`.

    `cluster`: address of a Dask scheduler. Raises UsageError where OUT holds something else, or where levels or CFA are
    contradicted by the data.
    """
    dataset = open_dataset(folder)
    wrong = check_values(dataset)
    if wrong:
        raise UsageError(f"{folder}: {wrong[0]}; see `eguot-sdk data check`, and correct it in {folder}/dataset.json")
    groups, notes = _groups(dataset, unpaired)
    tasks = [task for name, items in groups.items() for task in _tasks(out / name, items)]
    if cluster is not None:
        require_cluster()
    _make_empty(out)
    done = _run(tasks, cluster)
    shards = tuple(str(path.relative_to(out)) for paths, _, _ in done for path in paths)
    result = Prepared(
        shards, sum(count for _, count, _ in done), tuple(line for _, _, lines in done for line in lines), notes
    )
    if not result.samples:
        raise EguotError(f"{folder}: no file of it could be read, first: {result.damaged[0]}")
    values = None if dataset.values is None else asdict(dataset.values)
    with written_beside(out / SUMMARY) as file:
        summary = {"kind": dataset.kind, "values": values, "unpaired": unpaired} | asdict(result)
        file.write(json.dumps(summary, indent=1).encode())
    (out / BEGUN).unlink(missing_ok=True)
    return result


def _groups(dataset: Dataset, unpaired: bool) -> tuple[dict[str, Sequence[Item]], tuple[str, ...]]:
    if not unpaired:
        return dict(dataset.parts), dataset.notes
    raws, photos, how = split_scenes(dataset.part("train"))
    groups: dict[str, Sequence[Item]] = {"raw": raws, "srgb": photos}
    groups |= {name: items for name, items in dataset.parts.items() if name in ("val", "test")}
    return groups, (*dataset.notes, how)


def _tasks(folder: Path, items: Sequence[Item]) -> Iterator[Task]:
    for number, start in enumerate(range(0, len(items), ITEMS_PER_SHARD)):
        yield Task(folder, f"shard-{number:06d}", tuple(items[start : start + ITEMS_PER_SHARD]))


def _run(tasks: Sequence[Task], cluster: str | None) -> list[tuple[list[Path], int, list[str]]]:
    if cluster is not None:
        results = map_cluster(write_task, tasks, cluster)
    elif len(tasks) == 1 or core_count() == 1:
        results = map(write_task, tasks)
    else:
        results = map_processes(write_task, tasks)
    with quiet() as stream, progress_bar(len(tasks), label="shards", stream=stream) as bar:
        done = []
        for result in results:
            done.append(result)
            bar.update()
    return done


def write_task(task: Task) -> tuple[list[Path], int, list[str]]:
    """Write one shard: its paths, how many samples are in it, and a line per item that was left out."""
    damaged: list[str] = []
    count = 0

    def samples() -> Iterator[Sample]:
        nonlocal count
        for item in task.items:
            try:
                frame, picture = read_item(item)
            except EguotError as error:
                damaged.append(str(error))
                continue
            yield Sample(item.name, frame, picture if item.photo is None else _kept_bytes(item.photo) or picture)
            count += 1

    paths = write_shards(task.folder, samples(), prefix=task.prefix)
    return paths, count, damaged


def _kept_bytes(photo: Path) -> bytes | None:
    """The file of a picture that goes into a shard as it is."""
    with photo.open("rb") as file:
        if file.read(2) not in KEPT_BYTES:
            return None
    return photo.read_bytes()


def _leftover(path: Path) -> bool:
    """Whether it is what a killed process had begun to write."""
    return fnmatch(path.name, ".shard-*.tar.*.part") or fnmatch(path.name, f".{SUMMARY}.*.part")


def _make_empty(out: Path) -> None:
    try:
        if out.exists() and not out.is_dir():
            raise UsageError(f"{out}: is a file; name a folder")
        if (out / SUMMARY).exists():
            raise UsageError(f"{out}: exists and holds a prepared set; name another folder or remove it")
        if out.is_dir():
            files = [p for p in out.rglob("*") if p.is_file()]
            begun = out / BEGUN in files
            ours = {p for p in files if p.name == BEGUN or fnmatch(p.name, "shard-*.tar") or _leftover(p)}
            foreign = next((p for p in files if not begun or p not in ours), None)
            if foreign is not None:
                raise UsageError(f"{out}: holds {foreign.name}; name an absent or empty folder")
            for stale in ours - {out / BEGUN}:
                stale.unlink()
        out.mkdir(parents=True, exist_ok=True)
        (out / BEGUN).touch()
    except OSError as error:
        raise OutputError(f"{out}: cannot be made ({error.strerror or error})") from error
