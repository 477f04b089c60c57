from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eguot_devices import machine
from eguot_devices.machine import (
    EnergyMeter,
    OtherLoad,
    frequency_mhz,
    memory_mb,
    temperature_c,
    this_machine,
)
from eguot_sdk.workers import core_count

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_facts_of_this_machine() -> None:
    facts = this_machine()
    assert facts.cores == core_count() <= (os.cpu_count() or 1)
    assert facts.python == platform.python_version()
    assert facts.packages["numpy"] == np.__version__
    assert platform.node() not in str(facts) or not platform.node()


def test_a_system_without_proc_and_resource_does_not_tell_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eguot_devices.machine._text", lambda path: None)
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert memory_mb() == (None, None)


HOLDS = """
import json, numpy
from eguot_devices.machine import memory_mb
found = [memory_mb()]
block = numpy.ones(100_000_000 // 8)
found.append(memory_mb())
del block
found.append(memory_mb())
print(json.dumps(found))
"""


@LINUX
def test_memory_rises_with_what_is_held_and_the_peak_stays() -> None:
    """In a process of its own: one that has run other tests holds freed memory, which the block would take."""
    done = subprocess.run([sys.executable, "-c", HOLDS], capture_output=True, text=True, check=True, timeout=60)
    (before, peak_before), (held, peak), (after, peak_after) = json.loads(done.stdout)
    assert before + 90 <= held <= before + 120
    assert after <= held - 90
    assert peak_after == pytest.approx(peak, abs=1)
    assert peak >= max(held - 1, peak_before)


@LINUX
def test_the_peak_is_not_that_of_the_process_that_started_it() -> None:
    block = np.ones(400_000_000 // 8)
    code = "from eguot_devices.machine import memory_mb; print(memory_mb()[1])"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert memory_mb()[0] > 400
    assert float(child.stdout) < 200
    del block


@LINUX
def test_load_of_another_process_is_seen() -> None:
    others = OtherLoad()
    spin = "import time; end = time.monotonic() + 0.6\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", spin]):
        time.sleep(0.5)
        cores = others.cores()
    assert cores is not None
    assert cores > 0.2


@LINUX
def test_only_cores_that_this_process_may_use_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """user nice system idle iowait irq softirq steal guest guest_nice, in ticks."""
    stat = "cpu  999 0 0 0 0 0 0 0 0 0\n" + "".join(
        f"cpu{i} {100 * 2**i} 10 5 700 60 3 1 1 40 0\n" for i in range(12)
    ) + "intr 5\nctxt 7\nbtime 9\n"  # fmt: skip
    monkeypatch.setattr(machine, "_text", lambda path: stat if path == Path("/proc/stat") else None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 10})
    assert machine._busy_seconds() == pytest.approx((200 + 20 + 102_400 + 20) / os.sysconf("SC_CLK_TCK"))
    monkeypatch.setattr(machine, "_text", lambda path: None)
    assert machine._busy_seconds() is None


def test_own_load_is_not_counted_and_absence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"busy": 100.0, "own": 10.0, "now": 0.0}
    monkeypatch.setattr(machine, "_busy_seconds", lambda: seconds["busy"])
    monkeypatch.setattr(machine, "_own_seconds", lambda: seconds["own"])
    monkeypatch.setattr(machine.time, "monotonic", lambda: seconds["now"])
    others = OtherLoad()
    seconds.update(busy=107.0, own=14.0, now=2.0)
    assert others.cores() == pytest.approx(1.5)
    monkeypatch.setattr(machine, "_busy_seconds", lambda: None)
    assert others.cores() is None


# What /sys tells of heat, frequency and energy, on trees made like the kernel's: no machine that has them was at hand.

Put = Callable[..., None]


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Put:
    """put("class/x", name=value, ...) writes files of a /sys that is empty at first."""
    monkeypatch.setattr(machine, "SYS", tmp_path)

    def write(folder: str, **files: object) -> None:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (tmp_path / folder / name).write_text(f"{value}\n")

    return write


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    now = {"s": 0.0}
    monkeypatch.setattr(machine.time, "monotonic", lambda: now["s"])
    return now


