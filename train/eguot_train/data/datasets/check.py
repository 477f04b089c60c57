"""What `data check` finds out about a folder: layout, parts, levels, CFA, damaged files, and a picture of all that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from eguot_sdk.chatter import quiet
from eguot_sdk.errors import EguotError, UsageError
from eguot_sdk.isp import ISP
from eguot_sdk.progress import progress_bar
from eguot_sdk.raw import RawFrame
from eguot_sdk.workers import core_count, map_processes

from ..crops import Picture, load_photo
from . import open_dataset
from .base import SETTINGS_FILE, Dataset, Item, RawValues, pairs_of, photos_of, raws_of, settings_file, spread
from .levels import SAMPLE, RawStatistics, cfa_contradictions, contradictions, plane_positions

SHOWN = 6
SIDE = 240
FEW = 64
"""Up to so many items are read without further processes."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check; `wrong` is what the data contradict."""

    dataset: Dataset
    counts: dict[str, dict[str, int]]
    """Part -> raws, photos and pairs."""
    damaged: tuple[str, ...]
    wrong: tuple[str, ...]
    notes: tuple[str, ...]
    statistics: RawStatistics
    whole: tuple[Item, ...]
    """What can be used."""

    @property
    def remedy(self) -> str:
        """What to do about what is wrong."""
        if self.dataset.values is not None:
            root = self.dataset.root
            return f"correct it in {settings_file(root, root.parent) or root / SETTINGS_FILE}"
        if self.dataset.kind == "pairs":
            return "correct it in its .json, or give it a truth that lies as the raw does"
        return "give it the picture of this raw, unturned, or take it out"

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        values = self.dataset.values
        return {
            "kind": self.dataset.kind,
            "title": self.dataset.title,
            "parts": self.counts,
            "values": None
            if values is None
            else {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(values).items()},
            "sampled": self.statistics.raws,
            "phase_seen": self.statistics.phase(),
            "clips_at": self.statistics.clips_at() if self.statistics.raws else None,
            "wrong": list(self.wrong),
            "damaged": list(self.damaged),
            "notes": list(self.notes),
        }


def check(folder: Path) -> Finding:
    """Read all of a folder, with a progress bar, and hold its levels and CFA against a sample of it."""
    dataset = open_dataset(folder)
    items = dataset.items()
    problems = _read_all(items)
    damaged = [line for line in problems if line is not None]
    whole = [item for item, line in zip(items, problems, strict=True) if line is None]
    statistics, wrong, notes = _levels(dataset, whole)
    counts = {
        name: {"raws": len(raws_of(i)), "photos": len(photos_of(i)), "pairs": len(pairs_of(i))}
        for name, i in dataset.parts.items()
    }
    return Finding(dataset, counts, tuple(damaged), tuple(wrong), (*dataset.notes, *notes), statistics, tuple(whole))


def read_item(item: Item) -> tuple[RawFrame | None, Picture | None]:
    """Raw and picture of an item, as far as it has them. Raises EguotError naming the file that cannot be used."""
    frame = item.frame() if item.raw is not None else None
    if item.photo is None:
        return frame, None
    if frame is None:
        return None, load_photo(item.photo)
    truth = item.truth()
    if truth.shape[:2] != frame.mosaic.shape:
        size = f"{truth.shape[1]} x {truth.shape[0]}"
        raise UsageError(f"{item.photo}: {size} pixels, its raw has {frame.width} x {frame.height}")
    return frame, truth


def problem_of(item: Item) -> str | None:
    """What is wrong with the files of an item; None: nothing."""
    try:
        read_item(item)
    except EguotError as error:
        return str(error)
    return None


def _read_all(items: Sequence[Item]) -> list[str | None]:
    if len(items) <= FEW or core_count() == 1:
        with quiet() as stream:
            return [problem_of(item) for item in progress_bar(items, label="read", stream=stream)]
    with quiet() as stream, progress_bar(len(items), label="read", stream=stream) as bar:
        found = []
        for line in map_processes(problem_of, items):
            found.append(line)
            bar.update()
    return found


