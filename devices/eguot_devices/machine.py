"""Facts of the machine this process runs on, read from the system; what cannot be read is None or "unknown".

Linux tells most of it through /proc and /sys. Nothing here names the host or its owner.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path

from eguot_sdk.workers import core_count

from .schema import Machine, to_dict

SYS = Path("/sys")
TOOLS = ("eguot-sdk", "numpy", "rawpy", "ai-edge-litert", "tflite-runtime")


def this_machine() -> Machine:
    """System, processor, cores, memory, governor and tool versions."""
    pages = os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()) else 0
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_name(),
        soc=board_name(),
        cores=core_count(),
        memory_mb=round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6) if pages > 0 else None,
        governor=_text(SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        python=platform.python_version(),
        packages={name: version for name in TOOLS if (version := _version(name)) is not None},
        delegates=delegates(),
        emulated=emulator(),
    )


def cpu_name() -> str:
    """Model of the processor, or of the board where the processor does not say."""
    name = _cpuinfo("model name") if emulator() is None else None
    return name or board_name() or platform.processor() or platform.machine() or "unknown"


def board_name() -> str | None:
    """What the board says it is, by its device tree or its maker's table."""
    for path in ("firmware/devicetree/base/model", "devices/virtual/dmi/id/product_name"):
        if found := (_text(SYS / path) or "").strip("\0 "):
            return found if emulator() is None else None
    return None


def emulator() -> str | None:
    """What emulates this processor, as far as it can be seen from inside.

    QEMU's user mode passes the host's /proc on: a processor of another make than the architecture we run on, or an
    emulator as the running program. A virtual machine of the host's own architecture is no emulation.
    """
    try:
        if "qemu" in Path(os.readlink("/proc/thread-self/exe")).name:
            return "QEMU"
    except OSError:
        pass
    machine = platform.machine().lower()
    intel = _cpuinfo("vendor_id") is not None or _cpuinfo("flags") is not None
    arm = _cpuinfo("CPU implementer") is not None
    if (machine.startswith(("aarch64", "arm")) and intel) or (machine in ("x86_64", "i686") and arm):
        return "QEMU"
    return "QEMU" if "TCG" in (_cpuinfo("model name") or "") else None


DELEGATE_LIBRARIES = {
    "OpenCL": "GPU (OpenCL)",
    "edgetpu": "Edge TPU",
    "vx_delegate": "VeriSilicon NPU",
    "QnnTFLiteDelegate": "Qualcomm NPU",
    "ethosu_delegate": "Arm Ethos-U",
    "armnnDelegate": "Arm NN",
}


def delegates() -> tuple[str, ...]:
    """XNNPACK, which the runtimes bring along, and accelerators whose library lies where the system looks for it."""
    runtimes = any(_version(name) for name in ("ai-edge-litert", "tflite-runtime"))
    folders = ("/usr/lib", "/usr/local/lib", f"/usr/lib/{platform.machine()}-linux-gnu", "/usr/lib64", "/vendor/lib64")
    found = [name for library, name in DELEGATE_LIBRARIES.items()
             if any(Path(folder, f"lib{library}.so").exists() for folder in folders)]  # fmt: skip
    return (*(("XNNPACK",) if runtimes else ()), *found)


def temperature_c() -> float | None:
    """Of the hottest thermal zone."""
    zones = (_number(path) for path in (SYS / "class/thermal").glob("thermal_zone*/temp"))
    return max((t / 1e3 for t in zones if t is not None and -50e3 < t < 200e3), default=None)


def frequency_mhz() -> float | None:
    """Of the fastest core, now: on a processor with large and small cores, that of a large one."""
    cores = (SYS / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    return max((f / 1e3 for path in cores if (f := _number(path)) is not None), default=None)


class EnergyMeter:
    """Energy since its making: RAPL's package counters, or the power a battery or supply reports."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        zones = sorted((SYS / "class/powercap").glob("intel-rapl:*"))  # AMD's processors have that name too
        # Packages: not their parts, and not `psys`, which is the whole board and would count them twice.
        packages = [z / "energy_uj" for z in zones if (_text(z / "name") or "").startswith("package")]
        self._counters = [path for path in packages if _number(path) is not None]
        self._before = [_number(p) or 0.0 for p in self._counters]
        supplies = sorted((SYS / "class/power_supply").glob("*"))
        self._supply = next((p for p in supplies if _supply_watts(p) is not None), None)
        self._watts: list[float] = []

    def sample(self) -> None:
        """Look at the power supply now; between looks its power is taken as constant."""
        if not self._counters and self._supply is not None and (watts := _supply_watts(self._supply)) is not None:
            self._watts.append(watts)

    def joules(self) -> tuple[float, str] | None:
        """Energy so far and where it was read; None where nothing tells."""
        if self._counters:
            used = 0.0
            for path, before in zip(self._counters, self._before, strict=True):
                now, wrap = _number(path), _number(path.parent / "max_energy_range_uj")
                if now is None:
                    return None
                if now < before:  # the counter began again at zero
                    now += wrap or 0.0
                used += max(now - before, 0.0) / 1e6
            return used, "RAPL package"
        if self._watts and self._supply is not None:
            return sum(self._watts) / len(self._watts) * (time.monotonic() - self._start), self._supply.name
        return None


def _supply_watts(supply: Path) -> float | None:
    """Power that is drawn from a supply; None for one that does not tell, and for a battery that is not in use."""
    if _text(supply / "type") == "Battery" and _text(supply / "status") != "Discharging":
        return None  # what flows is what charges it
    power = _number(supply / "power_now")
    if power:
        return abs(power) / 1e6
    current, voltage = _number(supply / "current_now"), _number(supply / "voltage_now")
    return abs(current * voltage) / 1e12 if current and voltage else None


def _number(path: Path) -> float | None:
    try:
        return float(int(_text(path) or ""))
    except ValueError:
        return None


def _cpuinfo(wanted: str) -> str | None:
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == wanted and value.strip():
            return value.strip()
    return None


def memory_mb() -> tuple[float | None, float | None]:
    """Resident size of this process now and at its highest, in 10^6 bytes; None where the system does not tell."""
    # Not ru_maxrss first: on Linux a process inherits the peak of the one that started it, which may have held torch.
    found = {}
    for line in (_text(Path("/proc/self/status")) or "").splitlines():
        key, _, value = line.partition(":")
        if key in ("VmRSS", "VmHWM"):
            found[key] = int(value.split()[0]) * 1024 / 1e6
    if len(found) == 2:
        return found["VmRSS"], found["VmHWM"]
    try:
        import resource
    except ImportError:  # Windows
        return None, None
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return peak, peak


def family_memory_mb(process: int) -> float:
    """Resident memory of a process and its children, in 10^6 bytes. Linux."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            values = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:  # it has ended
            continue
        if process in (int(values["Pid"]), int(values["PPid"])):
            total += int(values.get("VmRSS", "0 kB").split()[0])
    return total * 1024 / 1e6


class OtherLoad:
    """Cores, of those this process may use, that others keep busy, on average from its making until `cores()`."""

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
    """Seconds that the cores this process may use were busy since the machine started, added up."""
    ticks = []
    for line in (_text(Path("/proc/stat")) or "").splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name != "cpu" and int(name[3:]) in os.sched_getaffinity(0):
            user, nice, system, _idle, _wait, irq, soft_irq, steal = (int(v) for v in values[:8])
            ticks.append(user + nice + system + irq + soft_irq + steal)
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None


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


if __name__ == "__main__":
    print(json.dumps({"result": to_dict(this_machine())}))