@pytest.mark.usefixtures("put")
def test_a_machine_that_tells_nothing() -> None:
    assert temperature_c() is None
    assert frequency_mhz() is None
    meter = EnergyMeter()
    meter.sample()
    assert meter.joules() is None
    assert this_machine().governor is None


def test_the_hottest_zone_counts_and_broken_sensors_do_not(put: Put, tmp_path: Path) -> None:
    for i, value in enumerate((48_312, 71_000, -273_000, 2_147_483_647, "N/A", "")):
        put(f"class/thermal/thermal_zone{i}", temp=value, type="cpu-thermal")
    (tmp_path / "class/thermal/thermal_zone9").mkdir()
    assert temperature_c() == 71.0
    put("class/thermal/thermal_zone1", temp=-4_500)
    put("class/thermal/thermal_zone0", temp=-5_000)
    assert temperature_c() == -4.5


def test_the_frequency_is_that_of_the_fastest_core(put: Put) -> None:
    for core, khz in enumerate((600_000, 600_000, 2_400_000, "<unknown>")):
        put(f"devices/system/cpu/cpu{core}/cpufreq", scaling_cur_freq=khz, scaling_governor="schedutil")
    put("devices/system/cpu/cpufreq/policy0", scaling_cur_freq=9_000_000)
    assert frequency_mhz() == 2400.0
    assert this_machine().governor == "schedutil"


def test_a_board_says_its_name(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "emulator", lambda: None)
    put("firmware/devicetree/base", model="Raspberry Pi 5 Model B Rev 1.0\0")
    assert this_machine().soc == "Raspberry Pi 5 Model B Rev 1.0"


def test_energy_of_rapl_is_that_of_the_packages(put: Put) -> None:
    zones = {"0": "package-0", "0:0": "core", "0:1": "uncore", "1": "package-1", "2": "psys"}
    for i, name in zones.items():
        put(f"class/powercap/intel-rapl:{i}", name=name, energy_uj=1_000_000, max_energy_range_uj=262_143_328_850)
    meter = EnergyMeter()
    for i in zones:
        put(f"class/powercap/intel-rapl:{i}", energy_uj=3_500_000)
    assert meter.joules() == (pytest.approx(5.0), "RAPL package")


def test_a_counter_of_rapl_that_begins_again(put: Put) -> None:
    folder = "class/powercap/intel-rapl:0"
    put(folder, name="package-0", energy_uj=262_143_000_000, max_energy_range_uj=262_143_328_850)
    meter = EnergyMeter()
    put(folder, energy_uj=1_671_150)
    assert meter.joules() == (pytest.approx(2.0), "RAPL package")
    put(folder, energy_uj="")  # no longer readable
    assert meter.joules() is None


def test_rapl_for_the_superuser_alone_is_no_energy(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put("class/powercap/intel-rapl:0", name="package-0", energy_uj=5, max_energy_range_uj=9)
    read = Path.read_text

    def refuse(path: Path, **options: str) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert EnergyMeter().joules() is None


def test_energy_of_a_supply_is_its_mean_power_over_the_time(put: Put, clock: dict[str, float]) -> None:
    put("class/power_supply/AC", type="Mains", online=1)
    put("class/power_supply/BAT0", type="Battery", status="Discharging", current_now=-500_000, voltage_now=8_000_000)
    meter = EnergyMeter()
    meter.sample()  # 4 W
    put("class/power_supply/BAT0", current_now=1_000_000)
    meter.sample()  # 8 W
    clock["s"] = 10.0
    assert meter.joules() == (pytest.approx(60.0), "BAT0")


def test_power_as_such_is_taken_before_current_times_voltage(put: Put, clock: dict[str, float]) -> None:
    put("class/power_supply/rpi-poe", type="Mains", power_now=6_250_000, current_now=1, voltage_now=1)
    meter = EnergyMeter()
    meter.sample()
    clock["s"] = 2.0
    assert meter.joules() == (pytest.approx(12.5), "rpi-poe")


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging"])
def test_a_battery_that_is_not_in_use_tells_nothing(put: Put, status: str) -> None:
    put("class/power_supply/BAT0", type="Battery", status=status, power_now=20_000_000)
    meter = EnergyMeter()
    meter.sample()
    assert meter.joules() is None
