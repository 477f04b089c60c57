"""A report for people and programs: a table, JSON, CSV; the page is `page`'s. Files are written beside and renamed."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from eguot_sdk.errors import EguotError, OutputError, UsageError
from eguot_sdk.output import written_beside
from eguot_sdk.paths import encoded

from .schema import SCHEMA_VERSION, DeviceReport, Failure, Latency, Machine, ModelProfile, Report, from_dict, to_dict

REPORT = "report.json"
MAX_REPORT_BYTES = 64 << 20

HEAD = (
    "model", "KB", "load ms", "tile", "ms", "", "p90", "ms/MP", "", "p90", "peak MB", "PSNR dB", "SSIM", "dE2000",
    "off by",
)  # fmt: skip


def to_json(report: Report) -> str:
    """The whole report as JSON; `schema.from_dict(Report, ...)` reads it back."""
    return json.dumps(to_dict(report), indent=1)


def to_csv(report: Report) -> str:
    """One row per device and model under a header row that is always the same; nested names joined by underscores.

    Lists (operators, the sweep of threads) are in the JSON only.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    paths = list(_leaves(ModelProfile))
    writer.writerow(["device", "emulated", *("_".join(path) for path in paths)])
    for device in report.devices:
        for model in device.models:
            writer.writerow([device.device, device.machine.emulated, *(_at(model, path) for path in paths)])
    return text.getvalue()


def to_table(report: Report) -> str:
    """What a person wants to see: where, on what, one row per model, and what to beware of."""
    raw, pairs = report.raw, report.pairs
    lines = [
        f"raw: {raw.name}, {raw.width} x {raw.height}"
        + ("" if pairs is None else f"; pairs: {pairs.name}, {pairs.images} images")
    ]
    for device in report.devices:
        lines += ["", *device_lines(device)]
    return "\n".join(lines)


def device_lines(device: DeviceReport) -> list[str]:
    """The part of the table that is about one device."""
    machine = device.machine
    facts = f"{machine.cpu}, {machine.cores} cores, {machine.system}, Python {machine.python}"
    lines = [f"{device.device}: {facts if machine.cores else 'not reached'}"]
    if device.models:
        rows = [_row(model, machine.emulated is not None) for model in device.models]
        lines += ["", *_columns([HEAD, *rows]), "", *_legend(device.models, machine)]
        lines += [line for model in device.models for line in _more(model, machine.emulated is not None)]
    lines += [f"note: {note}" for note in device.notes]
    reasons = Counter(failure.message for failure in device.failed)
    if len(device.failed) > 1 and len(reasons) == 1:
        names = ", ".join(failure.name for failure in device.failed)
        return [*lines, f"failed: {device.failed[0].message} ({names})"]
    return [*lines, *(f"failed: {failure_line(failure)}" for failure in device.failed)]


def failure_line(failure: Failure) -> str:
    """What failed and why; most errors name the file themselves."""
    return failure.message if failure.message.startswith(failure.name) else f"{failure.name}: {failure.message}"


