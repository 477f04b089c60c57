"""Two reports of the same things: what became faster, slower, better or worse beyond noise; and what fits a budget.

A change of time counts where the intervals of both medians lie apart and it is larger than the noise that either run
measured. A change of quality counts from 0.01 dB, and one of memory from 5 %: both are the same from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from eguot_sdk.errors import UsageError

from .schema import DeviceReport, Latency, ModelProfile, Report

QUALITY_DB = 0.01
MEMORY_PCT = 5.0
LEAST_NOISE_PCT = 2.0
MORE_RUNS = "profile again with more --max-seconds"
ALIKE = "profile again on as many cores, with the same --raw and --delegate"


@dataclass(frozen=True, slots=True)
class Change:
    """One number of one model on one device, before and after."""

    device: str
    model: str
    what: str
    before: float
    after: float
    unit: str
    verdict: str
    """faster, slower, better, worse, smaller, larger, or same."""
    noise_pct: float
    """Changes of time below this count as none."""

    @property
    def percent(self) -> float:
        """Change in percent of the value before."""
        return 100 * (self.after - self.before) / self.before if self.before else 0.0


def compare(before: Report, after: Report) -> list[Change]:
    """All numbers that both reports have, device by device, model by model, by their names.

    Raises UsageError where the reports are not about the same thing: another raw, other pairs, another protocol.
    """
    if (before.raw.sha256, before.raw.width, before.raw.height) != (
        after.raw.sha256,
        after.raw.width,
        after.raw.height,
    ):
        raise UsageError(
            f"different raws were developed ({before.raw.name}, {after.raw.name}): profile with the same --raw"
        )
    if before.pairs and after.pairs and before.pairs.sha256 != after.pairs.sha256:
        raise UsageError(
            f"accuracy was measured on different pairs ({before.pairs.name}, {after.pairs.name}): profile with the "
            "same --pairs"
        )
    protocols = {m.accuracy.protocol for r in (before, after) for d in r.devices for m in d.models if m.accuracy}
    if len(protocols) > 1:
        raise UsageError(
            f"accuracy was measured by different protocols ({', '.join(sorted(protocols))}): profile again"
        )
    changes = [
        change
        for old_device, new_device in _common_devices(before, after)
        for old, new in _common_models(old_device, new_device)
        for change in _changes(old_device, new_device, old, new)
    ]
    if not changes:
        raise UsageError("the reports have no model on a device in common: nothing can be compared")
    return changes


def missing_times(before: Report, after: Report) -> list[str]:
    """Which times of the earlier report the later one cannot be held against, why, and what to do; one line each."""
    lines = []
    later = {device.device: device for device in after.devices}
    for old_device in before.devices:
        new_device = later.get(old_device.device)
        if new_device is None:
            lines.append(f"{old_device.device}: only in the first report; profile again with it")
            continue
        if old_device.machine.emulated is not None or new_device.machine.emulated is not None:
            lines.append(f"{old_device.device}: emulated, its times are no latency; profile on a real one")
            continue
        models = {model.name: model for model in new_device.models}
        for old in old_device.models:
            what = _missing_time(old, models.get(old.name))
            if what is not None:
                lines.append(f"{old.name} on {old_device.device}: {what}")
    return lines


def _missing_time(old: ModelProfile, new: ModelProfile | None) -> str | None:
    if new is None:
        return "only in the first report; profile again with it"
    had, has = _medians(old), _medians(new)
    lost = [what for what in had if what not in has]
    if lost:
        return f"no time of a {' or a '.join(lost)} in the second report, which has too few runs; {MORE_RUNS}"
    if "frame" in had and _of_frame(old) != _of_frame(new):
        return f"frames were timed otherwise ({_of_frame(old)} or {_of_frame(new)}); {ALIKE}"
    if "frame" not in had and _of_tile(old) != _of_tile(new):
        return "the tiles that were timed differ in size; profile again with as much memory free"
    return None if had else f"no time in the first report, which has too few runs; {MORE_RUNS}"


def _medians(model: ModelProfile) -> dict[str, float]:
    """The times that a model was given, by what was timed."""
    found = {"tile": model.tile.latency.p50_ms, "frame": model.frame.latency.p50_ms if model.frame else None}
    return {what: ms for what, ms in found.items() if ms is not None}


def _common_devices(before: Report, after: Report) -> Iterator[tuple[DeviceReport, DeviceReport]]:
    old = {device.device: device for device in before.devices}
    return ((old[device.device], device) for device in after.devices if device.device in old)


def _common_models(before: DeviceReport, after: DeviceReport) -> Iterator[tuple[ModelProfile, ModelProfile]]:
    old = {model.name: model for model in before.models}
    return ((old[model.name], model) for model in after.models if model.name in old)


def _changes(old_device: DeviceReport, device: DeviceReport, old: ModelProfile, new: ModelProfile) -> Iterator[Change]:
    noise = max(old.noise_pct or 0.0, new.noise_pct or 0.0, LEAST_NOISE_PCT)

    def change(what: str, before: float, after: float, unit: str, verdict: str) -> Change:
        return Change(device.device, new.name, what, before, after, unit, verdict, noise)

    if old_device.machine.emulated is None and device.machine.emulated is None:
        pairs = []
        if _of_tile(old) == _of_tile(new):  # `ISP.load` sizes tiles by the memory that is free
            pairs.append(("tile", old.tile.latency, new.tile.latency))
        if old.frame is not None and new.frame is not None and _of_frame(old) == _of_frame(new):
            pairs.append(("frame", old.frame.latency, new.frame.latency))
        for what, a, b in pairs:
            if a.p50_ms is not None and b.p50_ms is not None:
                yield change(what, a.p50_ms, b.p50_ms, "ms", _time_verdict(a, b, noise))
    if old.peak_memory_mb is not None and new.peak_memory_mb is not None:
        a_mb, b_mb = old.peak_memory_mb, new.peak_memory_mb
        yield change(
            "peak memory", a_mb, b_mb, "MB", _verdict(b_mb - a_mb, a_mb * MEMORY_PCT / 100, "larger", "smaller")
        )
    if old.accuracy is not None and new.accuracy is not None:
        a_db, b_db = old.accuracy.psnr_db, new.accuracy.psnr_db
        yield change("PSNR", a_db, b_db, "dB", _verdict(b_db - a_db, QUALITY_DB, "better", "worse"))


def _of_tile(model: ModelProfile) -> tuple[int, int, int]:
    return model.tile.height_packed, model.tile.width_packed, model.tile.threads


def _of_frame(model: ModelProfile) -> str | None:
    """What a frame was timed with, in words."""
    if model.frame is None:
        return None
    return f"{model.frame.threads} threads, {'a file read' if model.frame.reads_file else 'no file read'}"


def differences(before: Report, after: Report) -> list[str]:
    """What else differs: the machines of both reports, and models that the later one alone has."""
    lines: list[str] = []
    for old_device, new_device in _common_devices(before, after):
        for old, new in _common_models(old_device, new_device):
            for what, a, b in (
                ("processor", old_device.machine.cpu, new_device.machine.cpu),
                ("number of cores", old_device.machine.cores, new_device.machine.cores),
                ("runtime", old.runtime, new.runtime),
            ):
                if a != b:
                    lines.append(f"{new_device.device}: another {what}, {a} then {b}")
    known = {(device.device, model.name) for device in before.devices for model in device.models}
    for device in after.devices:
        new_names = [model.name for model in device.models if (device.device, model.name) not in known]
        if new_names:
            lines.append(f"{device.device}: only in the later report: {', '.join(new_names)}")
    return list(dict.fromkeys(lines))


def _time_verdict(a: Latency, b: Latency, noise_pct: float) -> str:
    if a.p50_ms is None or b.p50_ms is None or None in (a.p50_low_ms, a.p50_high_ms, b.p50_low_ms, b.p50_high_ms):
        return "same"
    overlap = (a.p50_low_ms or 0) <= (b.p50_high_ms or 0) and (b.p50_low_ms or 0) <= (a.p50_high_ms or 0)
    return "same" if overlap else _verdict(b.p50_ms - a.p50_ms, a.p50_ms * noise_pct / 100, "slower", "faster")


def _verdict(change: float, least: float, more: str, less: str) -> str:
    return "same" if abs(change) < least else more if change > 0 else less


def comparison_lines(changes: list[Change]) -> list[str]:
    """One line for each change beyond noise, and how many numbers stayed."""
    moved = [c for c in changes if c.verdict != "same"]
    lines = [
        f"{c.verdict}: {c.model} on {c.device}: {c.what} {c.before:.4g} -> {c.after:.4g} {c.unit} ({c.percent:+.1f} %)"
        for c in moved
    ]
    noise = max((c.noise_pct for c in changes), default=0.0)
    return [
        *lines,
        f"{len(changes) - len(moved)} of {len(changes)} numbers are the same within noise (up to {noise:.0f} %)",
    ]


def too_slow(changes: list[Change], percent: float) -> list[Change]:
    """Times that became longer by more than `percent`, beyond noise."""
    return [c for c in changes if c.verdict == "slower" and c.percent > percent]


def undecided(changes: list[Change], percent: float) -> list[str]:
    """Times that seem to have grown by more than `percent`, but not beyond noise: nobody can say, one line each."""
    return [
        f"{c.model} on {c.device}: {c.what} {c.percent:+.1f} %, which may be noise ({c.noise_pct:.0f} %): cannot be "
        "decided; profile again while nothing else runs"
        for c in changes
        if c.unit == "ms" and c.verdict == "same" and c.percent > max(percent, LEAST_NOISE_PCT)
    ]


def budget_lines(device: DeviceReport, budget_ms: float) -> list[str]:
    """Which model to take where one frame may take so long, and why the others do not do."""
    if device.machine.emulated is not None:
        return [f"{device.device} is emulated: nothing can be said about {budget_ms:g} ms"]
    fitting, lines = [], []
    for model in device.models:
        time_ms = None if model.frame is None else model.frame.latency.p90_ms or model.frame.latency.p50_ms
        time_ms = (model.tile.latency.p90_ms or model.tile.latency.p50_ms) if model.frame is None else time_ms
        if time_ms is None:
            lines.append(f"{model.name}: too few runs for a time")
        elif time_ms > budget_ms:
            lines.append(f"{model.name}: takes {time_ms:.1f} ms, {time_ms - budget_ms:.1f} too long")
        else:
            fitting.append((model, time_ms))
    lines += [f"{failure.name}: could not be measured" for failure in device.failed]
    if not device.models:
        return [f"nothing was measured on {device.device}, so nothing can be chosen", *lines]
    if not fitting:
        what = "a tile" if all(model.frame is None for model in device.models) else "a frame"
        return [f"nothing fits into {budget_ms:g} ms {what} on {device.device}", *lines]
    best, time_ms = max(fitting, key=lambda f: (f[0].accuracy.psnr_db if f[0].accuracy else 0.0, -f[1]))
    quality = f", {best.accuracy.psnr_db:.2f} dB" if best.accuracy else "; without --pairs the fastest counts as best"
    for model, took in fitting:
        if model is not best and model.accuracy and best.accuracy:
            lines.append(
                f"{model.name}: fits ({took:.1f} ms), {best.accuracy.psnr_db - model.accuracy.psnr_db:.2f} dB worse"
            )
        elif model is not best:
            lines.append(f"{model.name}: fits ({took:.1f} ms), slower")
    what = "frame" if best.frame is not None else "tile"
    return [
        f"best within {budget_ms:g} ms a {what} on {device.device}: {best.name} ({time_ms:.1f} ms{quality})",
        *lines,
    ]
