from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time

import numpy as np
import pytest

from eguot_devices import machine
from eguot_devices.machine import OtherLoad, memory_mb, this_machine, usable_cores

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_facts_of_this_machine() -> None:
    facts = this_machine()
    assert facts.cores == usable_cores() <= (os.cpu_count() or 1)
    assert facts.python == platform.python_version()
    assert facts.packages["numpy"] == np.__version__
    assert platform.node() not in str(facts) or not platform.node()


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