def make_folder(folder: Path) -> None:
    """Make a folder for a report, if absent. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror or error})") from error


def write_report(
    report: Report, folder: Path, *, pictures: Path | None = None, pairs: Path | None = None
) -> list[Path]:
    """Write report.json, report.csv and report.html into a folder, made if absent. Raises OutputError.

    `pictures`, `pairs`: what `profile` kept of the devices' pictures, and the pairs with their truths; without them the
    page has no crops.
    """
    from .page import to_html

    make_folder(folder)
    written = []
    files = {
        REPORT: encoded(to_json(report) + "\n"),
        "report.csv": encoded(to_csv(report)),
        "report.html": encoded(to_html(report, pictures=pictures, pairs=pairs)),
    }
    for name, data in files.items():
        with written_beside(folder / name) as file:
            file.write(data)
        written.append(folder / name)
    return written


def read_report(path: Path) -> Report:
    """A report.json, or the one in a folder of `profile --out`. Raises EguotError naming what is wrong with it."""
    if path.is_dir():
        path = path / REPORT
    try:
        if path.stat().st_size > MAX_REPORT_BYTES:
            raise EguotError(f"{path}: more than {MAX_REPORT_BYTES} bytes are no report")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise EguotError(f"{path}: not JSON; expected a {REPORT} that `profile --out` wrote") from error
    version = data.get("version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise EguotError(
            f"{path}: a report of version {version!r}, this eguot-sdk reads {SCHEMA_VERSION}: profile again"
        )
    return from_dict(Report, data, path.name)


def _row(model: ModelProfile, emulated: bool) -> tuple[str, ...]:
    accuracy, frame, tile = model.accuracy, model.frame, model.tile.latency
    size = f"{model.tile.height_packed}x{model.tile.width_packed}"
    times = (
        _number(model.load_ms, 0),
        size,
        _number(tile.p50_ms, 2),
        _spread(tile),
        _number(tile.p90_ms, 2),
        _number(None if frame is None else frame.per_megapixel_p50_ms, 1),
        "" if frame is None else _spread(frame.latency),
        _number(None if frame is None else frame.per_megapixel_p90_ms, 1),
    )
    return (
        model.name,
        f"{model.file_bytes / 1e3:.0f}",
        *(("n/a", size, "n/a", "", "n/a", "n/a", "", "n/a") if emulated else times),
        _number(model.peak_memory_mb, 0),
        "-" if accuracy is None else f"{accuracy.psnr_db:.2f}",
        "-" if accuracy is None else f"{accuracy.ssim:.4f}",
        "-" if accuracy is None else f"{accuracy.de2000:.2f}",
        "n/a" if model.parity is None else f"{model.parity.max_levels:.3g}",
    )


def _legend(models: Sequence[ModelProfile], machine: Machine) -> list[str]:
    model, frame = models[0], models[0].frame
    lines = [f"tile: size in packed pixels, and the network's time on {model.tile.threads} thread"]
    if frame is not None:
        reading = ", reading the file included" if frame.reads_file else ""
        lines[0] += f"; ms/MP: raw to picture on {frame.threads} threads{reading}"
    lines[0] += f"; {model.runtime}"
    if len({(m.tile.height_packed, m.tile.width_packed) for m in models}) > 1:
        lines.append("the tiles differ in size: their times do not compare")
    if machine.emulated is None:
        lines.append("times are medians, with their interval of about 95 % confidence, and 90th percentiles")
        timed = [part.latency for m in models for part in (m.tile, m.frame) if part is not None]
        if any(latency.p50_ms is None for latency in timed):
            lines.append("times that are n/a: fewer than 5 runs in the time there was; give more --max-seconds")
    return [*lines, "off by: largest difference of the golden output to the reference's, in steps of 1/255"]


def _more(model: ModelProfile, emulated: bool) -> list[str]:
    """What was asked for beyond the table, a line each."""
    lines = []
    if model.threads and not emulated:
        points = ", ".join(
            f"{p.threads}: tile {_number(p.tile.p50_ms, 2)}, frame {_number(p.frame.p50_ms, 0)}" for p in model.threads
        )
        lines.append(f"{model.name}: ms by threads: {points}")
    if model.sustained is not None and not emulated:
        s = model.sustained
        heat = f"{_number(s.first_temperature_c, 0)} to {_number(s.last_temperature_c, 0)} C"
        clock = f"{_number(s.first_frequency_mhz, 0)} to {_number(s.last_frequency_mhz, 0)} MHz"
        lines.append(
            f"{model.name}: {s.frames} frames in {s.seconds:.0f} s without a pause: {_number(s.first_p50_ms, 0)} to "
            f"{_number(s.last_p50_ms, 0)} ms, {heat}, {clock}"
        )
    if model.energy is not None and not emulated:
        energy = model.energy
        lines.append(f"{model.name}: {energy.per_megapixel_mj:.0f} mJ/MP, {energy.watts:.1f} W ({energy.source})")
    if model.operators is not None and model.operators.not_delegated:
        ops = model.operators
        left = ", ".join(ops.not_delegated)
        lines.append(f"{model.name}: {ops.delegated} of {ops.total} operators are accelerated, not {left}")
    return lines


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
        if get_origin(hint) is tuple:
            continue
        inner = next((k for k in (hint, *get_args(hint)) if dataclasses.is_dataclass(k)), None)
        yield from ((name,),) if inner is None else ((name, *rest) for rest in _leaves(inner))


def _at(value: Any, path: Sequence[str]) -> Any:
    for name in path:
        value = None if value is None else getattr(value, name)
    return value
