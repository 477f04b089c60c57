"""A report for people and for programs: a table, JSON, CSV. Files are written beside and renamed."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from eguot_sdk.errors import OutputError
from eguot_sdk.output import written_beside

from .schema import Failure, Latency, ModelProfile, Report, to_dict

HEAD = (
    "model", "KB", "load ms", "tile ms", "", "p90", "ms/MP", "", "p90", "peak MB", "PSNR dB", "SSIM", "dE2000",
)  # fmt: skip


def to_json(report: Report) -> str:
    """The whole report as JSON; `schema.from_dict(Report, ...)` reads it back."""
    return json.dumps(to_dict(report), indent=1)


def to_csv(report: Report) -> str:
    """One row per model under a header row that is always the same; nested names are joined by underscores."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    paths = list(_leaves(ModelProfile))
    writer.writerow(["device", *("_".join(path) for path in paths)])
    for model in report.models:
        writer.writerow([report.device, *(_at(model, path) for path in paths)])
    return text.getvalue()


def to_table(report: Report) -> str:
    """What a person wants to see: where, on what, one row per model, and what to beware of."""
    machine, raw = report.machine, report.raw
    lines = [
        f"{report.device}: {machine.cpu}, {machine.cores} cores, {machine.system}, Python {machine.python}",
        f"raw: {raw.name}, {raw.width} x {raw.height}"
        + ("" if report.pairs is None else f"; pairs: {report.pairs.name}, {report.pairs.images} images"),
    ]
    if report.models:
        lines += ["", *_columns([HEAD, *(_row(model) for model in report.models)]), "", *_legend(report.models[0])]
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"failed: {failure_line(failure)}" for failure in report.failed]
    return "\n".join(lines)


def failure_line(failure: Failure) -> str:
    """What failed and why; most errors name the file themselves."""
    return failure.message if failure.message.startswith(failure.name) else f"{failure.name}: {failure.message}"


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write report.json and report.csv into a folder, made if absent. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror or error})") from error
    written = []
    for name, text in (("report.json", to_json(report) + "\n"), ("report.csv", to_csv(report))):
        with written_beside(folder / name) as file:
            file.write(text.encode())
        written.append(folder / name)
    return written


def _row(model: ModelProfile) -> tuple[str, ...]:
    accuracy = model.accuracy
    return (
        model.name,
        f"{model.file_bytes / 1e3:.0f}",
        f"{model.load_ms:.0f}",
        _number(model.tile.latency.p50_ms, 2),
        _spread(model.tile.latency),
        _number(model.tile.latency.p90_ms, 2),
        _number(model.frame.per_megapixel_p50_ms, 1),
        _spread(model.frame.latency),
        _number(model.frame.per_megapixel_p90_ms, 1),
        f"{model.peak_memory_mb:.0f}",
        "-" if accuracy is None else f"{accuracy.psnr_db:.2f}",
        "-" if accuracy is None else f"{accuracy.ssim:.4f}",
        "-" if accuracy is None else f"{accuracy.de2000:.2f}",
    )


def _legend(model: ModelProfile) -> list[str]:
    tile, frame = model.tile, model.frame
    reading = ", reading the file included" if frame.reads_file else ""
    return [
        f"tile: {tile.height_packed} x {tile.width_packed} packed pixels on {tile.threads} thread; "
        f"ms/MP: raw to picture on {frame.threads} threads{reading}; {model.runtime}",
        "times are medians, with their interval of 95 % confidence, and 90th percentiles",
    ]


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    """The first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]


def _number(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def _spread(latency: Latency) -> str:
    """Half the confidence interval of the median, in percent of it."""
    if latency.p50_ms is None or latency.p50_low_ms is None or latency.p50_high_ms is None:
        return ""
    return f"±{50 * (latency.p50_high_ms - latency.p50_low_ms) / latency.p50_ms:.0f}%"


def _leaves(kind: Any) -> Iterator[tuple[str, ...]]:
    """Paths of attributes to all plain values of a type of the schema."""
    for name, hint in get_type_hints(kind).items():
        inner = next((k for k in (hint, *get_args(hint)) if dataclasses.is_dataclass(k)), None)
        yield from ((name,),) if inner is None else ((name, *rest) for rest in _leaves(inner))


def _at(value: Any, path: Sequence[str]) -> Any:
    for name in path:
        value = None if value is None else getattr(value, name)
    return value
