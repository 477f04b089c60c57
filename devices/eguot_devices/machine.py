"""Facts of the machine this process runs on, read from the system; what cannot be read is None or "unknown".

Linux tells most of it through /proc and /sys. Nothing here names the host or its owner.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sys
import time
from pathlib import Path

from .schema import Machine

TOOLS = ("eguot-sdk", "numpy", "rawpy", "ai-edge-litert", "tflite-runtime")


def this_machine() -> Machine:
    """System, processor, cores, memory, governor and tool versions."""
    pages = os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in os.sysconf_names else 0
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_name(),
        cores=usable_cores(),
        memory_mb=round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6) if pages > 0 else None,
        governor=_text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        python=platform.python_version(),
        packages={name: version for name in TOOLS if (version := _version(name)) is not None},
    )


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """Model of the processor, or of the board where the processor does not say."""
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    board = _text(Path("/sys/firmware/devicetree/base/model"))
    return (board or "").strip("\0") or platform.processor() or "unknown"


def memory_mb() -> tuple[float, float]:
    """Resident size of this process now and at its highest, in 10^6 bytes."""
    # Not ru_maxrss first: on Linux a process inherits the peak of the one that started it, which may have held torch.
    found = {}
    for line in (_text(Path("/proc/self/status")) or "").splitlines():
        key, _, value = line.partition(":")
        if key in ("VmRSS", "VmHWM"):
            found[key] = int(value.split()[0]) * 1024 / 1e6
    if len(found) == 2:
        return found["VmRSS"], found["VmHWM"]
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return peak, peak


class OtherLoad:
    """Cores that other processes keep busy, on average from its making until `cores()`."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._busy, self._own = _busy_seconds(), _own_seconds()

    def cores(self) -> float | None:
        """The average so far; None where the system does not tell."""
        busy, elapsed = _busy_seconds(), time.monotonic() - self._start
        if busy is None or self._busy is None or elapsed <= 0:
            return None
        return max(0.0, (busy - self._busy) - (_own_seconds() - self._own)) / elapsed


def _busy_seconds() -> float | None:
    """Seconds all cores together were busy since the machine started."""
    first = (_text(Path("/proc/stat")) or "").partition("\n")[0].split()
    if len(first) < 9 or first[0] != "cpu":
        return None
    user, nice, system, _idle, _wait, irq, soft_irq, steal = (int(v) for v in first[1:9])
    return (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None