def _levels(dataset: Dataset, whole: Sequence[Item]) -> tuple[RawStatistics, list[str], list[str]]:
    """Statistics of a sample, what contradicts the values in use, and what looks odd.

    Frames that carry their own values are one camera or many, so each is held against its own.
    """
    statistics = RawStatistics()
    wrong: list[str] = []
    notes: list[str] = []
    for item in spread(raws_of(whole), SAMPLE):
        frame, truth = item.frame(), item.truth() if item.paired else None
        if dataset.values is None:
            one = RawStatistics()
            one.add(frame.mosaic, truth)
            values = RawValues(frame.cfa, frame.black, min(frame.white), "in the file")
            sure, odd = contradictions(one, values)
            # What a camera wrote is not overruled by its levels looking odd; a phase that all pictures deny is.
            certain = cfa_contradictions(one, values) if item.paired else []
            wrong += [f"{item.name}: {line}" for line in certain]
            notes += [f"{item.name}: {line}" for line in (*sure, *odd) if line not in certain]
        statistics.add(frame.mosaic, truth)
    if dataset.values is not None and statistics.raws:
        sure, odd = contradictions(statistics, dataset.values)
        wrong, notes = wrong + sure, notes + odd
    return statistics, wrong, notes


def draw(path: Path, found: Finding) -> None:
    """A sheet: raws through a plain rendering, their pictures below, photos, and counts by plane with the levels.

    Raises OutputError, UsageError where there is nothing to show.
    """
    from ...sheet import save_sheet

    rows: list[list[Picture]] = []
    items, statistics = found.whole, found.statistics
    shown = spread(raws_of(items), SHOWN)
    if shown:
        with ISP.fake(threads=1) as isp:
            frames = [item.frame() for item in shown]
            rows.append([_small(isp.process(frame), item.name) for frame, item in zip(frames, shown, strict=True)])
        if any(item.paired for item in shown):
            rows.append([_small(item.truth(), "its picture") for item in shown if item.paired])
    photos = [item for item in spread(photos_of(items), SHOWN) if not item.paired]
    if photos:
        rows.append([_small(load_photo(item.photo), item.name) for item in photos if item.photo is not None])
    if statistics.raws:
        rows.append([_histogram(statistics, found.dataset.values or _values_of(frames[0]))])
    save_sheet(path, rows)


def _values_of(frame: RawFrame) -> RawValues:
    return RawValues(frame.cfa, frame.black, min(frame.white), "in the first file")


def _small(picture: NDArray[Any], caption: str) -> Picture:
    """At most SIDE pixels a side, with a caption."""
    image = Image.fromarray(picture.astype(np.uint8, copy=False))
    image.thumbnail((SIDE, SIDE))
    canvas = Image.new("RGB", (SIDE, image.height + 14), "white")
    canvas.paste(image, (0, 14))
    ImageDraw.Draw(canvas).text((2, 1), caption[:38], fill="black")
    return np.asarray(canvas)


def _histogram(statistics: RawStatistics, values: RawValues) -> Picture:
    """Counts of each position on a logarithmic scale, black and white as lines."""
    width, height, top = SHOWN * SIDE, 160, 14
    highest = max(statistics.highest(), int(values.white)) * 1.05 + 1
    canvas = Image.new("RGB", (width, height + top), "white")
    pen = ImageDraw.Draw(canvas)
    colours = {"R": "red", "Gr": "green", "Gb": "darkgreen", "B": "blue"}
    planes = plane_positions(values.cfa)
    for plane, position in planes.items():
        edges = np.linspace(0, highest, width + 1).astype(int)
        sums = np.concatenate([[0], np.cumsum(statistics.histogram[position])])
        ends = np.maximum(edges[1:], edges[:-1] + 1)  # counts are fewer than columns where a raw has few bits
        bins = sums[np.minimum(ends, len(sums) - 1)] - sums[np.minimum(edges[:-1], len(sums) - 1)]
        bins = bins / (ends - edges[:-1])
        level = np.log1p(bins) / max(np.log1p(bins.max()), 1e-9)
        points = [(x, top + height - 1 - float(v) * (height - 2)) for x, v in enumerate(level)]
        pen.line(points, fill=colours[plane])
    for level_dn, plane in zip(values.black, planes, strict=True):
        x = level_dn / highest * width
        pen.line([(x, top), (x, top + height)], fill=colours[plane])
    x = values.white / highest * width
    pen.line([(x, top), (x, top + height)], fill="black")
    black = " ".join(f"{b:g}" for b in values.black)
    text = f"counts by plane (log), lines: black {black}, white {values.white:g}, {values.cfa}, {values.origin}"
    pen.text((2, 1), text, fill="black")
    return np.asarray(canvas)
